"""Whole searches with real Ray, Optuna and MLflow; what is trained is a formula."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from tests.tune.conftest import TOY, Searches
from tests.tune.toy import Toy
from tune_mm.config import load_config
from tune_mm.data import base
from tune_mm.errors import UserError
from tune_mm.track import Store
from tune_mm.tune import search
from tune_mm.tune.plan import plan as plans
from tune_mm.tune.plan.plan import Options
from tune_mm.tune.propose.ledger import Lock


def runs(searches: Searches) -> list[Any]:
    """All MLflow runs below the root."""
    client = Store.open(None, searches.root).client()
    found = client.search_experiments()
    return list(client.search_runs([e.experiment_id for e in found], max_results=1000))


def summary(searches: Searches, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (searches.root / "mlruns" / "search" / name / "summary.json").read_text()
    )
    return found


def keys(searches: Searches) -> Counter[str]:
    return Counter(r.data.tags["tune_mm.key"] for r in runs(searches))


def test_a_resumed_search_reads_the_data_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--data-root is not given again."""
    monkeypatch.setenv(base.ENV_CACHE, str(tmp_path / "cache"))
    elsewhere = tmp_path / "elsewhere"
    section = load_config("utd_mhad").data
    base.make(section, elsewhere, base.plugin_of(section).options(section))
    (elsewhere / "utd_mhad" / base.MARKER).unlink()
    begun = Options(root=tmp_path, space="joint_utd", data_root=elsewhere, require_real=True)
    plans.resolve(begun).save(closed=False)
    out = StringIO()
    resumed = Options(root=tmp_path, name="joint_utd-1", resume=True)
    assert search.run(resumed, Console(file=out, width=300), dry=True) == 0
    assert f"real: {elsewhere}" in out.getvalue()


def test_a_search_from_its_first_trial_to_its_finals(searches: Searches) -> None:
    """ASHA prunes, a diverged trial ends nothing, finals are tested once, all is tracked, and it
    can be extended.
    """
    below = searches.write(TOY.replace("[1e-5, 1e-1]", "[1e-5, 1e-2]"), "below")
    text = TOY.replace("domains:\n", "domains:\n  optim.weight_decay: {choice: [0.0, 1.0]}\n")
    text = text.replace(
        "  - {optim.lr: 1e-3}",
        # The second is as good as the first until it diverges: never stopped before, however slow
        # the first.
        "  - {optim.lr: 1e-3}\n  - {optim.lr: 1e-3, optim.weight_decay: 1.0}\n  - {optim.lr: 1e-5}",
    )
    text = text.replace("{top: 0}", f"{{top: 2, seeds: 3, epochs: 12, baseline: '{below}'}}")
    assert searches.run(searches.write(text)) == 0, searches.says

    trials = searches.book("toy-1").trials()
    assert len(trials) == 6
    assert [t.state for t in trials[:3]] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.PRUNED,
    ]
    assert trials[0].params == {"optim.lr": 1e-3, "optim.weight_decay": 0.0}
    assert len(trials[0].intermediate_values) == 9
    assert trials[2].user_attrs["epochs"] < 9
    assert trials[1].user_attrs["diverged"]
    assert len(searches.book("toy-1", "baseline").trials()) == 6, "as many as the search"

    found = summary(searches, "toy-1")
    assert found["status"] == "completed"
    assert found["failed"] == []
    assert found["diverged"][0] == "search 1: diverged: the loss was not finite in epoch 2"
    groups = found["finals"]["groups"]
    assert [g["role"] for g in groups] == ["tuned", "tuned", "baseline"]
    assert groups[0]["source"] == "search/0"
    assert set(groups[0]["test"]) == {"1", "2", "3"}
    assert found["finals"]["gain"]["n"] == 3
    assert groups[0]["result"]["mean"] - groups[2]["result"]["mean"] == pytest.approx(
        found["finals"]["gain"]["mean"]
    )
    assert groups[0]["settings"] == trials[0].params
    assert "test/accuracy" not in json.dumps(found["best"]), "the search never sees the test split"
    assert "gain over the tuned baseline" in searches.says

    tracked = runs(searches)
    assert set(keys(searches).values()) == {1}
    assert len(tracked) == 1 + 6 + 6 + 9
    status = {r.data.tags["tune_mm.key"]: (r.info.status, r.data.tags["status"]) for r in tracked}
    assert status["search/0"] == ("FINISHED", "completed")
    assert status["search/2"] == ("FINISHED", "pruned")
    assert status["search/1"] == ("FAILED", "failed")
    assert all(
        ("test/accuracy" in r.data.metrics) == (r.data.tags["stage"] == "final")
        for r in tracked
        if r.data.tags["tune_mm.key"] != "search"
    )
    one = next(r for r in tracked if r.data.tags["tune_mm.key"] == "final/0")
    assert {
        "role": "tuned",
        "source": "search/0",
        "data_kind": "synthetic",
        "seed": "1",
    }.items() <= one.data.tags.items()
    assert one.data.params["optim.lr"] == "0.001"
    names = {
        a.path for a in Store.open(None, searches.root).client().list_artifacts(one.info.run_id)
    }
    assert names == {"config.yaml", "best.pt", "gradients.npz"}
    assert not (searches.root / "mlruns" / "search" / "toy-1" / "ray" / "search").exists(), (
        "checkpoints are removed"
    )

    assert searches.run(name="toy-1", extend=3) == 0, searches.says
    after = searches.book("toy-1").trials()
    assert len(after) == 9
    assert [t.params for t in after[:6]] == [t.params for t in trials]
    assert len(searches.book("toy-1", "baseline").trials()) == 9
    assert set(keys(searches).values()) == {1}
    assert all(r.info.status in ("FINISHED", "FAILED") for r in runs(searches))


