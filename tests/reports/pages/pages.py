"""What tests of pages share: what a reader sees of a page, and stores with one search of any shape."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.reports import sample_runs
from tune_mm.reports.runs.store import Reader
from tune_mm.track import Store, Writer

EVIL = "<script>alert('x')</script>"
RHO = {"kind": "uniform", "args": [1.0, 1.5]}


class Page(HTMLParser):
    """What a reader sees: text, rows of the tables (with the marked ones), and what the page would
    load.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.marked: list[list[str]] = []
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.policies: list[str | None] = []
        self._inside: list[str] = []
        self._mark = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "srcset", "action")]
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policies.append(dict(attrs)["content"])
        self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
            self._mark = ("class", "best") in attrs
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass
        if tag == "tr" and self._mark:
            self.marked.append(self.rows[-1])

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            self.scripts[-1] += data
        elif "style" not in self._inside:
            self.words.append(data)
            if {"td", "th"} & set(self._inside):
                self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def column(self, heading: str, table: str) -> list[str]:
        """The cells under a heading of the table that has the heading `table`."""
        starts = [i for i, row in enumerate(self.rows) if table in row and heading in row]
        head = self.rows[starts[0]]
        rest = self.rows[starts[0] + 1 :]
        end = next((i for i, row in enumerate(rest) if len(row) != len(head)), len(rest))
        return [row[head.index(heading)] for row in rest[:end]]


def make(
    root: Path,
    trials: Sequence[Mapping[str, Any]],
    *,
    name: str = "toy-1",
    uid: str = "toy-1-0000",
    **files: str,
) -> Reader:
    """A store with one search of the space `toy`. A trial: params, curve (the objective), status,
    tags, metrics.

    files: artifacts of the parent run, by name without `.json`.
    """
    store = Store.open(f"sqlite:///{root}/mlruns/mlflow.db", root)
    with Writer(store, "toy", search=uid) as writer:
        tags = {
            "stage": "search",
            "search": name,
            "objective": "val/accuracy",
            "data_kind": "synthetic",
            "seed": 0,
        }
        parent = writer.start(name, {"method": "cggm"}, tags, key="search")
        for file, text in files.items():
            writer.artifact(parent, text, f"{file}.json")
        for number, trial in enumerate(trials):
            stage = trial.get("stage", "search")
            own = {
                **tags,
                "method": "cggm",
                "stage": stage,
                "trial": number,
                **trial.get("tags", {}),
            }
            run = writer.start(
                f"{stage} {number}", trial["params"], own, parent=parent, key=f"{stage}/{number}"
            )
            for epoch, value in enumerate(trial.get("curve", []), start=1):
                values = {
                    "objective": value,
                    "val/accuracy": value,
                    "val/accuracy/audio": value / 2,
                }
                writer.log(run, {**values, **trial.get("epoch", {})}, epoch)
            writer.log(run, trial.get("metrics", {}), len(trial.get("curve", [])))
            writer.finish(run, trial.get("status", "completed"), trial.get("reason", ""))
        writer.finish(parent, "completed")
    return Reader.open(store.uri, root)


def space(**domains: Mapping[str, Any]) -> str:
    """A space.json. Keys: dots as underscores."""
    stated = {k.replace("_", ".", 1): v for k, v in domains.items()}
    return json.dumps({"objective": "val/accuracy", "mode": "max", "domains": {"search": stated}})


def objective(number: int) -> float:
    """The best objective of a trial of the unfinished search: that of its last epoch."""
    alpha, _, epochs, _ = sample_runs.TRIALS[number]
    return (0.77 - 0.02 * abs(alpha - 3)) * epochs / sample_runs.EPOCHS
