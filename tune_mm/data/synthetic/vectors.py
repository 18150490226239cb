"""Synthetic multimodal data with a chosen imbalance; the plug-ins write it in their own on-disk
format.

Model. Sample i has a code c_i (a class prototype, or a direction scaled by a score). Modality m
*shows* it or not, and

    z = shows * amplitude_m * GAIN * c_i + noise * u_i        u_i ~ N(0, I), one draw per sample: averaging over time
    x_t = z A_m + noise * e_t                                 does not remove it; e_t ~ N(0, I) per step

The dominant modality shows SHARE of the samples at amplitude 1. The others show SHARE * (1 -
imbalance) at amplitude 1 - imbalance / 4, and every sample that the dominant one does not show is
shown by exactly one of them: a model that ignores the weak modalities loses those, so balancing can
help. imbalance 0: all modalities alike.

Shapes: N samples, K code width, T steps, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Part of every cache key: raise it when the same options would give other files.
VERSION = 2
SHARE = 0.7
GAIN = 3.0
CODE = 8

Array = NDArray[np.float32]


@dataclass(frozen=True)
class SyntheticOptions:
    """What `python -m tune_mm.data make` can be asked for. Raises ValueError."""

    # Longest (T, D) per modality, (D,) for a vector, or (C, H, W) for an image.
    shapes: Mapping[str, tuple[int, ...]]
    # The strongest modality.
    dominant: str
    # Samples of each split.
    train: int = 320
    val: int = 96
    test: int = 96
    # Number of classes; data sets of scores ignore it.
    classes: int = 4
    # 0 (all alike) to 1.
    imbalance: float = 0.6
    # Standard deviation; at 1 a linear model on the dominant modality gets about 0.7.
    noise: float = 1.0
    # The same options and seed give the same files.
    seed: int = 0
    # Fewest samples of a class in a split; 0: a sample may have all classes in it.
    per_class: int = 2

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ValueError(problem)

    def _problems(self) -> list[str]:
        checks = [
            (
                min(self.train, self.val, self.test) >= self.per_class * self.classes,
                f"train, val and test must be >= {self.per_class} per class, "
                f"got {self.train}, {self.val}, {self.test} for {self.classes} classes",
            ),
            (
                min(self.train, self.val, self.test) >= 1,
                f"train, val and test must be >= 1, got {self.train}, {self.val}, {self.test}",
            ),
            (self.classes >= 2, f"classes must be >= 2, got {self.classes}"),
            (
                0 <= self.imbalance <= 1,
                f"imbalance must be between 0 and 1 inclusive, got {self.imbalance}",
            ),
            (0 <= self.noise < float("inf"), f"noise must be >= 0 and finite, got {self.noise}"),
            (self.seed >= 0, f"seed must be >= 0, got {self.seed}"),
            (
                self.dominant in self.shapes,
                f"dominant: no modality '{self.dominant}'; available: {', '.join(self.shapes)}",
            ),
        ]
        for name, shape in self.shapes.items():
            good = len(shape) in (1, 2, 3) and min(shape) >= 1
            checks.append(
                (good, f"shape of {name} must be T x D, D or C x H x W, all >= 1, got {shape}")
            )
        return [message for good, message in checks if not good]

    @property
    def total(self) -> int:
        return self.train + self.val + self.test

    def bounds(self) -> dict[str, slice]:
        """Where train, val and test lie in `total` samples."""
        a = self.train
        b = self.train + self.val
        return {"train": slice(0, a), "val": slice(a, b), "test": slice(b, self.total)}

    def changed(self, **values: Any) -> SyntheticOptions:
        """A copy with the values that are not None."""
        known = {f.name for f in fields(self)}
        return replace(self, **{k: v for k, v in values.items() if k in known and v is not None})


@dataclass(frozen=True)
class Sequences:
    """One synthetic modality: values [N, T, D] (0 beyond its length) or [N, D], and lengths [N] (1
    for vectors).
    """

    values: Array
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class Synthetic:
    """target: int64 [N] classes, or float32 [N] scores in [-3, 3]; one entry of `modalities` per
    modality.
    """

    target: NDArray[Any]
    modalities: dict[str, Sequences]


def generate(options: SyntheticOptions, *, scores: bool = False) -> Synthetic:
    """All samples of the three splits, in the order of `options.bounds()`. `scores`: real values,
    not classes.
    """
    rng = np.random.default_rng([VERSION, options.seed])
    make_target = _scores if scores else _classes
    target = make_target(options, rng)
    codes = _codes(target, options.classes, rng)
    shows = _shows(options, rng)
    return Synthetic(
        target, {m: _modality(m, options, codes, shows[m], rng) for m in options.shapes}
    )


def _classes(options: SyntheticOptions, rng: np.random.Generator) -> NDArray[np.int64]:
    """Balanced within each split."""
    sizes = [s.stop - s.start for s in options.bounds().values()]
    return np.concatenate(
        [rng.permutation(np.arange(n, dtype=np.int64) % options.classes) for n in sizes]
    )


def _scores(options: SyntheticOptions, rng: np.random.Generator) -> Array:
    """Scores in [-3, 3] with a step of 0.2, as annotators' means have; half of them positive."""
    size = rng.integers(1, 16, options.total) / 5
    signed: Array = (size * rng.choice([-1.0, 1.0], options.total)).astype(np.float32)
    return signed


def _codes(target: NDArray[Any], classes: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[N, K]: orthonormal class prototypes, or one direction times the score (mean distance of the
    signs: sqrt 2).
    """
    width = max(CODE, classes)
    basis, _ = np.linalg.qr(rng.standard_normal((width, width)))
    by_score = target.dtype.kind == "f"
    codes: NDArray[np.float64] = (
        target[:, None] / (1.6 * np.sqrt(2)) * basis[:1] if by_score else basis[target]
    )
    return codes


def _shows(options: SyntheticOptions, rng: np.random.Generator) -> dict[str, NDArray[np.bool_]]:
    """[N] per modality: does it show the code? Every sample is shown by at least one modality."""
    weak = [m for m in options.shapes if m != options.dominant]
    shows = {options.dominant: rng.random(options.total) < SHARE}
    for name in weak:
        shows[name] = rng.random(options.total) < SHARE * (1 - options.imbalance)
    if weak:
        turn = rng.integers(0, len(weak), options.total)
        for i, name in enumerate(weak):
            shows[name] |= ~shows[options.dominant] & (turn == i)
    return shows


def _modality(
    name: str,
    options: SyntheticOptions,
    codes: NDArray[Any],
    shows: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Sequences:
    if name == options.dominant:
        amplitude = 1.0
    else:
        amplitude = 1 - options.imbalance / 4
    latent = shows[:, None] * (GAIN * amplitude) * codes + options.noise * rng.standard_normal(
        codes.shape
    )
    shape = options.shapes[name]
    steps, width = shape if len(shape) == 2 else (1, shape[0])
    projection = rng.standard_normal((codes.shape[1], width)) / np.sqrt(codes.shape[1])
    values = (latent @ projection).astype(np.float32)[:, None, :]
    values = values + np.float32(options.noise) * rng.standard_normal(
        (len(codes), steps, width), dtype=np.float32
    )
    lengths = rng.integers(max(1, (2 * steps) // 5), steps + 1, len(codes))
    # At least one sample is as long as asked, so that the shape is what the options say.
    lengths[0] = steps
    values[np.arange(steps)[None, :] >= lengths[:, None]] = 0
    return Sequences(
        np.ascontiguousarray(values[:, 0] if len(shape) == 1 else values), lengths.astype(np.int64)
    )
