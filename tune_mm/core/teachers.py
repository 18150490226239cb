"""Models of one modality each, trained once per data set, model and seed, and reused by every trial
of a machine.

The key of a stored model is a digest of all that decides it: the data, the model, the optimizer,
the training and the version of the trainer. Writers hold a lock; a file is renamed when whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tune_mm.config import Config, to_dict, with_overrides
from tune_mm.core import checkpoint
from tune_mm.core.build import method_of, net_of
from tune_mm.core.net import Net
from tune_mm.core.types import Dataset, Padded, Stored, Tensors
from tune_mm.filesystem import locked

VERSION = 1

Train = Callable[[Config], Tensors]  # the best state of a run


def alone(config: Config, modality: str, changes: Mapping[str, Any]) -> Config:
    """`config` for the method `unimodal` of one modality, its best epoch by the default metric.

    changes: settings of its training, such as the learning rate, that must not depend on what a
    search tunes: trials share what has the same settings.
    """
    method = {"method": {"name": "unimodal", "modality": modality}, "train.monitor": "auto"}
    return with_overrides(
        config,
        {**method, "train.gradient_vectors": 0, "train.gradient_statistics": False, **changes},
    )


def state(config: Config, dataset: Dataset, folder: Path, train: Train) -> Tensors:
    """The best state of a run of `config`, from `folder` where it is there; else trained under a
    lock and kept.

    Raises what `train` raises; OSError where the folder cannot be written.
    """
    path = folder / f"{_key(config, dataset)}.pt"
    found = _read(path)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        found = _read(path)
        if found is None:
            found = train(config)
            checkpoint.save({"state": found}, path)
    return found


def net(config: Config, dataset: Dataset, folder: Path, train: Train, device: torch.device) -> Net:
    """The model of `state` on `device`, in evaluation mode and without gradients. Raises what
    `state` raises.
    """
    stored = state(config, dataset, folder, train)
    method = method_of(config)
    found = net_of(config, method.spec(dataset.spec), method, device)
    found.model.load_state_dict(stored)
    found.model.eval().requires_grad_(False)
    return found


def _read(path: Path) -> Tensors | None:
    """The stored state; None where it is not there or damaged (it is then trained again)."""
    try:
        return dict(checkpoint.load(path)["state"])
    except (OSError, ValueError, KeyError):
        return None


def _key(config: Config, dataset: Dataset) -> str:
    told = to_dict(config)
    content: dict[str, Any] = {}
    for k in ("data", "model", "method", "optim", "schedule", "train", "seed"):
        content[k] = told[k]
    total = hashlib.blake2b(json.dumps([VERSION, content], sort_keys=True).encode(), digest_size=12)
    for name in ("train", "val"):
        split = dataset.splits[name]
        x = split.inputs[config.method.modality]
        total.update(f"{name} {len(split)} {' '.join(split.ids)}".encode())
        tensors = [split.target, *(x.tensors if isinstance(x, Padded) else ())]
        for tensor in tensors:
            total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.cpu().contiguous().numpy().data)
        if isinstance(
            x, Stored
        ):  # with the ids and the section `data` all that its values follow from
            total.update(f"{x.shape} {x.content}".encode())
    return total.hexdigest()
