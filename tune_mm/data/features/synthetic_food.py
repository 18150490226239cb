"""Synthetic dishes: small pictures and texts in each of the four layouts, and a store of features
that belongs to them.

The features are those of `_synthetic`, as fp16, with a second view of train's images that has noise
of its own; no pretrained model takes part. Pictures and texts show codes of the same classes, clear
enough to extract features from: a picture as in `_synthetic_clips`, a text of the words of its
largest values.

Shapes: N samples, T and L steps, D channels.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tune_mm.data.arrays.checks import DataError
from tune_mm.data.features.food_lists import CLASSES, LISTS, PUBLISHED, Layout, read
from tune_mm.data.features.store import MASK, TEXT, TEXTS, VIEWS, VISUAL, Sample, meta, text_digest
from tune_mm.data.store.cache import META
from tune_mm.data.synthetic.clips import frame, names
from tune_mm.data.synthetic.vectors import VERSION, Array, SyntheticOptions, generate

WORDS = ("pan", "oven", "salt", "sweet", "fresh", "spicy", "crisp", "smoked")
FIRST_WORD = 1996  # the token number of WORDS[0] in the layout that has token numbers: an ordinary word of BERT's
TOKENS = 256  # of which what a text does not fill is 0


def write(layout: Layout, place: Path, folder: Path, options: SyntheticOptions) -> None:
    """Lists, pictures and texts below `place`, and their features below `folder`. Raises DataError."""
    if set(options.shapes) != {"visual", "text"} or any(
        len(shape) != 2 for shape in options.shapes.values()
    ):
        raise DataError(
            f"shapes must be visual=TxD and text=LxE for features, got {dict(options.shapes)}"
        )
    labels = names(CLASSES, options)
    seen = generate(
        options.changed(shapes={m: (len(WORDS),) for m in options.shapes}, noise=options.noise / 2)
    )
    for split, part in options.bounds().items():
        entries: list[dict[str, str]] = []
        for number in range(part.start, part.stop):
            label = labels[int(seen.target[number])]
            values = {m: x.values[number] for m, x in seen.modalities.items()}
            rng = np.random.default_rng([VERSION, options.seed, number])
            chosen = np.argsort(-values["text"])[:3]
            image, name = _image_path(layout, PUBLISHED[split], label, number)
            (place / image).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame(values["visual"], rng)).save(place / image, quality=90)
            if layout == "mla":
                _write_tokens(
                    place / "text_token" / f"{PUBLISHED[split]}_token" / f"{name}_token.npy", chosen
                )
            entries.append(
                {
                    "image": image,
                    "label": label,
                    "text": " ".join(WORDS[k] for k in chosen),
                    "name": name,
                }
            )
        path = place / LISTS[layout].format(PUBLISHED[split])
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_list(layout, path, entries)
    samples = []
    for own in read(layout, place).values():
        for sample in own:
            samples.append(sample)
    _write_features(folder, samples, options)


def _image_path(layout: Layout, split: str, label: str, number: int) -> tuple[str, str]:
    """Where an image lies below the data's folder, and its name without the ending."""
    name = f"{label}_{number:05d}"
    return (
        f"visual/{split}_imgs/{name}.jpg"
        if layout == "mla"
        else f"images/{split}/{label}/{name}.jpg"
    ), name


def _write_tokens(path: Path, words: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.zeros((1, TOKENS), dtype=np.int64)
    numbers[0, : len(words)] = FIRST_WORD + words
    np.save(path, numbers)


def _write_list(layout: Layout, path: Path, entries: list[dict[str, str]]) -> None:
    if layout == "cggm":
        keys = []
        for e in entries:
            keys.append(
                {
                    "id": e["name"],
                    "text_tokens": e["text"].split(),
                    "img_path": e["image"],
                    "label": e["label"],
                }
            )
        path.write_text(json.dumps(keys, indent=0) + "\n")
    elif layout == "mmbt":
        lines = (
            {"id": e["name"], "label": e["label"], "text": e["text"], "img": e["image"]}
            for e in entries
        )
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    elif layout == "balancemm":
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(("Image_path", "text", "label"))
            out.writerows((f"{e['name']}.jpg", e["text"], e["label"]) for e in entries)
    else:
        path.write_text("".join(f"{e['name']}.jpg {e['label']}\n" for e in entries))


def _write_features(folder: Path, samples: list[Sample], options: SyntheticOptions) -> None:
    """A store of two views, in the format of `_features`."""
    data = generate(options)
    train = options.train
    visual, text = (data.modalities[m] for m in ("visual", "text"))
    rng = np.random.default_rng([VERSION, options.seed])
    # Images have no padding: the steps that sequences lack hold noise.
    steps = np.arange(visual.values.shape[1])[None] >= visual.lengths[:, None]
    plain: Array = visual.values + np.float32(steps[..., None]) * _noise(
        rng, visual.values.shape, options.noise
    )
    arrays: dict[str, NDArray[Any]] = {
        VISUAL: plain.astype(np.float16),
        VIEWS: (plain[None, :train] + _noise(rng, (1, *plain[:train].shape), 0.3)).astype(
            np.float16
        ),
        TEXT: text.values.astype(np.float16),
        MASK: np.arange(text.values.shape[1])[None] < text.lengths[:, None],
        TEXTS: np.array([text_digest(s) for s in samples], dtype=np.uint64),
    }
    key = hashlib.blake2b(json.dumps([s.id for s in samples]).encode(), digest_size=8)
    for name, values in arrays.items():
        key.update(name.encode() + np.ascontiguousarray(values).tobytes())
    store = folder / key.hexdigest()
    store.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(store / name, values)
    about = meta([s.id for s in samples], train, 2, {}, "made up, not extracted, 2 views")
    (store / META).write_text(json.dumps(about))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> Array:
    noise: Array = np.float32(deviation) * rng.standard_normal(shape, dtype=np.float32)
    return noise
