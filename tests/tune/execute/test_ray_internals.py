"""The undocumented parts of Ray that `_ray_internals` uses are what it takes them for."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray.tune.execution import tune_controller
from ray.tune.execution.tune_controller import TuneController

from tune_mm.tune.execute import _ray_internals


def test_a_silenced_worker_reaches_no_handler() -> None:
    """Ray registers its printer by this name when it is initialised."""
    seen: list[Any] = []
    global_worker_stdstream_dispatcher.add_handler("ray_print_logs", seen.append)
    _ray_internals.silence_workers()
    global_worker_stdstream_dispatcher.emit({"lines": ["a worker died"]})
    assert seen == []


def test_the_controller_holds_what_the_patch_reads() -> None:
    """The attributes are set by name in the classes' own code."""
    controller = inspect.getsource(TuneController.__init__)
    assert "self._trial_to_actor" in controller
    assert "self._started_actors" in controller
    manager = inspect.getsource(tune_controller.RayActorManager.__init__)  # type: ignore[attr-defined]
    assert "self._live_actors_to_ray_actors_resources" in manager


@pytest.mark.parametrize(
    ("resources", "started", "reused"),
    [
        pytest.param({"actor"}, set(), False, id="on its way: keeps its own"),
        pytest.param({"actor"}, {"actor"}, True, id="running"),
        pytest.param(set(), set(), True, id="still waits for resources"),
    ],
)
def test_only_a_trial_whose_actor_starts_refuses_a_free_one(
    monkeypatch: pytest.MonkeyPatch, resources: set[str], started: set[str], reused: bool
) -> None:
    monkeypatch.setattr(TuneController, "_maybe_reuse_cached_actor", lambda self, trial: True)
    _ray_internals.keep_starting_actors()
    _ray_internals.keep_starting_actors()
    controller: Any = SimpleNamespace(
        _trial_to_actor={"trial": "actor"},
        _started_actors=started,
        _actor_manager=SimpleNamespace(_live_actors_to_ray_actors_resources=resources),
    )
    trial: Any = "trial"
    assert TuneController._maybe_reuse_cached_actor(controller, trial) is reused
