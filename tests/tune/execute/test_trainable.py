"""The trainable around core's Run: nothing is lost in a checkpoint, mistakes are results, workers'
deaths are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import support
from tests.tune.toy import Toy
from tune_mm.config import with_overrides
from tune_mm.core.artifacts import BEST
from tune_mm.core.run import Run
from tune_mm.tune.execute.trainable import STATE, Runnable, RunTrainable, TrialJob

TRIAL = {"number": 0, "values": {}, "checkpoint": None}


def real(values: Mapping[str, Any], epochs: int = 4) -> Runnable:
    config = support.config("cggm", {"train.epochs": epochs})
    return Run(with_overrides(config, values), support.dataset())


def toy(values: Mapping[str, Any]) -> Runnable:
    return Toy(with_overrides(support.config("joint", {"train.epochs": 4}), values))


def trainable(
    build: Any, values: Mapping[str, Any] | None = None, checkpoint: Path | None = None, **job: Any
) -> RunTrainable:
    config = {
        "number": 0,
        "values": dict(values or {}),
        "checkpoint": checkpoint and str(checkpoint),
    }
    out = RunTrainable.__new__(RunTrainable)
    out.setup(config, job=TrialJob(build, **{"epochs": 4, "save_every": 1e9, **job}))
    return out


def without_time(result: dict[str, Any]) -> dict[str, Any]:
    """A step's result without what the clock decides."""
    kept = {k: v for k, v in result.items() if k != "seconds"}
    for group in ("metrics", "best_metrics"):
        kept[group] = {k: v for k, v in result[group].items() if not k.startswith("time/")}
    return kept


def test_a_run_of_the_core_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    whole, first = trainable(real), trainable(real)
    for _ in range(2):
        assert without_time(whole.step()) == without_time(first.step())
    first.save_checkpoint(str(tmp_path))
    resumed = trainable(real, checkpoint=tmp_path)
    recovered = trainable(real)  # as Ray does it after a worker's death
    recovered.load_checkpoint(str(tmp_path))
    for _ in range(2):
        expected = without_time(whole.step())
        assert without_time(resumed.step()) == expected
        assert without_time(recovered.step()) == expected
    assert expected["done"]
    assert expected["finished"]
    assert expected["training_iteration"] == 4


def test_a_reused_actor_starts_clean() -> None:
    fresh, used = trainable(real, {"method.rho": 1.1}), trainable(real)
    used.step()
    assert used.reset_config({**TRIAL, "values": {"method.rho": 1.1}})
    for _ in range(4):
        assert without_time(fresh.step()) == without_time(used.step())


def test_the_test_split_is_looked_at_once_and_in_finals_only(tmp_path: Path) -> None:
    search, final = trainable(toy), trainable(toy, test=True)
    assert all("test" not in search.step() for _ in range(4))
    steps = []
    for _ in range(4):
        steps.append(final.step())
        final.save_checkpoint(str(tmp_path))
        assert (tmp_path / BEST).exists() == steps[-1]["done"]  # written once, at the end
    assert ["test" in s for s in steps] == [False, False, False, True]
    assert torch.load(tmp_path / BEST, weights_only=True).keys() == {"weight"}
    again = trainable(
        toy, test=True, checkpoint=tmp_path
    ).step()  # killed between the checkpoint and the report
    assert again["test"] == steps[-1]["test"]
    assert again["training_iteration"] == 4


def test_checkpoints_come_at_an_interval_and_never_after_the_end() -> None:
    often, seldom = trainable(toy, save_every=0.0), trainable(toy, save_every=1e9)
    assert [bool(often.step().get("should_checkpoint")) for _ in range(4)] == [
        True,
        True,
        True,
        False,
    ]
    assert not any(seldom.step().get("should_checkpoint") for _ in range(4))


def test_mistakes_are_results_with_a_reason() -> None:
    refused = trainable(real, {"optim.lr": -1.0}).step()
    assert refused["failure"].startswith("ConfigError: optim.lr: must be > 0, got -1.0")
    assert refused["done"]
    raised = trainable(toy, {"optim.weight_decay": 2.0})
    assert "failure" not in raised.step()
    assert raised.step()["failure"].startswith(
        "ValueError: a setting that the model refuses (toy.py line "
    )
    assert "failure" in raised.step()
    raised.reset_config(TRIAL)
    assert "failure" not in raised.step()


def test_a_diverged_run_is_told_as_such() -> None:
    run = trainable(toy, {"optim.weight_decay": 1.0})
    assert not run.step()["diverged"]
    last = run.step()
    assert (last["diverged"], last["done"]) == (True, True)
    assert last["objective"] == pytest.approx(0.5)


def test_running_out_of_memory_is_left_to_ray() -> None:
    def build(values: Mapping[str, Any], where: str) -> Runnable:
        if where == "build":
            raise torch.OutOfMemoryError("out of memory")
        run = toy(values)
        run.epoch = _full  # type: ignore[method-assign]
        return run

    for where in ("build", "step"):
        with pytest.raises(torch.OutOfMemoryError):
            trainable(partial(build, where=where)).step()


def _full() -> Any:
    raise torch.OutOfMemoryError("out of memory")


def test_a_checkpoint_holds_plain_values_only(tmp_path: Path) -> None:
    run = trainable(real)
    run.step()
    run.save_checkpoint(str(tmp_path))
    assert set(torch.load(tmp_path / STATE, weights_only=True)) == {"run", "own"}


def test_passes_that_a_method_makes_beside_its_epochs_go_on_after_a_checkpoint(
    tmp_path: Path,
) -> None:
    """G-Blending after epoch 1 of 4: 4 copies by 2 epochs, and 4 losses measured over train before
    and after.
    """

    def build(values: Mapping[str, Any]) -> Runnable:
        settings = {"mode": "offline", "super_epoch": 0.5}
        return Run(support.config("g_blending", {"train.epochs": 4}, **settings), support.dataset())

    first = trainable(build)
    told = first.step()
    assert (told["training_iteration"], told["passes"], told["spent"]) == (1, 17.0, [17.0])
    first.save_checkpoint(str(tmp_path))
    told = trainable(build, checkpoint=tmp_path).step()
    assert (told["training_iteration"], told["passes"], told["spent"]) == (2, 18.0, [17.0, 18.0])
    plain = trainable(real).step()
    assert plain["passes"] == 1.0
    assert "spent" not in plain