def test_failing_trials_are_named_and_the_exit_code_says_so(searches: Searches) -> None:
    text = TOY.replace(
        "  optim.lr: {loguniform: [1e-5, 1e-1]}", "  optim.weight_decay: {grid: [0.0, 2.0, 3.0]}"
    )
    text = text.replace("  - {optim.lr: 1e-3}", "  - {optim.weight_decay: 0.0}").replace(
        "{name: tpe, startup: 4}", "grid"
    )
    assert searches.run(searches.write(text.replace("name: asha", "name: none")), trials=3) == 1
    clean, raised, died = searches.book("toy-1").trials()
    assert clean.state == TrialState.COMPLETE
    assert raised.state == TrialState.FAIL
    assert raised.user_attrs["reason"].startswith(
        "ValueError: a setting that the model refuses (toy.py line"
    )
    assert died.state == TrialState.COMPLETE, "a worker that was killed is replaced"
    assert sorted(died.intermediate_values) == list(range(1, 10))
    assert "failed: search 1: ValueError: a setting that the model refuses" in searches.says
    assert "its worker died" in searches.says
    assert len(summary(searches, "toy-1")["failed"]) == 1


def test_a_search_whose_trials_all_fail_is_given_up(searches: Searches) -> None:
    space = searches.write(TOY.replace("name: asha", "name: none"))
    assert searches.run(space, trials=30, overrides={"optim.weight_decay": 2.0}) == 1
    assert len(searches.book("toy-1").trials()) < 10
    assert summary(searches, "toy-1")["status"] == "the first 3 trials all failed"
    assert summary(searches, "toy-1")["finals"] is None


def test_a_summary_that_cannot_be_written_costs_nothing_else(searches: Searches) -> None:
    place = searches.root / "mlruns" / "search" / "toy-1" / "summary.json"
    place.mkdir(parents=True)
    space = searches.write(TOY.replace("epochs: 9", "epochs: 1"))
    assert searches.run(space, trials=2) == 1
    assert "summary: not written (Is a directory); --resume writes it" in searches.says
    place.rmdir()
    assert searches.run(name="toy-1", resume=True) == 0
    assert summary(searches, "toy-1")["status"] == "completed"


def test_short_trials_use_all_slots(searches: Searches) -> None:
    """Trials are shorter than the start of a worker: Tune alone would run them all in the first."""
    space = searches.write(TOY.replace("epochs: 9", "epochs: 1"))
    assert searches.run(space, build=partial(Toy, wait=0.3), trials=16) == 0
    workers = [t.user_attrs["best_metrics"]["val/worker"] for t in searches.book("toy-1").trials()]
    assert len(set(workers)) == 2


