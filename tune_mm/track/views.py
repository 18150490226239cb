"""Saved views of MLflow's runs page: searches, and trials best first, with the columns that they
are compared by.

Of its own accord MLflow shows the time and the source, and a run here has some 180 columns to pick
from. Its pages keep saved views as tags of the experiment, in the form that is written here (MLflow
3.17); a version that does not know them shows none.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tune_mm.track import limits
from tune_mm.track.store import FAILURES, Store

PREFIX = "mlflow.sharedViewState.tune_mm_"
TAGS = ("status", "seed", "data_kind", "search")
# A parent run bears its search's stage too, but no number: in a plot it would be one line more,
# through "unknown".
TRIALS = "tags.stage = 'search' and tags.trial LIKE '%'"
NARROW = 11  # characters of a name that fit into a column of MLflow's own width
PIXELS = 7  # of a character
MARGIN = 36  # pixels beside it, the sign of sorting among them


def columns(objective: str, modalities: Iterable[str], params: Iterable[str]) -> list[str]:
    """MLflow's names of the columns, left to right: the objective at the best epoch, params,
    status, the objective by modality, other tags. What one compares first is to be seen without
    scrolling.

    objective: `val/<metric>`. params: keys of what is searched; the method's come first.
    """
    ordered = sorted(params, key=lambda key: not key.startswith("method."))
    alone = [f"best/{objective}/{m}" for m in modalities]
    groups = (
        ("metrics", [f"best/{objective}"]),
        ("params", ordered),
        ("tags", TAGS[:1]),
        ("metrics", alone),
        ("tags", TAGS[1:]),
    )
    return [f"{group}.`{limits.name(key)}`" for group, keys in groups for key in keys]


def views(shown: Sequence[str], mode: str) -> dict[str, dict[str, Any]]:
    """What the runs page is to show, by name of the view, with the columns `shown`. mode: min or
    max.

    searches: parent runs, newest first, to be unfolded. trials: those of searches by the first
    column, the best on top.
    """
    names = {column: column.split("`")[1] for column in shown}
    widths = {}
    for column, name in names.items():
        if len(name) > NARROW:
            widths[column] = PIXELS * len(name) + MARGIN
    look = {"selectedColumns": list(shown), "columnOrder": list(shown), "columnWidths": widths}
    return {
        "searches": {
            **look,
            "searchFilter": "",
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
        },
        "trials": {
            **look,
            "searchFilter": TRIALS,
            "orderByKey": shown[0],
            "orderByAsc": mode == "min",
        },
    }


def save(store: Store, experiment_id: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Offer `views` in the experiment, in place of an earlier search's; one that a user has changed
    stays as it is.

    A store that refuses them is left alone: a search does not depend on its looks.
    """
    client = store.client()
    with contextlib.suppress(*FAILURES):
        there = client.get_experiment(experiment_id).tags
        for name, state in found.items():
            now = time.time_ns() // 1_000_000
            text = json.dumps(
                {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
            )
            if len(text) <= limits.TAG and not _changed(there.get(PREFIX + name)):
                client.set_experiment_tag(experiment_id, PREFIX + name, text)


def _changed(there: str | None) -> bool:
    """Whether a view was saved anew in the UI ("Override saved view"), which keeps the time of its
    creation.
    """
    if there is None:
        return False
    view = json.loads(
        there
    )  # a ValueError is among FAILURES: what cannot be read is not ours to replace
    return bool(view.get("updatedAt") != view.get("createdAt"))
