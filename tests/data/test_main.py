"""`python -m tune_mm.data`: what it prints, writes and refuses."""

from pathlib import Path

import pytest

from tune_mm import plugins
from tune_mm.data import base
from tune_mm.data.__main__ import main

SMALL = ["--train", "40", "--val", "20", "--test", "20"]


def test_list_names_every_data_set_and_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in plugins.available("data"):
        assert f"\n{name} " in f"\n{out}"
    assert "iemocap/A/comparE.h5" in out
    # A summary of two lines is shown as a whole.
    assert "a folder of frames; no code needed.\n" in out


def test_make_and_describe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        *SMALL,
        "--dominant",
        "audio",
        "--shape",
        "audio=9x12",
        "--imbalance",
        "0.3",
        "--classes",
        "3",
    ]
    assert main(["make", "iemocap", "--root", str(tmp_path), *options]) == 0
    assert (
        "40 / 20 / 20 samples; audio dominates (imbalance 0.3, noise 1.0, seed 0)"
        in capsys.readouterr().out
    )
    assert main(["describe", "iemocap", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "SYNTHETIC" in out
    assert "task: classification, 3 classes" in out
    assert "audio: [9, 12]" in out
    assert "train: 40 samples, per class 0:14 1:13 2:13" in out


def test_a_configuration_names_a_data_set_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["make", "utd_mhad", "--root", str(tmp_path), *SMALL]) == 0
    assert (tmp_path / "utd_mhad" / "train.npz").is_file()
    assert main(["describe", "utd_mhad", "--root", str(tmp_path)]) == 0
    assert "skeleton: [" in capsys.readouterr().out


def test_settings_of_the_data_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--set", "folder=mine", "--set", "modalities=[x, y]", "--set", "task=regression"]
    assert main(["make", "npz", "--root", str(tmp_path), *SMALL, *chosen, "--shape", "x=7"]) == 0
    assert main(["describe", "npz", "--root", str(tmp_path), *chosen]) == 0
    out = capsys.readouterr().out
    assert "task: regression\nx: [7]\n" in out
    assert "values -3 to 3" in out


def test_describe_can_refuse_synthetic_data(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["describe", "mosi", "--require-real"]) == 2
    assert "mosi: real data are required, but no mosi_data.pkl in " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["iemocp"], "no data set or configuration 'iemocp'; nearest 'iemocap'; available: "),
        (["iemocap", "--set", "fold=11"], "data.fold: must be <= 10, got 11"),
        (["iemocap", "--set", "fodl=1"], "data.fodl: no such key; nearest 'data.fold'"),
        (["iemocap", "--set", "fold"], "must be key=value"),
        (
            ["iemocap", "--shape", "txt=3x4"],
            "no modality 'txt'; nearest 'text'; available: text, audio, visual",
        ),
        (
            ["iemocap", "--shape", "text=ax4"],
            "--shape 'text=ax4': must be modality=TxD or modality=D",
        ),
        (["iemocap", "--shape", "text=4"], "shape of 'text' must be T x D, got (4,)"),
        (["iemocap", "--imbalance", "2"], "imbalance must be between 0 and 1 inclusive, got 2.0"),
        (["iemocap", "--train", "3"], "train, val and test must be >= 2 per class"),
    ],
)
def test_mistakes_end_in_one_message_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(["make", *argv, "--root", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_make_refuses_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["make", "mosi", "--root", str(tmp_path), *SMALL]
    assert main(argv) == 0
    before = (tmp_path / "mosi" / "mosi_data.pkl").read_bytes()
    assert main([*argv, "--seed", "1"]) == 2
    assert "exists already and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "mosi" / "mosi_data.pkl").read_bytes() == before
    assert base.MARKER in {p.name for p in (tmp_path / "mosi").iterdir()}
