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


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class SearcherSpec(Section):
    """startup: trials drawn at random before the model is trusted (nsgaii: the population)."""

    name: SearcherName = "tpe"
    startup: int = Field(10, ge=1)


class SchedulerSpec(Section):
    """What stops trials early. epochs: a trial's full budget (null: the config's train.epochs).

    grace: passes over the training data before a trial may be stopped (pbt: between exploits), a
    number below 1 is a share of the epochs. A pass is an epoch, unless the method makes more of
    them: trials are compared at equal cost. reduction: asha and hyperband keep one in so many at
    each rung. after_drop: under a step schedule, no trial is stopped before the last drop of the
    learning rate: until then those that gain most from it look worse than they end.
    """

    name: Literal["asha", "hyperband", "median", "pbt", "none"] = "asha"
    epochs: int | None = Field(None, ge=1)
    grace: float = Field(0.2, gt=0)
    reduction: float = Field(3, gt=1)
    after_drop: bool = True


class ResourceSpec(Section):
    """Of one trial. gpus may be a fraction: several trials then share a GPU, each with that part of
    its memory. auto: as many share one as fit by the measured memory of a trial; without a GPU they
    train on the CPU.
    """

    cpus: float = Field(1, gt=0)
    gpus: Annotated[float, Field(ge=0), AfterValidator(whole_above_one)] | Literal["auto"] = "auto"


class FinalSpec(Section):
    """What is rerun to the config's full budget over `seeds` seeds: the best `top` settings, and
    the best of the space `baseline`, tuned with as many trials (or `baseline_trials`). top 0:
    nothing. top all: every point of a grid, and nothing is tuned (an ablation).
    """

    top: Annotated[int, Field(ge=0)] | Literal["all"] = 1
    seeds: int = Field(3, ge=1)
    baseline: str | None = None
    baseline_trials: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)


class SpaceSpec(Section):
    """The file as written."""

    config: str = Field(min_length=1)
    method: str | None = None
    objective: str
    set: dict[str, Any] = Field(default_factory=dict)
    domains: dict[str, Any] = Field(min_length=1)
    defaults: tuple[dict[str, Any], ...] = ()
    trials: int | None = Field(None, ge=1)
    searcher: Annotated[SearcherSpec, BeforeValidator(_named)] = SearcherSpec()
    scheduler: Annotated[SchedulerSpec, BeforeValidator(_named)] = SchedulerSpec()
    resources: ResourceSpec = ResourceSpec()
    finals: FinalSpec = FinalSpec()
