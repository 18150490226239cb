"""Tiny BERTs and ViTs with random weights, saved as transformers does, and a small Food-101 for
them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tune_mm.data import base
from tune_mm.data.datasets.food101 import Food101, Food101Config
from tune_mm.data.features import pretrained
from tune_mm.data.features.food_lists import Layout, read
from tune_mm.data.features.store import Sample
from tune_mm.data.features.synthetic_food import FIRST_WORD, WORDS

pytest.importorskip("transformers")
library: Any = pretrained.transformers()

VOCABULARY = 2048
TRAIN, ALL, LENGTH = 8, 16, 6


def bert(folder: Path, **changes: Any) -> Path:
    """A BERT whose vocabulary has the words of the made texts where BERT's own has ordinary ones."""
    sizes = {
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    config = library.BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=32, **{**sizes, **changes}
    )
    library.BertModel(config).save_pretrained(folder)
    words = [f"[unused{i}]" for i in range(VOCABULARY)]
    words[0], words[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words[FIRST_WORD : FIRST_WORD + len(WORDS)] = WORDS
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n")
    library.BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


def vit(folder: Path, processor: dict[str, Any] | None = None) -> Path:
    config = library.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
    )
    library.ViTModel(config).save_pretrained(folder)
    made = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "size": {"height": 16, "width": 16},
    }
    library.ViTImageProcessorPil(**made, **(processor or {})).save_pretrained(folder)
    return folder


def pair(folder: Path) -> dict[str, Path]:
    """A ViT and a BERT, always the same."""
    torch.manual_seed(0)
    return {"image": vit(folder / "vit"), "text": bert(folder / "bert")}


def make(root: Path, layout: Layout = "cggm") -> Path:
    """A data set of 8 / 4 / 4 images without features."""
    config = Food101Config(layout=layout)
    options = Food101.options(config).changed(train=TRAIN, val=4, test=4, classes=2)
    place = base.make(config, root, options)
    shutil.rmtree(place / "features")
    (place / base.MARKER).unlink()
    return place


def argv(place: Path, models: dict[str, Path], *more: str) -> list[str]:
    paths = ["--image-model", str(models["image"]), "--text-model", str(models["text"])]
    sizes = ["--text-tokens", str(LENGTH), "--batch", "3", "--device", "cpu"]
    return ["extract", "food101", "--root", str(place), *paths, *sizes, *more]


def store(place: Path, folder: str = "features") -> Path:
    (found,) = (p for p in (place / folder).iterdir() if p.is_dir() and not p.name.startswith("."))
    return found


def array(place: Path, name: str, folder: str = "features") -> Any:
    return np.load(store(place, folder) / f"{name}.npy")


def samples(place: Path, layout: Layout = "cggm") -> list[Sample]:
    return [sample for own in read(layout, place).values() for sample in own]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the image model gets from now on; the first tells its shape."""
    sizes: list[int] = []
    whole = pretrained.ImageModel.features

    def features(self: Any, pixels: Any) -> Any:
        sizes.append(len(pixels))
        return whole(self, pixels)

    monkeypatch.setattr(pretrained.ImageModel, "features", features)
    return sizes
