"""What is decided before anything starts, and what a search may not change when it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tune.conftest import TOY
from tune_mm.errors import UserError
from tune_mm.tune.plan import plan as plans
from tune_mm.tune.plan.plan import Options, Plan


def write(root: Path, text: str = TOY, name: str = "toy") -> str:
    path = root / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def resolve(root: Path, space: str | None = None, **options: Any) -> Plan:
    return plans.resolve(Options(root=root, space=space, **options))


def begun(root: Path, **options: Any) -> Plan:
    """A search whose record is written, as after its start."""
    plan = resolve(root, write(root), **options)
    plan.save(closed=False)
    return plan


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        resolve(root, **options)
    return str(caught.value)


def test_flags_come_before_the_space_file_and_that_before_the_config(tmp_path: Path) -> None:
    space = write(tmp_path)
    plan = resolve(tmp_path, space)
    assert (plan.trials, plan.epochs, plan.final_epochs, plan.seed, plan.cpus, plan.gpus) == (
        6,
        9,
        30,
        0,
        1,
        "auto",
    )
    plan = resolve(
        tmp_path,
        space,
        trials=4,
        epochs=3,
        seed=5,
        cpus=0.5,
        gpus=0.25,
        overrides={"train.epochs": 7},
    )
    assert (plan.trials, plan.epochs, plan.final_epochs, plan.seed, plan.cpus, plan.gpus) == (
        4,
        3,
        3,
        5,
        0.5,
        0.25,
    )
    assert resolve(tmp_path, space, overrides={"train.epochs": 7}).epochs == 7
    assert plan.final_seeds == (6, 7, 8), "no final run has the seed that the search chose by"


def test_names_are_counted_and_never_taken_twice(tmp_path: Path) -> None:
    assert begun(tmp_path).name == "toy-1"
    assert begun(tmp_path).name == "toy-2"
    assert begun(tmp_path, name="mine").name == "mine"
    message = refused(tmp_path, space=write(tmp_path), name="mine")
    assert "a search 'mine' exists already" in message
    assert "--resume" in message
    assert "must be letters" in refused(tmp_path, space=write(tmp_path), name="../mine")


def test_another_process_that_began_meanwhile_wins(tmp_path: Path) -> None:
    first, second = (resolve(tmp_path, write(tmp_path), name="mine") for _ in range(2))
    plans.still_free(first)
    first.save(closed=False)
    with pytest.raises(UserError, match="begun by another process"):
        plans.still_free(second)


def test_resume_finds_the_latest_search_of_a_space_and_keeps_what_it_began_with(
    tmp_path: Path,
) -> None:
    begun(tmp_path, trials=3)
    last = begun(tmp_path, trials=5, epochs=4, seed=2, overrides={"optim.weight_decay": 0.1})
    for options in ({"space": write(tmp_path)}, {"name": "toy-2"}):
        plan = resolve(tmp_path, resume=True, **options)
        assert (plan.name, plan.uid, plan.trials, plan.epochs, plan.seed) == (
            last.name,
            last.uid,
            5,
            4,
            2,
        )
        assert plan.space.base == last.space.base
        assert plan.resumed
    assert resolve(tmp_path, name="toy-1", extend=4).trials == 7


def test_a_moved_space_file_does_not_matter_but_a_changed_one_does(tmp_path: Path) -> None:
    begun(tmp_path)
    write(
        tmp_path,
        TOY.replace("1e-1]", "1e-2]").replace("trials: 6", "trials: 7\nresources: {cpus: 2}"),
    )
    message = refused(tmp_path, name="toy-1", resume=True)
    assert "domains.optim.lr.loguniform: the space file has changed since" in message
    assert "was [1e-05, 0.1], is [1e-05, 0.01]" in message
    assert "trials: the space file" in message
    assert "resources.cpus: the space file" in message
    (tmp_path / "toy.yaml").unlink()
    assert resolve(tmp_path, name="toy-1", resume=True).trials == 6


def test_other_settings_than_the_search_began_with_are_refused(tmp_path: Path) -> None:
    begun(tmp_path, seed=1)
    message = refused(
        tmp_path, name="toy-1", resume=True, trials=9, seed=2, overrides={"optim.clip": 1.0}
    )
    assert message.splitlines()[0] == "toy-1 cannot go on as it began:"
    assert "--trials: the search has 6, got 9; --extend N adds trials" in message
    assert "--seed: the search has 1, got 2" in message
    assert "--set: the search has {}, got {'optim.clip': 1.0}" in message
    assert (
        resolve(tmp_path, name="toy-1", resume=True, trials=6, seed=1, cpus=2, time_budget=60).cpus
        == 2
    )


def test_what_cannot_be_found_is_named(tmp_path: Path) -> None:
    assert "--space NAME or PATH is needed" in refused(tmp_path)
    assert "no search 'toy-9'" in refused(tmp_path, name="toy-9", resume=True)
    begun(tmp_path)
    assert "nearest 'toy-1'; there are: toy-1" in refused(tmp_path, name="toy-9", resume=True)
    assert "no search of the space 'other'" in refused(
        tmp_path, space=write(tmp_path, name="other"), resume=True
    )
    assert "need --space NAME (its latest search) or --name NAME" in refused(tmp_path, extend=3)
    assert "no such name 'cggm_iemocp'; nearest 'cggm_iemocap'" in refused(
        tmp_path, space="cggm_iemocp"
    )


def test_a_grid_has_its_own_number_of_trials(tmp_path: Path) -> None:
    text = TOY.replace("{loguniform: [1e-5, 1e-1]}", "{grid: [1e-3, 1e-2, 1e-1]}").replace(
        "{name: tpe, startup: 4}", "grid"
    )
    assert resolve(tmp_path, write(tmp_path, text)).trials == 3
    assert resolve(tmp_path, write(tmp_path, text), trials=2).trials == 2
    plan = resolve(tmp_path, write(tmp_path, text))
    plan.save(closed=True)
    assert "has 3 points and no more" in refused(tmp_path, name=plan.name, extend=1)
    assert "a grid needs choice, grid, randint or quniform" in refused(
        tmp_path, space=write(tmp_path, TOY.replace("{name: tpe, startup: 4}", "grid"))
    )


def test_the_baseline_has_as_many_trials_and_the_same_ground(tmp_path: Path) -> None:
    plan = resolve(
        tmp_path, "cggm_iemocap", trials=7, overrides={"method.rho": 1.1, "train.batch_size": 32}
    )
    assert plan.baseline is not None
    assert (plan.baseline.name, plan.baseline_trials) == ("joint_iemocap", 7)
    assert plan.baseline.base.train.batch_size == 32
    assert plans.unlike(plan) == []
    plan.save(closed=True)
    assert resolve(tmp_path, name=plan.name, extend=3).baseline_trials == 10
    other = write(tmp_path, TOY.replace("{top: 0}", "{baseline: joint_mosi}"))
    assert "finals.baseline: config must be the space's own, 'iemocap', got 'mosi'" in refused(
        tmp_path, space=other
    )


def test_an_ablation_runs_its_whole_grid_and_tunes_nothing(tmp_path: Path) -> None:
    text = TOY.replace("{loguniform: [1e-5, 1e-1]}", "{grid: [1e-3, 1e-2, 1e-1]}").replace(
        "{top: 0}", "{top: all}"
    )
    space = write(tmp_path, text.replace("{name: tpe, startup: 4}", "grid"))
    plan = resolve(tmp_path, space)
    assert (plan.trials, plan.baseline, plan.space.exhaustive) == (0, None, True)
    assert "runs all points of its grid over the seeds" in refused(tmp_path, space=space, trials=2)
    plan.save(closed=True)
    assert "runs all points of its grid, there are no more" in refused(
        tmp_path, name=plan.name, extend=1
    )
    assert resolve(tmp_path, name=plan.name, resume=True).space.exhaustive
