"""What a search writes to MLflow beside its trials' runs: the parent's artifacts."""

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tune_mm.tune.plan import plan
from tune_mm.tune.plan.plan import Options
from tune_mm.tune.tracking import Tracker

SPACE = """config: iemocap
method: cggm
objective: val/loss
domains:
  method.rho: {uniform: [1.0, 1.5]}
  method.lam: {loguniform: [0.01, 1.0]}
  optim.name: {choice: [adam, sgd]}
  optim.momentum: {quniform: [0.5, 0.9, 0.1], when: {optim.name: sgd}}
trials: 7
searcher: random
scheduler: {name: median, epochs: 5}
finals: {top: 1, baseline: BASELINE}
"""
BASELINE = """config: iemocap
method: joint
objective: val/loss
domains: {optim.lr: {choice: [0.01, 0.1]}}
"""


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracker]:
    """That of a search that begins."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "plain.yaml").write_text(BASELINE)
    (tmp_path / "odd.yaml").write_text(SPACE.replace("BASELINE", str(tmp_path / "plain.yaml")))
    about = {"shapes": {"text": [4, 6], "audio": [7, 5]}}
    found = Tracker(
        plan.resolve(Options(root=tmp_path, space=str(tmp_path / "odd.yaml"))), "synthetic", about
    )
    yield found
    found.close()


@pytest.fixture
def parent(tracker: Tracker) -> Path:
    """The artifacts of the parent run of a search that has only begun."""
    tracker.close()
    client = tracker.store.client()
    experiment = client.get_experiment_by_name("odd")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    uri = str(run.info.artifact_uri)
    return Path(
        mlflow.artifacts.download_artifacts(artifact_uri=uri, tracking_uri=tracker.store.uri)
    )


def test_the_parent_says_what_is_searched_and_how(parent: Path) -> None:
    space = json.loads((parent / "space.json").read_text())
    told = {
        k: space[k]
        for k in ("objective", "mode", "searcher", "scheduler", "exhaustive", "trials", "epochs")
    }
    assert told == {
        "objective": "val/loss",
        "mode": "min",
        "searcher": "random",
        "scheduler": "median",
        "exhaustive": False,
        "trials": 7,
        "epochs": 5,
    }


def test_domains_are_stored_by_stage_and_key_as_the_space_file_has_them(parent: Path) -> None:
    domains = json.loads((parent / "space.json").read_text())["domains"]
    assert domains["search"] == {
        "method.rho": {"kind": "uniform", "args": [1.0, 1.5], "when": {}},
        "method.lam": {"kind": "loguniform", "args": [0.01, 1.0], "when": {}},
        "optim.name": {"kind": "choice", "args": ["adam", "sgd"], "when": {}},
        "optim.momentum": {
            "kind": "quniform",
            "args": [0.5, 0.9, 0.1],
            "when": {"optim.name": ["sgd"]},
        },
    }
    assert domains["baseline"] == {"optim.lr": {"kind": "choice", "args": [0.01, 0.1], "when": {}}}


def test_runs_are_shown_by_objective_modalities_and_what_is_searched(tracker: Tracker) -> None:
    experiment = tracker.store.client().get_experiment_by_name("odd")
    assert experiment is not None
    view = json.loads(json.loads(experiment.tags["mlflow.sharedViewState.tune_mm_trials"])["state"])
    keys = ["method.rho", "method.lam", "optim.name", "optim.momentum", "optim.lr"]
    assert view["selectedColumns"][:9] == [
        "metrics.`best/val/loss`",
        *(f"params.`{key}`" for key in keys),
        "tags.`status`",
        "metrics.`best/val/loss/text`",
        "metrics.`best/val/loss/audio`",
    ]
    assert view["orderByAsc"]


def test_the_description_says_what_the_search_is_and_then_what_came_out(tracker: Tracker) -> None:
    store, name = tracker.store, "odd-1"
    tracker.flush()
    (run,) = store.client().search_runs([store.experiment("odd")])
    begun = run.data.tags["mlflow.note.content"]
    assert begun.startswith(
        f"Search **{name}**: cggm on iemocap, synthetic data: the numbers say nothing"
    )
    said = {
        "status": "completed",
        "objective": "val/loss",
        "stages": {"search": {"complete": 7}},
        "best": {},
    }
    tracker.summary(json.dumps({**said, "finals": None}), {}, "completed")
    tracker.flush()
    ended = store.client().get_run(run.info.run_id).data.tags["mlflow.note.content"]
    assert ended.startswith(f"{begun}\n\nStatus: completed (search: 7 complete).")
    assert (
        f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/summary.json"
        in ended
    )
