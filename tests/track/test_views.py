"""Saved views: tags of the experiment in the form that MLflow's pages read, and the runs that they
select.
"""

import json
from typing import Any

import pytest
from mlflow.entities import Run

from tune_mm.track import Store, Writer, views

COLUMNS = views.columns("val/loss", ("audio", "text"), ("optim.lr", "method.rho"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("store")
    return Store.open(f"sqlite:///{root}/mlflow.db", root)


def saved(store: Store, experiment: str) -> dict[str, dict[str, Any]]:
    """The envelopes in the tags, by name of the view."""
    tags = store.client().get_experiment(experiment).tags
    envelopes = [
        json.loads(value)
        for key, value in tags.items()
        if key.startswith("mlflow.sharedViewState.")
    ]
    return {envelope["name"]: envelope for envelope in envelopes}


def test_columns_are_objective_params_of_the_method_first_status_modalities_and_other_tags() -> (
    None
):
    assert COLUMNS == [
        "metrics.`best/val/loss`",
        "params.`method.rho`",
        "params.`optim.lr`",
        "tags.`status`",
        "metrics.`best/val/loss/audio`",
        "metrics.`best/val/loss/text`",
        "tags.`seed`",
        "tags.`data_kind`",
        "tags.`search`",
    ]


@pytest.mark.parametrize(("mode", "ascending"), [("min", True), ("max", False)])
def test_the_best_trial_is_on_top(mode: str, ascending: bool) -> None:
    found = views.views(COLUMNS, mode)["trials"]
    assert (found["orderByKey"], found["orderByAsc"]) == ("metrics.`best/val/loss`", ascending)


def test_only_long_names_get_a_width_of_their_own() -> None:
    widths = views.views(COLUMNS, "min")["searches"]["columnWidths"]
    assert "tags.`seed`" not in widths
    assert (
        widths["metrics.`best/val/loss/audio`"]
        == views.PIXELS * len("best/val/loss/audio") + views.MARGIN
    )


def test_views_are_kept_as_tags_that_hold_their_state_as_text(store: Store) -> None:
    experiment = store.experiment("kept")
    views.save(store, experiment, views.views(COLUMNS, "min"))
    found = saved(store, experiment)
    assert set(found) == {"searches", "trials"}
    assert {name: json.loads(envelope["state"]) for name, envelope in found.items()} == views.views(
        COLUMNS, "min"
    )
    assert all(envelope["createdAt"] == envelope["updatedAt"] for envelope in found.values())


def test_a_later_search_replaces_them_unless_a_user_has_saved_them_anew(store: Store) -> None:
    experiment = store.experiment("later")
    views.save(store, experiment, views.views(COLUMNS, "min"))
    own = {
        **saved(store, experiment)["trials"],
        "updatedAt": 1,
        "state": json.dumps({"searchFilter": "mine"}),
    }
    store.client().set_experiment_tag(
        experiment, "mlflow.sharedViewState.tune_mm_trials", json.dumps(own)
    )
    views.save(store, experiment, views.views(COLUMNS[:1], "min"))
    assert saved(store, experiment)["trials"] == own
    assert (
        json.loads(saved(store, experiment)["searches"]["state"])["selectedColumns"] == COLUMNS[:1]
    )


def test_views_that_no_tag_can_hold_or_nobody_can_read_are_left_alone(store: Store) -> None:
    experiment = store.experiment("odd")
    views.save(
        store, experiment, views.views([f"params.`{'x' * 200}{i}`" for i in range(20)], "min")
    )
    assert saved(store, experiment) == {}
    store.client().set_experiment_tag(
        experiment, "mlflow.sharedViewState.tune_mm_searches", "no json"
    )
    views.save(store, experiment, views.views(COLUMNS, "min"))
    assert (
        store.client().get_experiment(experiment).tags["mlflow.sharedViewState.tune_mm_searches"]
        == "no json"
    )


def test_an_experiment_that_is_gone_stops_nobody(store: Store) -> None:
    experiment = store.experiment("gone")
    store.client().delete_experiment(experiment)
    views.save(store, experiment, views.views(COLUMNS, "min"))
    assert saved(store, experiment) == {}


def test_the_view_of_trials_leaves_out_parents_baselines_and_finals(store: Store) -> None:
    with Writer(store, "filtered", search="first") as writer:
        parent = writer.start("first", tags={"stage": "search"}, key="search")
        for stage, number in (("search", 0), ("search", 1), ("baseline", 0), ("final", 0)):
            writer.start(f"{stage} {number}", tags={"stage": stage, "trial": number}, parent=parent)
    condition = views.views(COLUMNS, "min")["trials"]["searchFilter"]
    runs: list[Run] = store.client().search_runs([store.experiment("filtered")], condition)
    assert sorted(str(run.info.run_name) for run in runs) == ["search 0", "search 1"]
