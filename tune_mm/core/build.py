"""From a config to what a run is made of: device, method, objective, model; and whether all of it
fits the data.
"""

from __future__ import annotations

import difflib

import torch
from torch import nn

from tune_mm import plugins
from tune_mm.config import Config
from tune_mm.core import metrics
from tune_mm.core.method import Method
from tune_mm.core.net import Net
from tune_mm.core.types import DataSpec


def device_of(name: str) -> torch.device:
    """`auto` is CUDA where it is there, else CPU. Raises RuntimeError (from torch) for a device
    that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def method_of(config: Config) -> Method:
    """The method that a config names, with its settings."""
    method: Method = plugins.load("methods", dict(config.method)["name"])(config.method)
    return method


def objective_of(config: Config, spec: DataSpec) -> str:
    """The metric that names the best epoch. Raises ValueError for one that the task or the
    modalities do not have.
    """
    wanted = config.train.monitor
    if wanted == "auto":
        return metrics.default(spec.task)
    allowed = [
        f"val/{n}{m}"
        for m in ("", *(f"/{m}" for m in spec.modalities))
        for n in metrics.names(spec.task)
    ]
    if wanted not in allowed:
        near = difflib.get_close_matches(wanted, allowed, n=1, cutoff=0.75)
        hint = f"; nearest '{near[0]}'" if near else ""
        known = ", ".join(allowed)
        what = f"no metric '{wanted}' in {spec.task.kind}"
        raise ValueError(f"train.monitor: {what}{hint}; available: {known}")
    return wanted


def check(config: Config, spec: DataSpec) -> None:
    """Build the run's model without memory or training. Raises ValueError for what does not fit."""
    method = method_of(config)
    part = method.spec(spec)
    objective_of(config, part)
    with torch.device("meta"):
        net_of(config, part, method)


def net_of(
    config: Config, spec: DataSpec, method: Method, device: torch.device | None = None
) -> Net:
    """The model that a config names, on `device` (None: where it is built). Raises ValueError for
    what does not fit.
    """
    method.support.require(config.method.name, spec, config.model.fusion.name)
    model: nn.Module = plugins.load("models", "multimodal")(config.model, spec, method.aux)
    net = Net(model if device is None else model.to(device), spec.task)
    try:
        net.path(method.unimodal_path)
        method.check(net)
    except ValueError as error:
        names = f"method.name: {config.method.name}, model.fusion: {config.model.fusion.name}"
        raise ValueError(f"method.{error} ({names})") from None
    return net
