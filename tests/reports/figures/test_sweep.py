"""Sweeps: means and gains paired by seed, and where the maximum lies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.reports import sample_runs
from tests.reports.figures.drawing import axes_of, choice, draw, legend, near, record
from tune_mm.errors import UserError
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun


@pytest.fixture(scope="module")
def reader(store_root: Path) -> Reader:
    return Reader.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root)


@pytest.fixture(scope="module")
def records(reader: Reader) -> Sequence[StoredRun]:
    return reader.records()


def gains(rho: int) -> list[float]:
    """Gain in points by seed of the cell number `rho` of sample_runs.RHO over its first cell, joint
    training.
    """
    return [
        100
        * (
            sample_runs.final(sample_runs.RHO[rho], rho, s)
            - sample_runs.final(sample_runs.RHO[0], 0, s)
        )
        for s in sample_runs.SEEDS
    ]


def test_a_gain_is_paired_by_seed_and_its_maximum_is_said(records, reader) -> None:
    found = draw("cggm_fig5a", records, reader, choice("utd_mhad"))
    (axes,) = axes_of(found)
    (bars,) = axes.containers
    line, caps, (whiskers,) = bars.lines
    assert list(line.get_xdata()) == [0.9, 1.2, 1.5]
    near(line.get_ydata(), [statistics.fmean(gains(i)) for i in (1, 2, 3)])
    for segment, i in zip(whiskers.get_segments(), (1, 2, 3), strict=True):
        half = statistics.stdev(gains(i))
        near(segment[:, 1], [statistics.fmean(gains(i)) - half, statistics.fmean(gains(i)) + half])
    assert len(caps) == 2
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("ρ", "gain in test accuracy (points)")
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.9", "1.2", "1.5"]
    assert legend(axes.get_legend()) == ["CGGM"]
    ends = [
        a - b for a, b in zip(gains(2), gains(1), strict=True)
    ]  # both ends have the same mean, 7
    above = f"{statistics.fmean(ends):.2f} ± {statistics.stdev(ends):.2f}"
    assert (
        f"largest mean +10.00 at ρ = 1.2, an interior maximum: {above} above the better end"
        in found.caption
    )
    assert found.missing == ()


@pytest.mark.parametrize(
    ("alphas", "said"),
    [
        ([1, 2, 3, 4, 5], "largest mean 77.20 at α = 4, an interior maximum: 1.00 ± "),
        ([1, 2, 3, 4], "largest mean 77.20 at α = 4, an end of the range: no interior maximum"),
        ([3, 4], "largest mean 77.20 at α = 4; 2 values cannot show an interior maximum"),
    ],
)
def test_where_the_maximum_lies(records, reader, alphas: list[int], said: str) -> None:
    """sample_runs.py: the mean over three seeds is b + 0.022, and b is 0.75 at alpha 4 and 0.01 less for
    each unit away.
    """
    found = draw(
        "dgl_alpha",
        records,
        reader,
        choice("avdigits", "ablation_alpha-1"),
        where={"method.alpha": alphas},
    )
    assert list(axes_of(found)[0].containers[0].lines[0].get_xdata()) == alphas
    assert said in found.caption


def test_a_sweep_without_its_reference_says_so(records, reader) -> None:
    changes = {"series": [{"label": "CGGM", "where": {"method.magnitude": True}}]}
    found = draw("cggm_fig5b", records, reader, choice("mosi"), **changes)
    assert axes_of(found)[0].containers == []
    assert "Missing: runs of Joint training, over which gains are stated; to make" in found.caption
    assert found.missing == ("python -m tune_mm.search --space ablation_lambda --set data=mosi",)
    shown = draw("cggm_fig5b", records, reader, choice("mosi"), gain=False, **changes)
    assert list(axes_of(shown)[0].containers[0].lines[0].get_xdata()) == [0.01, 0.2]
    assert "n = 2 to 3 seeds" in shown.caption
    assert (
        "Missing: more values of λ for CGGM; to make" in shown.caption
        and shown.missing == found.missing
    )


def test_a_gain_over_nothing_is_refused(records, reader) -> None:
    with pytest.raises(UserError, match="baseline: must say which runs the gain is over"):
        draw("cggm_fig5a", records, reader, choice("utd_mhad"), baseline={})


def test_seeds_that_the_reference_lacks_are_not_compared(reader) -> None:
    """At 5 no seed is shared with the reference."""
    key, metric = "method.alpha", "test/accuracy"
    found = [record(1, {key: "0.0", metric: 0.5}), record(2, {key: "0.0", metric: 0.6})]
    found += [record(1, {key: "4.0", metric: 0.7}), record(2, {key: "4.0", metric: 0.9})]
    found += [record(3, {key: "4.0", metric: 0.1}), record(3, {key: "5.0", metric: 0.9})]
    changes = {"where": {}, "gain": True, "baseline": {key: 0.0}, "reference": "joint", "scale": 1}
    series = [{"label": "DGL", "where": {key: [4.0, 5.0]}}]
    shown = draw("dgl_alpha", found, reader, choice("toy"), **changes, series=series)
    line = axes_of(shown)[0].containers[0].lines[0]
    near([*line.get_xdata(), *line.get_ydata()], [4.0, statistics.fmean([0.2, 0.3])])
    assert "left out for want of a seed in common with the reference: 5" in shown.caption


def test_an_end_as_high_and_values_that_are_not_finite(reader) -> None:
    key, metric = "method.alpha", "test/accuracy"
    values = {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.7, 5: math.nan}
    found = [record(1, {key: alpha, metric: value}) for alpha, value in values.items()]
    shown = draw("dgl_alpha", found, reader, choice("toy"), where={}, scale=1)
    assert list(axes_of(shown)[0].containers[0].lines[0].get_xdata()) == [1, 2, 3, 4]
    assert (
        "largest mean 0.70 at α = 2; no interior maximum: an end of the range is as high"
        in shown.caption
    )
    assert "DGL at 5: test/accuracy is not finite for seed 1" in shown.caption
    assert "n = 1 seed." in shown.caption


def test_the_papers_values_are_drawn_in_grey_and_belong_to_its_data_set(records, reader) -> None:
    found = draw("dgl_alpha", records, reader, choice("avdigits"))
    (axes,) = axes_of(found)
    paper = axes.lines[-1]
    assert list(zip(*paper.get_data(), strict=True)) == [
        (1, 73.35),
        (2, 75.46),
        (3, 76.13),
        (4, 77.48),
        (5, 77.08),
    ]
    assert legend(axes.get_legend()) == ["DGL, paper", "DGL"]
    assert "Grey: the paper's values, on cremad." in found.caption
    nothing = draw("dgl_alpha", [], reader, choice())
    assert legend(axes_of(nothing)[0].get_legend()) == ["DGL, paper"]
    assert [t.get_text() for t in axes_of(nothing)[0].texts] == ["no runs: see the caption"]
