"""Vectors of a stored artifact in two dimensions by t-SNE (scikit-learn): do gradients of a kind
lie together?

The artifact is a .npz with one array [N, D] per label, "<modality>/<kind>": text/classifier,
text/unimodal. A colour stands for the modality, a marker for the kind.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sklearn.manifold import TSNE

from tune_mm.errors import UserError
from tune_mm.reports.figures import canvas
from tune_mm.reports.figures.canvas import BLACK, MARKERS, PALETTE, Figure
from tune_mm.reports.runs.select import Choice, select
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.spec.spec import ScatterReport
from tune_mm.reports.spec.wording import file_name

PERPLEXITY = 30.0  # scikit-learn's and the t-SNE paper's own; less for few vectors
FEWEST = 5


class ArtifactSource(Protocol):
    """Where artifacts are read from: a `store.Reader`."""

    def artifact(self, run: StoredRun, path: str) -> Path | None:
        """A copy of a run's artifact; None if it has none."""
        ...


def scatter(
    report: ScatterReport,
    records: Sequence[StoredRun],
    reader: ArtifactSource,
    choice: Choice,
    name: str = "",
) -> Figure:
    """One axes per series: the vectors of its first seed that has the artifact (maps of several
    runs share no axes).

    Raises UserError for an artifact that holds something else.
    """
    chosen = {}
    for s in report.series:
        chosen[s.label] = select(list(records), report, {**report.where, **s.where}, choice)
    said = []
    absent = []
    counts = []
    with canvas.styled():
        columns = min(len(report.series), 2)
        figure, axes = canvas.canvas(-(-len(report.series) // columns), columns)
        for place, (label, selection) in zip(axes, chosen.items(), strict=False):
            place.set(title=label, xticks=[], yticks=[])
            run, file = _first(selection.records, reader, report.artifact)
            if run is None or file is None:
                absent.append(
                    f"{report.artifact} of {label}" if selection.records else f"runs of {label}"
                )
                canvas.empty(place, "no vectors: see the caption")
                continue
            vectors, lost = read(file, f"{report.artifact} of run {run.name}")
            _draw(place, embed(vectors))
            counts.append(1)
            many = sum(map(len, vectors.values()))
            said.append(
                f"{label}: {many} vectors of the run with seed {run.seed}, by t-SNE; axes have no unit"
            )
            said += (
                [f"{label}: {lost} vectors with values that are not finite are left out"]
                if lost
                else []
            )
        for place in axes[len(chosen) :]:
            place.remove()
    commands, lacking = canvas.missing(report, choice, absent)
    text = canvas.caption(report, choice, chosen, counts, [*said, lacking])
    return Figure(file_name(report, name), figure, text, commands)


def _first(
    records: Sequence[StoredRun], reader: ArtifactSource, artifact: str
) -> tuple[StoredRun | None, Path | None]:
    for record in sorted(records, key=lambda r: r.seed):
        file = reader.artifact(record, artifact)
        if file is not None:
            return record, file
    return None, None


def read(file: Path, what: str) -> tuple[dict[str, np.ndarray], int]:
    """The arrays [N, D] of a .npz and how many rows were left out, not being finite.

    Raises UserError (naming `what`) for a file that is none, arrays of another shape, or too few
    rows.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            found = {}
            for key in archive.files:
                found[key] = np.asarray(archive[key], dtype=np.float64)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{what}: not a .npz of numbers: {error}") from None
    shapes = {key: array.shape for key, array in found.items()}
    if (
        not found
        or any(len(shape) != 2 for shape in shapes.values())
        or len({s[1] for s in shapes.values()}) != 1
    ):
        shown = ", ".join(f"{key} {list(shape)}" for key, shape in shapes.items()) or "no arrays"
        raise UserError(f"{what}: must hold arrays [N, D] with one D, got {shown}")
    finite = {key: array[np.isfinite(array).all(axis=1)] for key, array in found.items()}
    kept, whole = (sum(map(len, arrays.values())) for arrays in (finite, found))
    if kept < FEWEST:
        raise UserError(f"{what}: must hold {FEWEST} finite vectors or more, got {kept}")
    return finite, whole - kept


def embed(vectors: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Positions [N, 2] of all arrays [N, D] in one map. Directions are what is compared: each
    vector at length 1.
    """
    every = np.concatenate(list(vectors.values()))
    norms = np.linalg.norm(every, axis=1, keepdims=True)
    every = every / np.where(norms > 0, norms, 1.0)
    perplexity = min(PERPLEXITY, (len(every) - 1) / 3)
    points = TSNE(
        2, perplexity=perplexity, init="pca" if every.shape[1] > 1 else "random", random_state=seed
    )
    flat = points.fit_transform(every)
    ends = np.cumsum([len(array) for array in vectors.values()])[:-1]
    return dict(zip(vectors, np.split(flat, ends), strict=True))


def _draw(axes: Any, points: Mapping[str, np.ndarray]) -> None:
    parts = {label: label.rpartition("/") for label in points}
    modalities = list(dict.fromkeys(head for head, _, _ in parts.values() if head))
    kinds = list(dict.fromkeys(kind for _, _, kind in parts.values()))
    for label, at in points.items():
        head, _, kind = parts[label]
        if head:
            colour = PALETTE[modalities.index(head) % len(PALETTE)]
        else:
            colour = BLACK
        marker = MARKERS[kinds.index(kind) % len(MARKERS)]
        axes.scatter(
            at[:, 0],
            at[:, 1],
            s=8,
            color=colour,
            marker=marker,
            alpha=0.6,
            linewidths=0,
            label=label,
        )
    # Below: points lie anywhere. Markers of a kind are larger than the points, whose colour they
    # must show.
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.02),
        ncols=len(kinds),
        frameon=False,
        markerscale=1.6,
    )
