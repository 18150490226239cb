"""Space files: every mistake at once, with file and line; what the shipped ones say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tune_mm.config import ConfigError, flatten, with_overrides
from tune_mm.tune.space import space as space_files
from tune_mm.tune.space.space import Space

GOOD = """config: iemocap
method: cggm
objective: val/accuracy
set: {method.variant: stable}
domains:
  method.rho: {uniform: [0.8, 2.0]}
  optim.lr: {loguniform: [1e-4, 3e-3]}
  optim.name: {choice: [adam, sgd]}
  optim.momentum: {uniform: [0, 0.99], when: {optim.name: sgd}}
defaults:
  - {method.rho: 1.3}
"""


def build(tmp_path: Path, text: str, **overrides: Any) -> Space:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return space_files.build("mine", space_files.read(str(path)), overrides)


def problems(tmp_path: Path, text: str, **overrides: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, text, **overrides)
    return caught.value.problems


@pytest.mark.parametrize("name", space_files.names())
def test_shipped_spaces_are_right(name: str) -> None:
    space = space_files.build(name, space_files.read(name), {})
    assert space.defaults or space.exhaustive, "published settings run first"
    for default in space.defaults:
        with_overrides(space.base, default)
    if space.spec.finals.baseline is not None:
        baseline = space_files.build("baseline", space_files.read(space.spec.finals.baseline), {})
        assert baseline.spec.config == space.spec.config
        assert baseline.spec.objective == space.spec.objective
    assert space_files.read(name).path.read_text().startswith("# ")


def test_a_default_is_filled_from_the_config_where_it_is_searched(tmp_path: Path) -> None:
    space = build(tmp_path, GOOD)
    assert space.defaults == ({"method.rho": 1.3, "optim.lr": 1e-3, "optim.name": "adam"},)
    assert space.base.method.name == "cggm"
    assert space.base.train.monitor == "val/accuracy"
    assert space.mode == "max"
    assert space.conditional


def test_every_mistake_is_reported_with_its_line(tmp_path: Path) -> None:
    text = GOOD.replace("val/accuracy", "test/accuracy").replace(
        "method.rho: {uniform: [0.8", "method.rho: {uniform: [-1"
    )
    text = text.replace("optim.lr: {loguniform: [1e-4", "optim.lr: {loguniform: [0").replace(
        "optim.name: sgd", "optim.nam: sgd"
    )
    found = "\n".join(problems(tmp_path, text + "  - {method.rho: 9, optim.lrr: 1}\n"))
    place = str(tmp_path / "mine.yaml")
    for message, line in (
        (
            "objective: must be a validation metric, val/..., got 'test/accuracy': the test split is never searched",
            3,
        ),
        ("domains.method.rho: must be >= 0, got -1", 6),
        ("domains.optim.lr: loguniform takes [low, high] with 0 < low < high, got [0, 0.003]", 7),
        ("domains.optim.momentum.when: no such key 'optim.nam'; nearest 'optim.name'", 9),
        ("defaults.1.method.rho: must lie in uniform [-1, 2], got 9", 12),
        ("defaults.1.optim.lrr: is not searched", 12),
    ):
        assert any(
            p.startswith(message) and p.endswith(f"({place} line {line})")
            for p in found.split("\n")
        ), (
            message,
            found,
        )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("config: iemocap", "config: iemocapp", "nearest 'iemocap'"),
        ("method: cggm", "method: cgm", "no 'cgm'; nearest 'cggm'"),
        ("val/accuracy", "val/acuracy", "no metric 'val/acuracy'; nearest 'val/accuracy'"),
        ("val/accuracy", "train/loss", "must be a validation metric"),
        (
            "set: {method.variant: stable}",
            "set: {method.varian: stable}",
            "method.varian: no such key; nearest 'method.variant'",
        ),
        (
            "method.rho: {uniform: [0.8, 2.0]}",
            "method.ro: {uniform: [0.8, 2.0]}",
            "nearest 'method.rho'",
        ),
        (
            "choice: [adam, sgd]",
            "choice: [adam, sgdd]",
            "must be one of sgd, adam, adamw, got 'sgdd'; nearest 'sgd'",
        ),
        (
            "defaults:",
            "searcher: tpee\ndefaults:",
            "searcher: must be one of tpe, random, cmaes, nsgaii, grid",
        ),
        (
            "optim.lr: {loguniform",
            "train.epochs: {randint: [1, 9]}\n  optim.lr: {loguniform",
            "the search sets it itself",
        ),
        ("defaults:", "schedular: asha\ndefaults:", "schedular: no such key; nearest 'scheduler'"),
        ("defaults:", "trials: 0\ndefaults:", "trials: must be >= 1, got 0"),
        (
            "defaults:",
            "scheduler: {name: asha, reduction: 1}\ndefaults:",
            "scheduler.reduction: must be > 1, got 1",
        ),
        (
            "when: {optim.name: sgd}",
            "when: {optim.momentum: 1}",
            "conditions go round in a circle: optim.momentum",
        ),
        ("domains:\n", "domains: {}\nx:\n", "domains: must have at least 1"),
    ],
)
def test_a_mistake_says_what_is_allowed(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in "\n".join(problems(tmp_path, GOOD.replace(old, new, 1)))


def test_what_is_set_on_the_command_line_is_no_longer_searched(tmp_path: Path) -> None:
    space = build(tmp_path, GOOD, **{"method.rho": 1.5})
    assert "method.rho" not in space.domains
    assert "method.rho" not in space.defaults[0]
    assert flatten(space.base)["method.rho"] == 1.5
    everything = {"method.rho": 1.5, "optim.lr": 1e-3, "optim.name": "sgd", "optim.momentum": 0.5}
    assert "nothing is left to search" in "\n".join(problems(tmp_path, GOOD, **everything))
    assert problems(tmp_path, GOOD, **{"method.rhoo": 1.5})[0].startswith(
        "method.rhoo: no such key; nearest 'method.rho'"
    )


def test_a_space_over_methods_checks_each_entry_under_its_condition(tmp_path: Path) -> None:
    text = """config: iemocap
