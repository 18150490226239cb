"""Where data are looked for, what stands in for them, and who may write it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tune_mm import plugins
from tune_mm.data import base
from tune_mm.data.datasets.mosi import MosiConfig
from tune_mm.errors import UserError

CONFIG = MosiConfig()


def make(root: Path) -> Path:
    return base.make(
        CONFIG, root, base.plugin_of(CONFIG).options(CONFIG).changed(train=8, val=8, test=8)
    )


def real(root: Path) -> Path:
    """Files as the real ones look: without the marker."""
    place = make(root)
    (place / base.MARKER).unlink()
    return place


def test_a_data_error_is_the_users() -> None:
    assert issubclass(base.DataError, UserError)


def test_the_named_root_comes_before_the_environment_and_that_before_data(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, environment, local = real(tmp_path / "a"), real(tmp_path / "b"), real(Path("data"))
    assert base.resolve(CONFIG).root == local
    monkeypatch.setenv(base.ENV_ROOT, str(environment.parent))
    assert base.resolve(CONFIG).root == environment
    assert base.resolve(CONFIG, named.parent).root == named
    monkeypatch.setenv(base.ENV_ROOT, "")
    assert base.resolve(CONFIG).root == local


def test_a_root_that_was_named_must_exist(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        base.DataError, match=r"--data-root: must be an existing folder, got .*nowhere"
    ):
        base.resolve(CONFIG, tmp_path / "nowhere")
    monkeypatch.setenv(base.ENV_ROOT, str(tmp_path / "nowhere"))
    with pytest.raises(
        base.DataError, match=r"TUNE_MM_DATA: must be an existing folder, got .*nowhere"
    ):
        base.resolve(CONFIG)


def test_the_message_says_where_was_looked(tmp_path: Path, cache: Path) -> None:
    message = base.resolve(CONFIG, tmp_path).message
    assert f"no mosi_data.pkl in {tmp_path / 'mosi'} or {tmp_path} (--data-root)" in message


def test_require_real_refuses_stand_ins_and_says_what_goes_where(
    tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(
        base.DataError, match=f"put the files mosi_data.pkl into {tmp_path / 'mosi'}"
    ):
        base.resolve(CONFIG, tmp_path, require_real=True)
    assert not cache.exists()
    make(tmp_path)
    with pytest.raises(base.DataError, match=r"the data in .* are synthetic"):
        base.resolve(CONFIG, tmp_path, require_real=True)


def test_a_folder_with_other_files_is_incomplete(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "mosi").mkdir()
    (tmp_path / "mosi" / ".gitkeep").touch()
    assert base.resolve(CONFIG, tmp_path).kind == "synthetic"
    (tmp_path / "mosi" / "mosi_data_noalign.pkl").touch()
    with pytest.raises(base.DataError, match=r"no mosi_data\.pkl; found mosi_data_noalign\.pkl"):
        base.resolve(CONFIG, tmp_path)


def test_the_cache_is_keyed_by_the_configuration(cache: Path) -> None:
    other = MosiConfig(file="mosi_data_noalign.pkl")
    first, second = base.resolve(CONFIG).root, base.resolve(other).root
    assert first != second
    assert (second / "mosi_data_noalign.pkl").is_file()
    marker = json.loads((first / base.MARKER).read_text())
    assert marker["options"]["dominant"] == "text"


def test_a_cached_data_set_that_lost_its_files_is_named(cache: Path) -> None:
    root = base.resolve(CONFIG).root
    (root / "mosi_data.pkl").unlink()
    with pytest.raises(base.DataError, match="remove the folder and run again"):
        base.resolve(CONFIG)


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(base.ENV_CACHE, str(tmp_path / "file"))
    with pytest.raises(
        base.DataError, match=r"cannot be written.*TUNE_MM_CACHE names another cache folder"
    ):
        base.resolve(CONFIG)


def test_processes_at_once_end_with_one_complete_data_set(cache: Path) -> None:
    program = (
        "from tune_mm.data import base; from tune_mm.data.datasets.mosi import MosiConfig;"
        "source = base.resolve(MosiConfig()); base.load(MosiConfig(), source); print(source.root)"
    )
    path = str(Path(__file__).resolve().parents[2])
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    roots = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert roots == {str(base.resolve(CONFIG).root)}
    # Nothing temporary is left.
    assert len(list((cache / "synthetic").iterdir())) == 1


def test_the_loser_of_a_race_uses_the_winners_files(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = plugins.load("data", "mosi")
    write = plugin.write.__func__

    def slow(cls: type, config: MosiConfig, place: Path, options: base.SyntheticOptions) -> None:
        write(cls, config, place, options)
        winner = place.parent / place.name[1:].rpartition("-")[0]
        winner.mkdir()
        write(cls, config, winner, options)
        (winner / "winner").touch()

    monkeypatch.setattr(plugin, "write", classmethod(slow))
    root = base.resolve(CONFIG).root
    assert (root / "winner").is_file()
    assert [p.name for p in root.parent.iterdir()] == [root.name]


def test_a_vector_is_refused_where_the_format_holds_sequences(tmp_path: Path) -> None:
    options = base.plugin_of(CONFIG).options(CONFIG)
    with pytest.raises(base.DataError, match="shape of 'text' must be T x D"):
        base.make(CONFIG, tmp_path, options.changed(shapes={**options.shapes, "text": (8,)}))
