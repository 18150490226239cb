"""Two searches at once: under different names both are whole, under one name the second is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.survival.processes import SPACE, Started, runs, summary, tracked, trials, write
from tests.survival.traced import GO, HELD, trace

SMALL = SPACE.replace("trials: 8", "trials: 4").replace(
    "seeds: 2, epochs: 3", "seeds: 1, epochs: 2"
)


@pytest.mark.slow
def test_two_searches_of_different_names_share_a_store(tmp_path: Path, started: Started) -> None:
    """Both begin at once in a store that neither finds made."""
    space, names = write(tmp_path, SMALL), ("first", "second")
    marks = {name: tmp_path / name for name in names}
    for folder in marks.values():
        folder.mkdir()
    both = [
        started.search(
            tmp_path, space=space, name=name, seed=seed, concurrency=1, marks=str(marks[name])
        )
        for seed, name in enumerate(names)
    ]
    for search in both:
        assert search.ends() == 0, search.says
        assert "tracking:" not in search.says
    for name in names:
        assert summary(tmp_path, name)["status"] == "completed"
        found, own = tracked(tmp_path, name), trials(tmp_path, name=name)
        assert sorted(found) == ["final/0", "search", *(f"search/{i}" for i in range(4))]
        for trial in own:
            logged = found[f"search/{trial.number}"]
            assert dict(logged["metrics"]["objective"]) == pytest.approx(trial.intermediate_values)
            assert float(logged["params"]["optim.lr"]) == trial.params["optim.lr"]
        assert {line["lr"] for line in trace(marks[name])} == {t.params["optim.lr"] for t in own}
    assert trials(tmp_path, name="first")[1].params != trials(tmp_path, name="second")[1].params, (
        "seeds 0 and 1"
    )
    assert len(runs(tmp_path)) == 12


@pytest.mark.slow
def test_a_name_that_is_taken_is_refused(tmp_path: Path, started: Started) -> None:
    """Begun anew or resumed while the first one runs; the first one does not notice."""
    space = write(tmp_path, SMALL)
    first = started.search(tmp_path, space=space, name="mine", concurrency=1, hold=3)
    first.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
    folder = tmp_path / "mlruns" / "search" / "mine"
    before = {p: p.read_bytes() for p in (folder / "search.json", folder / "optuna.journal")}
    anew = started.search(tmp_path, space=space, name="mine", concurrency=1)
    resumed = started.search(tmp_path, name="mine", resume=True, concurrency=1)
    for second, message in (
        (anew, "--name: a search 'mine' exists already in"),
        (resumed, "mine: another process is running this search"),
    ):
        assert second.ends() == 2, second.says
        (line,) = second.says.splitlines()
        assert message in line and "another --name" in line
    assert {p: p.read_bytes() for p in before} == before
    (tmp_path / GO).touch()
    assert first.ends() == 0, first.says
    assert sorted(tracked(tmp_path, "mine")) == [
        "final/0",
        "search",
        *(f"search/{i}" for i in range(4)),
    ]
    assert len({(line["lr"], line["seed"], line["epoch"]) for line in trace(tmp_path)}) == len(
        trace(tmp_path)
    )
