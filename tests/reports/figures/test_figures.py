"""What all figures have in common: their commands, their files, their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from tests.reports.figures.drawing import choice, draw, figure_names, report
from tune_mm.config import file_names
from tune_mm.errors import UserError
from tune_mm.reports.figures import figures
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun


@pytest.fixture(scope="module")
def reader(store_root: Path) -> Reader:
    return Reader.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root)


@pytest.fixture(scope="module")
def records(reader: Reader) -> Sequence[StoredRun]:
    return reader.records()


@pytest.mark.parametrize("name", figure_names())
def test_without_runs_a_figure_gives_its_commands(name: str, reader) -> None:
    """Each command names a space or a protocol that there is, and the data set."""
    found = draw(name, [], reader, choice("mosi"))
    assert found.name == name
    assert "Data: mosi (no runs)" in found.caption
    assert found.missing and all(command in found.caption for command in found.missing)
    for command in found.missing:
        words = command.split()
        assert words[:2] == ["python", "-m"] and "{" not in command
        if words[2] == "tune_mm.search":
            assert words[words.index("--space") + 1] in file_names("search_spaces")
            assert "data=mosi" in words
        else:
            assert (words[2], words[3]) == ("tune_mm.train", "mosi")


def test_png_and_svg(tmp_path: Path, records, reader) -> None:
    before = dict(mpl.rcParams)
    found = draw("dgl_fig3", records, reader, choice("avdigits"))
    png, svg = figures.save(found, tmp_path / "new")
    with Image.open(png) as image:
        assert image.width == round(6.9 * 200)
    text = svg.read_text(encoding="utf-8")
    assert ">Gradient norm of the encoder<" in text and ">Joint training<" in text
    again = figures.save(draw("dgl_fig3", records, reader, choice("avdigits")), tmp_path / "again")
    assert [p.read_bytes() for p in again] == [png.read_bytes(), svg.read_bytes()]
    assert dict(mpl.rcParams) == before


def test_a_folder_that_is_a_file(tmp_path: Path, records, reader) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="--out: cannot write to"):
        figures.save(draw("dgl_fig1", records, reader, choice("avdigits")), tmp_path / "file")


def test_a_name_is_made_of_the_paper_and_the_place() -> None:
    assert figures.sweep(report("cggm_fig5a"), [], None, choice()).name == "cggm_fig_5_a"