def test_a_dry_run_writes_nothing(searches: Searches) -> None:
    out = StringIO()
    options = Options(root=searches.root, space=searches.write(), gpus=0.25, time_budget=1800)
    assert search.run(options, Console(file=out, width=150), dry=True, build=Toy) == 0
    for text in (
        "toy-1",
        "6",
        "asha, 9 epochs, decides after 1, 3, 9",
        "0.25 GPU",
        "30 min",
        "default 0",
        "optim.lr",
    ):
        assert text in out.getvalue()
    assert not (searches.root / "mlruns").exists()


def test_an_ablation_trains_every_point_over_the_seeds(searches: Searches) -> None:
    """Two values by two seeds, nothing tuned; resumed, nothing is run again."""
    text = TOY.replace("{loguniform: [1e-5, 1e-1]}", "{grid: [1e-3, 1e-2]}").replace(
        "{name: tpe, startup: 4}", "grid"
    )
    space = searches.write(text.replace("{top: 0}", "{top: all, seeds: 2, epochs: 3}"))
    assert searches.run(space) == 0, searches.says
    assert "2 points x 2 seeds" in searches.says
    assert "over the first" in searches.says
    assert keys(searches) == Counter(["search", *(f"final/{i}" for i in range(4))])
    told = summary(searches, "toy-1")["finals"]
    assert [(g["source"], g["role"], g["settings"]) for g in told["groups"]] == [
        ("grid/0", "grid", {"optim.lr": 1e-3}),
        ("grid/1", "grid", {"optim.lr": 1e-2}),
    ]
    assert [sorted(g["test"]) for g in told["groups"]] == [["1", "2"]] * 2
    assert searches.run(name="toy-1", resume=True) == 0, searches.says
    assert set(keys(searches).values()) == {1}


def test_a_search_in_progress_is_left_alone(searches: Searches) -> None:
    space = searches.write()
    lock = Lock(searches.root / "mlruns" / "search" / "toy-1" / "lock")
    with pytest.raises(UserError, match="another process is running this search"):
        searches.run(space)
    lock.close()


def test_more_than_there_is_is_refused_before_anything_starts(searches: Searches) -> None:
    with pytest.raises(UserError, match="a trial needs 64 CPUs"):
        searches.run(searches.write(), cpus=64)
    with pytest.raises(UserError, match="Ray sees no GPU here"):
        searches.run(searches.write(), gpus=0.5)
    with pytest.raises(UserError, match="--mps: Ray sees no GPU here"):
        searches.run(searches.write(), mps=True)
    with pytest.raises(UserError, match=r"train\.device: is cuda, and trials get no GPU"):
        searches.run(searches.write(), overrides={"train.device": "cuda"})
    assert not (searches.root / "mlruns" / "search" / "toy-1" / "search.json").exists()


DRIVER = """
import sys
from functools import partial
from pathlib import Path
from rich.console import Console
from tests.tune.toy import Toy
from tune_mm.tune.search import run
from tune_mm.tune.plan.plan import Options
root = Path(sys.argv[1])
options = Options(root=root, space=str(root / "toy.yaml"), concurrency=2)
sys.exit(run(options, Console(width=200), build=partial(Toy, wait=0.1)))
"""


def driver(searches: Searches) -> subprocess.Popen[str]:
    """A search in a process of its own, with a Ray of its own."""
    repository = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", DRIVER, str(searches.root)]
    return subprocess.Popen(
        command,
        cwd=searches.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(process: subprocess.Popen[str], text: str) -> str:
    """What the driver prints up to a line with `text`."""
    seen = []
    assert process.stdout is not None
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return "".join(seen)
    raise AssertionError(f"no '{text}' in:\n{''.join(seen)}")


@pytest.mark.slow
def test_an_interrupted_search_says_how_to_go_on(searches: Searches) -> None:
    searches.write()
    process = driver(searches)
    until(process, "[1/6]")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate()
    assert process.returncode == 130, rest
    assert "resume with: python -m tune_mm.search --name toy-1 --resume" in rest
    assert "Traceback" not in rest
    assert summary(searches, "toy-1")["status"] == "interrupted"
    assert {r.info.status for r in runs(searches)} <= {"FINISHED", "KILLED"}
    assert searches.run(name="toy-1", resume=True) == 0, searches.says
    assert len(searches.book("toy-1").trials()) == 6
    assert {r.info.status for r in runs(searches)} == {"FINISHED"}
    assert set(keys(searches).values()) == {1}
