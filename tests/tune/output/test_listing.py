"""The matrix of methods, as the command line prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_mm import plugins, search
from tune_mm.errors import UserError

ROWS = {
    "joint": (
        "1 or more",
        "classification, regression, segmentation",
        "any that its settings fit",
        "none",
    ),
    "greedy": (
        "2",
        "classification, regression",
        "mmtm",
        "norms of gradients and weights per step",
    ),
    "pmr": ("2 or more", "classification", "any that its settings fit", "training split per epoch"),
}


def test_every_method_has_a_row_with_what_it_supports(capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main(["--list", "methods"]) == 0
    cells = [
        [c.strip() for c in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if "│" in line
    ]
    found = {row[0]: row[1:] for row in cells if row[0]}
    assert set(found) == set(plugins.available("methods"))
    for name, (modalities, tasks, fusions, cost) in ROWS.items():
        assert found[name][:3] == [modalities, tasks, fusions]
        assert found[name][3].endswith(cost)
    assert all(all(row) for row in found.values())


def test_spaces_are_the_default_and_anything_else_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert search.main(["--list"]) == 0
    assert "dgl_avdigits" in capsys.readouterr().out
    with pytest.raises(UserError, match="--list: must be spaces or methods, got 'method'"):
        search.main(["--list", "method"])


def test_a_broken_file_of_ones_own_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "search_spaces"
    own.mkdir()
    (own / "broken.yaml").write_text("a: [\n")
    (own / "odd.yaml").write_text("domains: [1]\nfinals: no\n")
    (own / "empty_suite.yaml").write_text("spaces: []\n")
    monkeypatch.chdir(tmp_path)
    assert search.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert "cggm_iemocap" in shown
    assert "not listed: search_spaces/broken.yaml: not valid YAML" in shown
    assert "not listed: spaces: " in shown
