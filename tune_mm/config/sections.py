"""The sections of a configuration: strict, frozen, and open for plug-ins to bring their own fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tune_mm import plugins

# Sections whose fields belong to the plug-in that they name, and the kind of that plug-in.
PLUGINS = {
    "data": "data",
    "data.audio": "frontends",
    "model.encoder": "encoders",
    "model.fusion": "fusions",
    "method": "methods",
}


class Section(BaseModel):
    """Base of every section. Values keep their type (an integer is fine for a float; nothing else
    is converted).

    Lists are tuples (`tuple[str, ...]`). NaN and infinity are refused. Plug-ins derive their
    `Config` from this and set `name: Literal["<file name>"] = "<file name>"`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def _span(value: int | float) -> int | float:
    if value < 0 or (isinstance(value, float) and value >= 1):
        raise ValueError(
            "must be epochs (an integer >= 0) or a fraction of all epochs (a number in [0, 1))"
        )
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", value):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return value


def _monitor(value: str) -> str:
    if value != "auto" and not value.startswith("val/"):
        raise ValueError("must be auto or a metric of the validation split, 'val/...'")
    return value


def _plugin(kind: str, value: Any) -> Any:
    """The plug-in's validated section for its name or its fields; instances pass."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        if isinstance(value, Section):
            return value
        raise PydanticCustomError(
            "section", f"must be the name of one of {kind}, or a mapping with it under 'name'"
        )
    if not isinstance(value.get("name"), str):
        known = ", ".join(plugins.available(kind))
        raise PydanticCustomError("section", f"needs 'name', one of {known}")
    try:
        plugin = plugins.load(kind, value["name"])
    except plugins.UnknownPlugin as error:
        raise PydanticCustomError("unknown_plugin", "{message}", {"message": str(error)}) from None
    return plugin.Config.model_validate(dict(value))


# The field `audio` of a data set's section: an audio front-end with its own fields.
AudioFrontend = Annotated[Any, BeforeValidator(partial(_plugin, "frontends"))]

# A span of epochs: an int counts them, a float in [0, 1) is a fraction of all epochs.
Span = Annotated[int | float, AfterValidator(_span)]
Unit = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """The optimizer. Float fields may differ between trials of one program. clip: max norm over all
    but `aux.*`.
    """

    name: Literal["sgd", "adam", "adamw"] = "adam"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: Unit = 0.9
    beta1: Unit = 0.9
    beta2: Unit = 0.999
    eps: float = Field(1e-8, gt=0)
    clip: float | None = Field(None, gt=0)


class ScheduleConfig(Section):
    """Factor on the learning rate, after a linear warm-up from `warmup_start`.

    per: whether it changes between epochs, or (warm-up and cosine) with each step of the optimizer.
    step: times `factor` at each milestone; plateau: times `factor` when the validation loss has not
    improved for `patience`; cosine: from 1 to `floor`; onecycle: the same, after a warm-up that is
    half a cosine too (torch's OneCycleLR).
    """

    name: Literal["constant", "step", "plateau", "cosine", "onecycle"] = "constant"
    per: Literal["epoch", "step"] = "epoch"
    warmup: Span = 0
    warmup_start: float = Field(0.1, ge=0, le=1)
    milestones: tuple[Span, ...] = ()
    factor: float = Field(0.1, gt=0, le=1)
    patience: Span = 10
    floor: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _step_has_milestones(self) -> ScheduleConfig:
        if self.name == "step" and not self.milestones:
            raise ValueError("name 'step' needs milestones, for example [0.7]")
        return self


class TrainConfig(Section):
    """The loop. monitor: the metric that names the best epoch (auto: val/accuracy or val/mae).

    gradient_vectors: training batches whose gradient vectors are kept at the end (gradients.npz,
    CGGM Fig. 4; 0: none).
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    eval_batch_size: int = Field(256, ge=1)
    amp: Literal["none", "bf16"] = "none"
    device: Annotated[str, AfterValidator(_device)] = "auto"
    monitor: Annotated[str, AfterValidator(_monitor)] = "auto"
    gradient_statistics: bool = True
    probe_size: int = Field(32, ge=1)
    gradient_vectors: int = Field(0, ge=0)


class ModelConfig(Section):
    """One encoder per modality, and what joins them. Both are sections of plug-ins."""

    encoder: Annotated[Any, BeforeValidator(partial(_plugin, "encoders"))]
    fusion: Annotated[Any, BeforeValidator(partial(_plugin, "fusions"))]


class Config(Section):
    """Everything that decides a run. `data` and `method` are sections of plug-ins, whose fields
    only those know.
    """

    name: str = Field(min_length=1)
    seed: int = Field(0, ge=0, lt=2**31)
    data: Annotated[Any, BeforeValidator(partial(_plugin, "data"))]
    model: ModelConfig
    method: Annotated[Any, BeforeValidator(partial(_plugin, "methods"))]
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig


def key_types(cls: type[BaseModel], raw: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a section's class with their annotations. `raw` names the plug-ins; unknown
    ones have none.
    """
    for name, info in cls.model_fields.items():
        key = prefix + name
        inner = info.annotation
        given = raw.get(name) if isinstance(raw, Mapping) else None
        if key in PLUGINS:
            if given is None and info.default:
                inner = type(info.default)
            else:
                inner = _plugin_class(PLUGINS[key], given)
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from key_types(inner, given, f"{key}.")
        else:
            yield key, inner


def _plugin_class(kind: str, given: Any) -> type[Section] | None:
    if isinstance(given, Mapping):
        name = given.get("name")
    else:
        name = given
    if not isinstance(name, str) or name not in plugins.available(kind):
        return None
    return cast("type[Section]", plugins.load(kind, name).Config)
