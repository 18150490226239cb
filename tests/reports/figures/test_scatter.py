"""Maps of vectors: t-SNE of a stored artifact, and artifacts that hold something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from tests.reports.figures.drawing import axes_of, choice, draw, legend, record
from tune_mm.errors import UserError
from tune_mm.reports.figures import scatter
from tune_mm.reports.runs.stored_run import StoredRun


class Files:
    """Artifacts of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def artifact(self, run: StoredRun, path: str) -> Path | None:
        file = self.folder / f"{run.seed}-{path}"
        return file if file.exists() else None


def vectors(seed: int) -> dict[str, Any]:
    """Two modalities: directions round two axes at right angles, of any length; two kinds that
    agree.
    """
    generator = np.random.default_rng(seed)
    axes = {"text": np.eye(8)[0], "audio": np.eye(8)[1]}
    return {
        f"{m}/{kind}": (axis + 0.05 * generator.normal(size=(20, 8)))
        * generator.uniform(0.1, 10, (20, 1))
        for m, axis in axes.items()
        for kind in ("classifier", "unimodal")
    }


def test_vectors_of_one_direction_lie_together(tmp_path: Path) -> None:
    np.savez(tmp_path / "2-gradients.npz", **vectors(0))
    series = [{"label": "CGGM"}, {"label": "Other", "where": {"method": "other"}}]
    found = draw(
        "cggm_fig4",
        [record(2, {}), record(1, {})],
        Files(tmp_path),
        choice("toy"),
        where={},
        series=series,
    )
    left, right = axes_of(found)
    assert legend(left.get_legend()) == list(vectors(0))
    at = {c.get_label(): np.asarray(c.get_offsets()) for c in left.collections}
    assert {label: len(points) for label, points in at.items()} == dict.fromkeys(vectors(0), 20)
    text, audio = (
        np.concatenate([at[f"{m}/classifier"], at[f"{m}/unimodal"]]) for m in ("text", "audio")
    )
    between = np.linalg.norm(text.mean(0) - audio.mean(0))
    assert between > 2 * max(np.linalg.norm(p - p.mean(0), axis=1).mean() for p in (text, audio))
    colours = {c.get_label(): to_hex(c.get_facecolor()[0]) for c in left.collections}
    assert colours["text/classifier"] == colours["text/unimodal"] != colours["audio/unimodal"]
    assert "80 vectors of the run with seed 2, by t-SNE" in found.caption
    assert [t.get_text() for t in right.texts] == ["no vectors: see the caption"]
    assert "Missing: runs of Other" in found.caption


def test_a_run_without_the_artifact_is_said(tmp_path: Path) -> None:
    found = draw("cggm_fig4", [record(1, {})], Files(tmp_path), choice("toy"), where={})
    assert (
        "Missing: gradients.npz of CGGM; to make the runs: python -m tune_mm.search"
        in found.caption
    )


def test_rows_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    values = np.arange(14.0).reshape(7, 2)
    values[3, 1] = np.nan
    np.savez(tmp_path / "a.npz", a=values)
    found, lost = scatter.read(tmp_path / "a.npz", "a.npz")
    np.testing.assert_array_equal(found["a"], np.delete(values, 3, axis=0))
    assert lost == 1


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"a": np.ones((9, 3)), "b": np.ones((9, 2))},
            r"must hold arrays \[N, D\] with one D, got a \[9, 3\], b \[9, 2\]",
        ),
        ({"a": np.ones(9)}, r"must hold arrays \[N, D\] with one D, got a \[9\]"),
        ({}, "got no arrays"),
        ({"a": np.ones((2, 3))}, "must hold 5 finite vectors or more, got 2"),
        ({"a": np.array([["x"]])}, "not a .npz of numbers"),
        ({"a": np.array([[{}]], dtype=object)}, "not a .npz of numbers"),
    ],
)
def test_an_artifact_that_holds_something_else(
    tmp_path: Path, arrays: dict[str, Any], said: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=said):
        scatter.read(tmp_path / "a.npz", "a.npz of run 1")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_an_artifact_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a.npz of run 1: not a .npz of numbers"):
        scatter.read(tmp_path / "a.npz", "a.npz of run 1")
