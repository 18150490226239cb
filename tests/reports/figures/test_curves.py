"""Curves are means over seeds of what the runs logged, and the caption says what they rest on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from tests.reports import sample_runs
from tests.reports.figures.drawing import EPOCHS, axes_of, choice, draw, legend, lines, near, record
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun


@pytest.fixture(scope="module")
def reader(store_root: Path) -> Reader:
    return Reader.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root)


@pytest.fixture(scope="module")
def records(reader: Reader) -> Sequence[StoredRun]:
    return reader.records()


def accuracy(cell: int, e: int, less: float = 0.0) -> list[float]:
    """val/accuracy by seed of a cell of sample_runs.TRUNCATION at epoch e: (final - less) e / EPOCHS."""
    return [
        (sample_runs.final(sample_runs.TRUNCATION[cell], cell, s) - less) * e / sample_runs.EPOCHS
        for s in sample_runs.SEEDS
    ]


def test_curves_are_means_over_seeds_with_their_standard_deviation(records, reader) -> None:
    found = draw("dgl_fig1", records, reader, choice("avdigits", "ablation_truncation-2"))
    axes, _ = axes_of(found)
    drawn = lines(axes)
    assert list(drawn) == [
        "Joint training: multimodal",
        "Joint training: audio",
        "Joint training: visual",
    ]
    for (label, line), band, less in zip(
        drawn.items(), axes.collections, (0.0, 0.1, 0.2), strict=True
    ):
        values = [accuracy(0, e, less) for e in EPOCHS]
        assert list(line.get_xdata()) == EPOCHS, label
        near(line.get_ydata(), [statistics.fmean(v) for v in values])
        corners = band.get_paths()[0].vertices
        for e, at in zip(EPOCHS, values, strict=True):
            ends = corners[np.isclose(corners[:, 0], e), 1]
            mean, std = statistics.fmean(at), statistics.stdev(at)
            near([ends.min(), ends.max()], [mean - std, mean + std])
    assert (axes.get_title(), axes.get_xlabel()) == ("Accuracy (validation)", "epoch")
    assert legend(found.figure.legends[0]) == ["multimodal", "audio", "visual"]
    assert len({to_hex(line.get_color()) for line in drawn.values()}) == 3
    assert "Data: avdigits (real), n = 3 seeds" in found.caption
    assert found.missing == ()


def test_two_gradients_of_a_modality_have_its_colour_and_two_dashes(records, reader) -> None:
    axes = axes_of(draw("dgl_fig1", records, reader, choice("avdigits", "ablation_truncation-2")))[
        1
    ]
    drawn = lines(axes)
    multi = drawn["Joint training: visual, multimodal loss"]
    own = drawn["Joint training: visual, unimodal loss"]
    # sample_runs.py: norm_multi is half of (m + 1) / e and norm_uni twice, with m = 1 for visual
    near(multi.get_ydata(), [1 / e for e in EPOCHS])
    near(own.get_ydata(), [4 / e for e in EPOCHS])
    assert multi.get_color() == own.get_color() and multi.get_linestyle() != own.get_linestyle()
    assert axes.get_yscale() == "log"
    assert legend(axes.get_legend()) == ["multimodal loss", "unimodal loss"]


def test_series_over_each_other_are_of_one_search(records, reader) -> None:
    """The latest search with both cells is ablation_truncation-2; ablation_alpha-1, later, has only
    one of them.
    """
    found = draw("dgl_fig3", records, reader, choice("avdigits"))
    assert "Runs of ablation_truncation-2; 2 others have such runs too" in found.caption
    suppression, norms = axes_of(found)
    assert legend(found.figure.legends[0]) == ["audio", "visual", "DGL", "Joint training"]
    dashes = {label: line.get_linestyle() for label, line in lines(norms).items()}
    assert dashes["DGL: audio"] == dashes["DGL: visual"] != dashes["Joint training: audio"]
    expected = [1 + 0.2 * e for e in EPOCHS]
    near(lines(suppression)["DGL: visual"].get_ydata(), expected)
    levels = [line.get_ydata()[0] for line in suppression.lines if line.get_label().startswith("_")]
    assert levels == [1.0]
    assert "s = 1" in found.caption


def test_a_missing_series_is_said_with_its_commands(records, reader) -> None:
    found = draw("dgl_fig1b", records, reader, choice("avdigits", "ablation_truncation-2"))
    assert list(lines(axes_of(found)[0])) == ["Multimodal model: audio"]
    assert "Missing: runs of Unimodal model; to make the runs: " in found.caption
    assert (
        "python -m tune_mm.train avdigits method=unimodal method.modality=audio seed=3"
        in found.missing
    )
    assert all(command in found.caption for command in found.missing)


def test_a_metric_that_no_run_has_is_said(records, reader) -> None:
    panels = [
        {"title": "a", "metrics": ["val/accuracy"]},
        {"title": "b", "metrics": ["balance/{modality}", "x/y"]},
    ]
    found = draw(
        "dgl_fig1", records, reader, choice("avdigits", "ablation_truncation-2"), panels=panels
    )
    assert "Missing: the metric balance/{modality}, the metric x/y" in found.caption
    assert [t.get_text() for t in axes_of(found)[1].texts] == ["no runs: see the caption"]


def test_more_than_two_series_have_axes_of_their_own_on_one_scale(records, reader) -> None:
    series = [
        {"label": f"rho {r}", "where": {"method.magnitude": True, "method.rho": r}}
        for r in (0.9, 1.2, 1.5)
    ]
    panels = [{"title": "B", "metrics": ["balance/{modality}"]}]
    found = draw("cggm_fig6", records, reader, choice("utd_mhad"), series=series, panels=panels)
    axes = axes_of(found)
    assert [(a.get_title(), a.get_ylabel()) for a in axes] == [
        (f"rho {r}", "B") for r in (0.9, 1.2, 1.5)
    ]
    assert len({a.get_ylim() for a in axes}) == 1
    assert legend(found.figure.legends[0]) == ["depth", "inertial", "skeleton"]
    # sample_runs.py: 1 / (m + 1) + 0.1 e with m = 2 for depth
    near(lines(axes[1])["rho 1.2: depth"].get_ydata(), [1 / 3 + 0.1 * e for e in EPOCHS])


def test_values_that_are_not_finite_are_left_out_and_counted(records, reader) -> None:
    """Seed 3 of the second cell of ablation_lambda-1 is NaN from epoch 3 on: two seeds are left
    there.
    """
    series = [{"label": "CGGM", "where": {"method.lam": 0.2}}]
    panels = [{"title": "a", "metrics": ["val/accuracy"]}]
    found = draw("cggm_fig6", records, reader, choice("mosi"), series=series, panels=panels)
    (line,) = lines(axes_of(found)[0]).values()
    left = {e: (1, 2, 3) if e < 3 else (1, 2) for e in EPOCHS}
    expected = [
        statistics.fmean(sample_runs.final(sample_runs.LAMBDA[1], 1, s) * e / 5 for s in left[e])
        for e in EPOCHS
    ]
    near(line.get_ydata(), expected)
    assert "Values that are not finite are left out (3 of CGGM: val/accuracy)" in found.caption
    assert "mosi (synthetic)" in found.caption


def test_curves_of_one_run_have_no_band_and_a_second_search_is_not_mixed_in(reader) -> None:
    """Series that no one search has together come from the searches that have them."""
    found = [
        record(1, {"part": "x", "val/loss": 1.0}, "a-1"),
        record(1, {"part": "y", "val/loss": 1.0}, "b-1"),
    ]
    series = [{"label": "X", "where": {"part": "x"}}, {"label": "Y", "where": {"part": "y"}}]
    panels = [{"title": "a", "metrics": ["val/loss"]}]

    class Curves:
        def curves(
            self, run: StoredRun, metrics: Sequence[str]
        ) -> dict[str, list[tuple[int, float]]]:
            return {m: [(1, 2.0 if run.search == "a-1" else 3.0)] for m in metrics}

    shown = draw("dgl_fig1", found, Curves(), choice("toy"), where={}, series=series, panels=panels)
    (axes,) = axes_of(shown)
    assert {k: list(v.get_ydata()) for k, v in lines(axes).items()} == {
        "X: multimodal": [2.0],
        "Y: multimodal": [3.0],
    }
    assert list(axes.collections) == []
    assert "such runs too" not in shown.caption and "standard deviation" not in shown.caption
