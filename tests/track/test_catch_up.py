"""What a killed driver left in the queue, and what the search logs again by the objective alone,
are one record.
"""

from __future__ import annotations

import gc
from pathlib import Path

from tune_mm.track import Store, Writer


def test_steps_of_the_queue_are_not_logged_again_by_their_objective(tmp_path: Path) -> None:
    """The first writer's records never reach the store: it is dropped, as a kill drops it, and its
    queue stays.
    """
    store = Store.open(f"sqlite:///{tmp_path}/mlruns/mlflow.db", tmp_path)
    first = Writer(store, "space", search="search-1", interval=1e6)
    run = first.start("search 0", key="search/0")
    for step in (1, 2, 3):
        first.log(
            run, {"objective": 0.1 * step, "train/loss": 1.0 / step, "val/loss": 2.0 / step}, step
        )
    del first, run
    gc.collect()

    with Writer(store, "space", search="search-1", interval=1e6) as again:
        run = again.start("search 0", key="search/0")
        for step in (1, 2, 3):
            again.log(run, {"objective": 0.1 * step}, step)
        again.finish(run, "completed")
    client = store.client()
    (found,) = client.search_runs([store.experiment("space")])
    for key in ("objective", "train/loss", "val/loss"):
        assert [m.step for m in client.get_metric_history(found.info.run_id, key)] == [1, 2, 3]
