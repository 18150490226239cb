"""Small images with masks, and configs of small networks, for tests of methods that predict pixels."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from tests import support
from tune_mm import plugins
from tune_mm.config import Config, load_config, with_overrides
from tune_mm.core.types import VOID, Batch, Dataset, DataSpec, Padded, Split, Task
from tune_mm.data.images.geometry import Geometry

SIZE = 16
CHANNELS = {"radar": 1, "optical": 3, "height": 2}
TASK = Task("segmentation", 3, ("a", "b", "c"), (0.5, 1.0, 1.5), 0.5, (("any", (1, 2)),))
# Encoder and fusion of what `config` knows beside U-Net.
NETWORKS: dict[str, dict[str, Any]] = {
    "esanet": {
        "encoder": {"name": "esanet", "channels": (4, 4, 6, 6, 8), "blocks": (1, 1, 1, 1)},
        "fusion": {
            "name": "esanet",
            "decoder": (8, 6, 5),
            "blocks": 0,
            "bins": (1, 2),
            "reduction": 2,
        },
    },
    "deeplab": {
        "encoder": {"name": "deeplab", "depth": 18, "width": 5},
        "fusion": {"name": "deeplab", "low": 3, "dropout": 0.0, "dropout_last": 0.0},
    },
}


def dataset(count: int = 3, samples: int = 24, size: int = SIZE) -> Dataset:
    """Half planes of three classes, written into every image with noise; a row of unknown pixels."""
    generator = torch.Generator().manual_seed(0)
    shapes = {m: (CHANNELS[m], size, size) for m in list(CHANNELS)[:count]}
    means = {m: 2 * torch.randn(3, CHANNELS[m], generator=generator) for m in shapes}

    def split(n: int, geometry: Geometry) -> Split:
        edge = torch.randint(2, size - 2, (n, 1, 1), generator=generator)
        side = torch.arange(size)[None, None] >= edge
        classes = torch.randint(0, 3, (n, 2), generator=generator)
        mask = (
            torch.where(side, classes[:, 1, None, None], classes[:, 0, None, None])
            .expand(n, size, size)
            .clone()
        )
        inputs = {}
        for i, (m, shape) in enumerate(shapes.items()):
            noise = torch.randn((n, *shape), generator=generator)
            inputs[m] = Padded(means[m][mask].movedim(-1, 1) + (1 + i) * noise)
        mask[:, -1] = VOID
        return Split(inputs, mask.to(torch.uint8), tuple(map(str, range(n))), geometry)

    plain, changed = Geometry(), Geometry(flip=True, turn=True)
    splits = {"train": split(samples, changed), "val": split(12, plain), "test": split(12, plain)}
    return Dataset("halves", DataSpec(shapes, TASK), splits)


@cache
def base_config(network: str = "unet") -> Config:
    """configs/ombria.yaml made small: channels 4 and 6, 2 epochs of batches of 8; or another of
    NETWORKS.
    """
    values: dict[str, Any] = {
        "model.encoder.channels": (4, 6),
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.eval_batch_size": 5,
        "train.device": "cpu",
        "train.probe_size": 4,
        "train.monitor": "auto",
    }
    config = with_overrides(load_config("ombria"), values)
    if network == "unet":
        return config
    return with_overrides(config, {"model": NETWORKS[network]})


def config(method: str = "joint", network: str = "unet", **settings: object) -> Config:
    """`base_config` for a method with `settings`."""
    return support.with_method(base_config(network), method, tuple(CHANNELS), **settings)


def spec(count: int = 3) -> DataSpec:
    """What a model must know of `dataset`."""
    modalities = list(CHANNELS)[:count]
    return DataSpec({m: (CHANNELS[m], SIZE, SIZE) for m in modalities}, TASK)


def batch(data: Dataset, count: int = 6) -> Batch:
    """The first training samples as they are, in float64."""
    split = data.splits["train"]
    index = torch.arange(count)
    inputs = {
        m: Padded(x.value[:count].double())
        for m, x in split.inputs.items()
        if isinstance(x, Padded)
    }
    return Batch(inputs, split.target[:count].long(), index)


def methods() -> list[str]:
    """Those that say they predict pixels."""
    return [
        n
        for n in plugins.available("methods")
        if "segmentation" in plugins.load("methods", n).support.tasks
    ]
