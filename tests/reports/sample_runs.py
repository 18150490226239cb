"""A small store of runs whose every value follows from a formula: written with the real writer into
real MLflow.

Of a run with seed s (1, 2, 3) in a cell of number i (its place in `cells`) and base value b, in a
search whose values lie `offset` higher, with the m-th (from 0) modality and the e-th (from 1) of
EPOCHS epochs:

    test/accuracy            final(b, i, s) + offset,   final = b + 0.01 s + 0.002 ((s + i) mod 3)
                             so its mean over the three seeds is b + 0.022 + offset, whatever i
    test/accuracy/<m>        test/accuracy - 0.1 (m + 1)
    best/val/...             as test/...
    val/accuracy[/<m>]       (best/val/accuracy[/<m>]) e / EPOCHS;   val/loss = 2 - val/accuracy;   objective: as val
    train/loss               2 / e;   train/loss/<m> = (m + 2) / e
    grad/norm/<m>            (m + 1) / e;   grad/norm_multi/<m> half of it;   grad/norm_uni/<m> twice
    grad/cos/<m>             0.1 (m + 1) - 0.02 e
    grad/suppression/<m>     1 + 0.1 (m + 1) e
    balance/<m>              1 / (m + 1) + 0.1 e      (CGGM's runs only)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tune_mm.config import Config, dump_config, flatten, load_config, with_overrides
from tune_mm.track import RunHandle, Store, Writer
from tune_mm.track.tags import tags_for

EPOCHS = 5
SEEDS = (1, 2, 3)
AUDIO_VISUAL = ("audio", "visual")
SENSORS = ("inertial", "skeleton", "depth")


@dataclass(frozen=True)
class Cell:
    """One setting: base value b, and what it overrides ("method.alpha=2.0")."""

    base: float
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """A search of final runs. config: a protocol in configs/; baseline: cells of its tuned
    baseline.
    """

    name: str
    uid: str
    space: str
    config: str
    modalities: tuple[str, ...]
    cells: tuple[Cell, ...]
    kind: str = "real"
    offset: float = 0.0
    baseline: tuple[Cell, ...] = ()
    nan: frozenset[tuple[int, int]] = field(
        default_factory=frozenset
    )  # (i, seed) whose metrics are NaN from epoch 3 on


def _truncation(multimodal: str, unimodal: str, alpha: float, base: float) -> Cell:
    keys = ("truncate_multimodal", "truncate_unimodal", "alpha")
    values = zip(keys, (multimodal, unimodal, alpha), strict=True)
    return Cell(base, ("method=dgl", *(f"method.{k}={v}" for k, v in values)))


def _cggm(base: float, **values: object) -> Cell:
    return Cell(
        base,
        ("method=cggm", "method.variant=stable", *(f"method.{k}={v}" for k, v in values.items())),
    )


TRUNCATION = (
    _truncation("false", "false", 0.0, 0.65),
    _truncation("true", "false", 4.0, 0.70),
    _truncation("false", "true", 4.0, 0.72),
    _truncation("true", "true", 4.0, 0.75),
)
ALPHA = tuple(
    Cell(0.75 - 0.01 * abs(4 - a), ("method=dgl", f"method.alpha={a}.0")) for a in range(1, 6)
)
RHO = (
    _cggm(0.70, magnitude="false", lam=0.0),  # joint training
    *(
        _cggm(0.80 - 0.1 * abs(rho - 1.2), magnitude="true", lam=0.2, rho=rho)
        for rho in (0.9, 1.2, 1.5)
    ),
)
LAMBDA = (_cggm(0.60, magnitude="true", lam=0.01), _cggm(0.62, magnitude="true", lam=0.2))
JOINT = Cell(0.66, ())

OLDER = Search(
    "ablation_truncation-1",
    "ablation_truncation-1-0000aaaa",
    "ablation_truncation",
    "avdigits",
    AUDIO_VISUAL,
    TRUNCATION,
    offset=-0.1,
)
NEWER = Search(
    "ablation_truncation-2",
    "ablation_truncation-2-0000bbbb",
    "ablation_truncation",
    "avdigits",
    AUDIO_VISUAL,
    TRUNCATION,
)
ALPHAS = Search(
    "ablation_alpha-1",
    "ablation_alpha-1-0000cccc",
    "ablation_alpha",
    "avdigits",
    AUDIO_VISUAL,
    ALPHA,
)
RHOS = Search(
    "ablation_rho-1",
    "ablation_rho-1-0000dddd",
    "ablation_rho",
    "utd_mhad",
    SENSORS,
    RHO,
    baseline=(Cell(0.71, ()),),
)
LAMBDAS = Search(
    "ablation_lambda-1",
    "ablation_lambda-1-0000eeee",
    "ablation_lambda",
    "mosi",
    ("text", "audio", "visual"),
    LAMBDA,
    kind="synthetic",
    nan=frozenset({(1, 3)}),
)
UNFINISHED = Search(
    "dgl_avdigits-1",
    "dgl_avdigits-1-0000ffff",
    "dgl_avdigits",
    "avdigits",
    AUDIO_VISUAL,
    (Cell(0.77, ("method=dgl", "method.alpha=3.0")),),
)
# Of the unfinished search's trials 0 to 7: alpha, lr, epochs done, status.
TRIALS = (
    (4.0, 0.02, 5, "completed"),
    (1.0, 0.01, 1, "pruned"),
    (2.5, 0.05, 5, "completed"),
    (8.0, 0.2, 1, "pruned"),
    (3.0, 0.03, 5, "completed"),
    (6.0, 0.04, 3, "pruned"),
    (3.5, 0.5, 2, "failed"),
    (3.2, 0.025, 2, "running"),
)


def final(cell: Cell, number: int, seed: int, offset: float = 0.0) -> float:
    """test/accuracy and best/val/accuracy of a run."""
    return cell.base + 0.01 * seed + 0.002 * ((seed + number) % 3) + offset


def ended(value: float, modalities: Iterable[str]) -> dict[str, float]:
    """The metrics that a final run gets at its end: best/val/... and test/..."""
    alone = {f"accuracy/{m}": value - 0.1 * (k + 1) for k, m in enumerate(modalities)}
    return {
        f"{split}/{k}": v
        for split in ("best/val", "test")
        for k, v in {"accuracy": value, **alone}.items()
    }


def epoch(value: float, modalities: Iterable[str], e: int, cggm: bool) -> dict[str, float]:
    """The metrics of epoch e."""
    accuracy = value * e / EPOCHS
    out = {
        "objective": accuracy,
        "val/accuracy": accuracy,
        "val/loss": 2 - accuracy,
        "train/loss": 2 / e,
    }
    for k, m in enumerate(modalities):
        size = (k + 1) / e
        out |= {
            f"val/accuracy/{m}": (value - 0.1 * (k + 1)) * e / EPOCHS,
            f"train/loss/{m}": (k + 2) / e,
        }
        out |= {
            f"grad/norm/{m}": size,
            f"grad/norm_multi/{m}": size / 2,
            f"grad/norm_uni/{m}": 2 * size,
        }
        out |= {
            f"grad/cos/{m}": 0.1 * (k + 1) - 0.02 * e,
            f"grad/suppression/{m}": 1 + 0.1 * (k + 1) * e,
        }
        out |= {f"balance/{m}": 1 / (k + 1) + 0.1 * e} if cggm else {}
    return out


# ---- writing


def write(store: Store) -> None:
    """Write everything, oldest first: OLDER, NEWER, ALPHAS, RHOS, LAMBDAS, UNFINISHED, then joint
    runs of `train`.
    """
    for search in (OLDER, NEWER, ALPHAS, RHOS, LAMBDAS):
        with Writer(store, search.space, search=search.uid) as writer:
            write_search(writer, search)
    write_unfinished(store)
    write_train(store)


def write_search(writer: Writer, search: Search) -> None:
    """A finished search: its parent run and its final runs."""
    parent = start_parent(writer, search)
    groups = [("grid", "grid", search.cells), ("baseline", "baseline", search.baseline)]
    number = 0
    for role, source, cells in groups:
        for i, cell in enumerate(cells):
            for seed in SEEDS:
                facts = {"role": role, "source": f"{source}/{i}", "trial": number}
                start_final(
                    writer,
                    parent,
                    search,
                    cell,
                    seed,
                    facts,
                    final(cell, i, seed, search.offset),
                    nan=(i, seed) in search.nan,
                )
                number += 1
    writer.artifact(
        parent, json.dumps({"name": search.name, "status": "completed"}), "summary.json"
    )
    writer.finish(parent, "completed")


def start_parent(writer: Writer, search: Search) -> RunHandle:
    """The parent run of a search, open."""
    config = load_config(search.config, search.cells[0].overrides)
    tags = {**tags_for(config, stage="search", data_kind=search.kind), "objective": "val/accuracy"}
    tags |= {"search": search.name, "space": search.space, "searcher": "grid"}
    facts = {
        "trials": len(TRIALS),
        "epochs": EPOCHS,
        "scheduler": "none",
        "method": config.method.name,
    }
    parent = writer.start(search.name, facts, tags, key="search")
    writer.artifact(parent, dump_config(config), "config.yaml")
    writer.artifact(parent, json.dumps({"name": search.config, "kind": search.kind}), "data.json")
    return parent


def start_final(
    writer: Writer,
    parent: RunHandle,
    search: Search,
    cell: Cell,
    seed: int,
    facts: Mapping[str, Any],
    value: float,
    nan: bool = False,
    finish: bool = True,
) -> None:
    """A final run; open after its first epoch unless `finish`."""
    config = loaded(search.config, cell, seed)
    tags = {
        **tags_for(config, stage="final", data_kind=search.kind),
        "search": search.name,
        **facts,
    }
    number = facts["trial"]
    run = writer.start(
        f"final {number}", params(config), tags, parent=parent, key=f"final/{number}"
    )
    for e in range(1, EPOCHS + 1 if finish else 2):
        found = epoch(value, search.modalities, e, config.method.name == "cggm")
        writer.log(run, dict.fromkeys(found, math.nan) if nan and e >= 3 else found, e)
    if finish:
        found = ended(value, search.modalities)
        writer.log(run, dict.fromkeys(found, math.nan) if nan else found, EPOCHS)
        writer.finish(run, "completed")


def loaded(protocol: str, cell: Cell, seed: int) -> Config:
    """The configuration of a run, as a search has it."""
    return with_overrides(_loaded(protocol, cell), {"seed": seed})


@cache
def _loaded(protocol: str, cell: Cell) -> Config:
    return load_config(
        protocol, (*cell.overrides, f"train.epochs={EPOCHS}", "train.monitor=val/accuracy")
    )


def params(config: Config) -> dict[str, Any]:
    """The params of a run; the encoder's and the front-ends' are left out, for speed."""
    kept = (
        "method.",
        "optim.",
        "train.",
        "model.fusion.name",
        "data.name",
        "data.folder",
        "name",
        "seed",
    )
    return {k: v for k, v in flatten(config).items() if k.startswith(kept)}


def write_unfinished(store: Store) -> None:
    """A search that goes on: trials of TRIALS, one final run done (seed 1), one running (seed 2);
    objective of a trial at its epoch e: final(0.77 - 0.02 |alpha - 3|, 0, 0) e / EPOCHS.

    The runs that are to stay open are told to MLflow again after the writer, which would mark them
    as stopped.
    """
    search = UNFINISHED
    with Writer(store, search.space, search=search.uid) as writer:
        parent = start_parent(writer, search)
        opened = [parent]
        for number, (alpha, lr, epochs, status) in enumerate(TRIALS):
            cell = Cell(
                0.77 - 0.02 * abs(alpha - 3),
                ("method=dgl", f"method.alpha={alpha}", f"optim.lr={lr}"),
            )
            config = loaded(search.config, cell, 0)
            tags = {
                **tags_for(config, stage="search", data_kind="real"),
                "search": search.name,
                "trial": number,
            }
            run = writer.start(
                f"search {number}", params(config), tags, parent=parent, key=f"search/{number}"
            )
            for e in range(1, epochs + 1):
                writer.log(run, epoch(final(cell, 0, 0), search.modalities, e, cggm=False), e)
            if status in ("completed", "pruned", "failed"):
                writer.finish(run, status)  # type: ignore[arg-type]
            else:
                opened.append(run)
        cell = search.cells[0]
        for number, seed in enumerate((1, 2)):
            facts = {"role": "tuned", "source": "search/4", "trial": number}
            start_final(
                writer, parent, search, cell, seed, facts, final(cell, 0, seed), finish=seed == 1
            )
    keep_open(store, search)


def keep_open(store: Store, search: Search) -> None:
    """Undo what closing the writer did to runs that go on."""
    client = store.client()
    runs = client.search_runs([store.experiment(search.space)], "tags.status = 'stopped'")
    for run in runs:
        client.set_tag(run.info.run_id, "status", "running")
        client.update_run(run.info.run_id, status="RUNNING")


def write_train(store: Store) -> None:
    """Three runs of `python -m tune_mm.train avdigits seed=s`: joint training, JOINT's values; and
    a run of others'.
    """
    with Writer(store, "avdigits") as writer:
        for seed in SEEDS:
            config = loaded("avdigits", JOINT, seed)
            tags = {
                **tags_for(config, stage="train", data_kind="real"),
                "objective": "val/accuracy",
            }
            run = writer.start(f"joint seed {seed}", params(config), tags, key=f"joint-{seed}")
            value = final(JOINT, 0, seed)
            for e in range(1, EPOCHS + 1):
                writer.log(run, epoch(value, AUDIO_VISUAL, e, cggm=False), e)
            writer.log(run, ended(value, AUDIO_VISUAL), EPOCHS)
            writer.finish(run, "completed")
    client = store.client()
    client.log_metric(
        client.create_run(store.experiment("somebody_elses")).info.run_id, "test/accuracy", 0.99
    )


def make(root: Path) -> Store:
    """A store below `root` with everything in it."""
    store = Store.open(f"sqlite:///{root}/mlruns/mlflow.db", root)
    write(store)
    return store
