"""The sections of a search space file as written, strict and frozen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tune_mm.config import Section
from tune_mm.tune.space.domains import SearcherName


def whole_above_one(gpus: float) -> float:
    """Ray's rule: a part of one GPU, or whole ones. Raises ValueError."""
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("must be a whole number where it is above 1")
    return gpus


def named(value: Any) -> Any:
    """A section written as its name alone (`scheduler: asha`)."""
    if isinstance(value, str):
        return {"name": value}
    return value


class SearcherSpec(Section):
    """What proposes settings."""

    name: SearcherName = "tpe"
    # Trials drawn at random before the model is trusted (nsgaii: the population).
    startup: int = Field(10, ge=1)


class SchedulerSpec(Section):
    """What stops trials early.

    Its time is passes over the training data, so that trials are compared at equal cost. A pass is
    an epoch, unless the method makes more of them.
    """

    name: Literal["asha", "hyperband", "median", "pbt", "none"] = "asha"
    # A trial's full budget; null: the config's train.epochs.
    epochs: int | None = Field(None, ge=1)
    # Passes before a trial may be stopped (pbt: between exploits); below 1: a share of the epochs.
    grace: float = Field(0.2, gt=0)
    # asha and hyperband keep one trial in so many at each rung.
    reduction: float = Field(3, gt=1)
    # Stop no trial before a step schedule's last drop of the learning rate: until then those that
    # gain most from it look worse than they end.
    after_drop: bool = True


class ResourceSpec(Section):
    """What one trial takes."""

    cpus: float = Field(1, gt=0)
    # A fraction: several trials share a GPU, each with that part of its memory. auto: as many as
    # fit by the measured memory of one; without a GPU they train on the CPU.
    gpus: Annotated[float, Field(ge=0), AfterValidator(whole_above_one)] | Literal["auto"] = "auto"


class FinalSpec(Section):
    """What is rerun to the config's full budget over several seeds."""

    # How many of the best settings; 0: none; all: every point of a grid, and nothing is tuned.
    top: Annotated[int, Field(ge=0)] | Literal["all"] = 1
    seeds: int = Field(3, ge=1)
    # The space that the gain is stated over, tuned alike.
    baseline: str | None = None
    # null: as many as the search.
    baseline_trials: int | None = Field(None, ge=1)
    # null: the config's train.epochs.
    epochs: int | None = Field(None, ge=1)


class SpaceSpec(Section):
    """The file as written."""

    config: str = Field(min_length=1)  # a file or a name in configs/
    method: str | None = None  # null: the config's
    objective: str  # val/<metric>[/<modality>]
    set: dict[str, Any] = Field(default_factory=dict)  # what is fixed otherwise than in the config
    domains: dict[str, Any] = Field(min_length=1)  # what is searched (see domains.py)
    defaults: tuple[dict[str, Any], ...] = ()  # published settings, which run first
    trials: int | None = Field(None, ge=1)
    searcher: Annotated[SearcherSpec, BeforeValidator(named)] = SearcherSpec()
    scheduler: Annotated[SchedulerSpec, BeforeValidator(named)] = SchedulerSpec()
    resources: ResourceSpec = ResourceSpec()
    finals: FinalSpec = FinalSpec()