objective: val/accuracy
domains:
  method: {choice: [dgl, cggm]}
  method.alpha: {uniform: [1, 5], when: {method: dgl}}
  method.rho: {uniform: [0.8, 2], when: {method: cggm}}
"""
    assert set(build(tmp_path, text).domains) == {"method", "method.alpha", "method.rho"}
    wrong = problems(
        tmp_path,
        text.replace(
            "method.rho: {uniform: [0.8, 2], when: {method: cggm}}",
            "method.rho: {uniform: [0.8, 2], when: {method: dgl}}",
        ),
    )
    assert "method.rho: no such key" in wrong[0]


def test_mistakes_of_form_and_of_meaning_come_together(tmp_path: Path) -> None:
    """A section that cannot be read hides nothing that is wrong in the others."""
    text = GOOD.replace("defaults:", "scheduler: ashaa\ndefaults:").replace(
        "rho: {uniform: [0.8", "rho: {uniform: [-1"
    )
    told = "\n".join(problems(tmp_path, text))
    assert "nearest 'asha'" in told
    assert "domains.method.rho: must be >= 0, got -1" in told


def test_data_may_name_a_whole_protocol(tmp_path: Path) -> None:
    """`--set data=utd_mhad` takes data, model, optimizer and schedule of that config, as `config:
    utd_mhad` would.
    """
    named = build(tmp_path, GOOD, data="utd_mhad")
    written = build(tmp_path, GOOD.replace("config: iemocap", "config: utd_mhad"))
    assert named.base == written.base
    assert named.spec.config == "utd_mhad"
    plugin = build(tmp_path, GOOD, data="npz")
    assert plugin.base.data.name == "npz"
    assert plugin.base.model == build(tmp_path, GOOD).base.model
    assert "data: no 'utd_mhadd'; nearest 'utd_mhad'; available: av_folder, avdigits" in "\n".join(
        problems(tmp_path, GOOD, data="utd_mhadd")
    )


def test_all_points_need_a_grid_and_no_baseline(tmp_path: Path) -> None:
    found = "\n".join(problems(tmp_path, GOOD + "finals: {top: all, baseline: joint_iemocap}\n"))
    assert "finals.top: 'all' needs searcher: grid, got searcher: tpe" in found
    assert "finals.baseline: must be left out with top: all" in found
    assert "finals.top: must be" in "\n".join(problems(tmp_path, GOOD + "finals: {top: every}\n"))


@pytest.mark.parametrize("gpus", ["auto", 0, 0.3, 2])
def test_gpus_are_parts_of_one_or_whole(tmp_path: Path, gpus: float | str) -> None:
    text = f"{GOOD}resources: {{gpus: {gpus}}}\n"
    assert build(tmp_path, text).spec.resources.gpus == gpus


def test_one_and_a_half_gpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resources\.gpus.*line 12"):
        build(tmp_path, f"{GOOD}resources: {{gpus: 1.5}}\n")
