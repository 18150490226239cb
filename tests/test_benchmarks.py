"""What a benchmark compares must compute the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def test_cggm_equals_its_plain_transcription(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps in float64 without dropout: every parameter, classifiers included."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import step

    assert step.same_numbers() < 1e-9
