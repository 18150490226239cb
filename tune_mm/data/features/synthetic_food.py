"""Synthetic dishes: small pictures and texts in each of the four layouts, and a store of features
that belongs to them.

The features are those of `synthetic.vectors`, as fp16, with a second view of train's images that has noise
of its own; no pretrained model takes part. Pictures and texts show codes of the same classes, clear
enough to extract features from: a picture as in `synthetic.clips`, a text of the words of its
largest values.

Shapes: N samples, T and L steps, D channels.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tune_mm.data.arrays.checks import DataError
from tune_mm.data.features.food_lists import CLASSES, COLUMNS, LISTS, PUBLISHED, Layout, read
from tune_mm.data.features.store import MASK, TEXT, TEXTS, VIEWS, VISUAL, Sample, meta, text_digest
from tune_mm.data.store.cache import META
from tune_mm.data.synthetic.clips import frame, names
from tune_mm.data.synthetic.vectors import VERSION, Array, SyntheticOptions, generate

WORDS = ("pan", "oven", "salt", "sweet", "fresh", "spicy", "crisp", "smoked")
# The token number of WORDS[0] in the layout that has token numbers: an ordinary word of BERT's.
FIRST_WORD = 1996
# Of which those that a text does not fill are 0.
TOKENS = 256


@dataclass(frozen=True)
class _Dish:
    """One sample as its list names it."""

    # Path of the image below the data's folder, and its name without the ending.
    image: str
    name: str
    label: str
    text: str


def write(layout: Layout, place: Path, folder: Path, options: SyntheticOptions) -> None:
    """Lists, pictures and texts below `place`, and their features below `folder`. Raises DataError."""
    lengths = {}
    for modality, shape in options.shapes.items():
        lengths[modality] = len(shape)
    if lengths != {"visual": 2, "text": 2}:
        got = dict(options.shapes)
        raise DataError(f"shapes must be visual=TxD and text=LxE for features, got {got}")
    labels = names(CLASSES, options)
    codes = dict.fromkeys(options.shapes, (len(WORDS),))
    seen = generate(options.changed(shapes=codes, noise=options.noise / 2))
    for split, part in options.bounds().items():
        published = PUBLISHED[split]
        dishes: list[_Dish] = []
        for number in range(part.start, part.stop):
            label = labels[int(seen.target[number])]
            chosen = np.argsort(-seen.modalities["text"].values[number])[:3]
            name = f"{label}_{number:05d}"
            image = _image_path(layout, published, label, name)
            rng = np.random.default_rng([VERSION, options.seed, number])
            (place / image).parent.mkdir(parents=True, exist_ok=True)
            pixels = frame(seen.modalities["visual"].values[number], rng)
            Image.fromarray(pixels).save(place / image, quality=90)
            if layout == "mla":
                tokens = place / "text_token" / f"{published}_token" / f"{name}_token.npy"
                _write_tokens(tokens, chosen)
            text = " ".join(WORDS[k] for k in chosen)
            dishes.append(_Dish(image, name, label, text))
        path = place / LISTS[layout].format(published)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_list(layout, path, dishes)
    samples: list[Sample] = []
    for own in read(layout, place).values():
        samples += own
    _write_features(folder, samples, options)


def _image_path(layout: Layout, split: str, label: str, name: str) -> str:
    """Where an image lies below the data's folder."""
    if layout == "mla":
        return f"visual/{split}_imgs/{name}.jpg"
    return f"images/{split}/{label}/{name}.jpg"


def _write_tokens(path: Path, words: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.zeros((1, TOKENS), dtype=np.int64)
    numbers[0, : len(words)] = FIRST_WORD + words
    np.save(path, numbers)


def _write_list(layout: Layout, path: Path, dishes: list[_Dish]) -> None:
    if layout == "cggm":
        entries = []
        for dish in dishes:
            words = dish.text.split()
            entry = {"id": dish.name, "text_tokens": words}
            entries.append({**entry, "img_path": dish.image, "label": dish.label})
        path.write_text(json.dumps(entries, indent=0) + "\n")
        return
    if layout == "balancemm":
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(COLUMNS)
            out.writerows((f"{dish.name}.jpg", dish.text, dish.label) for dish in dishes)
        return
    lines = []
    for dish in dishes:
        line = f"{dish.name}.jpg {dish.label}"
        if layout == "mmbt":
            fields = {"id": dish.name, "label": dish.label, "text": dish.text, "img": dish.image}
            line = json.dumps(fields)
        lines.append(f"{line}\n")
    path.write_text("".join(lines))


def _write_features(folder: Path, samples: list[Sample], options: SyntheticOptions) -> None:
    """A store of two views, in the format of `store`."""
    data = generate(options)
    visual = data.modalities["visual"]
    text = data.modalities["text"]
    train = options.train
    rng = np.random.default_rng([VERSION, options.seed])
    # Images have no padding: the steps that sequences lack hold noise.
    missing = np.arange(visual.values.shape[1])[None] >= visual.lengths[:, None]
    noise = _noise(rng, visual.values.shape, options.noise)
    plain: Array = visual.values + np.float32(missing[..., None]) * noise
    views = plain[None, :train] + _noise(rng, (1, *plain[:train].shape), 0.3)
    arrays: dict[str, NDArray[Any]] = {
        VISUAL: plain.astype(np.float16),
        VIEWS: views.astype(np.float16),
        TEXT: text.values.astype(np.float16),
        MASK: np.arange(text.values.shape[1])[None] < text.lengths[:, None],
        TEXTS: np.array([text_digest(sample) for sample in samples], dtype=np.uint64),
    }
    ids = [sample.id for sample in samples]
    key = hashlib.blake2b(json.dumps(ids).encode(), digest_size=8)
    for name, values in arrays.items():
        key.update(name.encode())
        key.update(np.ascontiguousarray(values).tobytes())
    store = folder / key.hexdigest()
    store.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(store / name, values)
    about = meta(ids, train, 2, {}, "made up, not extracted, 2 views")
    (store / META).write_text(json.dumps(about))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> Array:
    noise: Array = np.float32(deviation) * rng.standard_normal(shape, dtype=np.float32)
    return noise
