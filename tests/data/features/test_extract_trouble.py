"""`python -m tune_mm.data extract`: kept through kills, and what cannot be read, loaded or asked
for is named.
"""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from tests.data.features.pretrained import ALL, TRAIN, argv, array, counted, make, samples, store
from tune_mm.data import base
from tune_mm.data.__main__ import main
from tune_mm.data.datasets.food101 import Food101Config
from tune_mm.data.features import pretrained
from tune_mm.data.features.food_lists import LISTS

pytestmark = pytest.mark.usefixtures("cache")

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make(tmp_path)


KILLED = """
import os, signal, sys
from tune_mm.data.features import pretrained as models
from tune_mm.data.__main__ import main
whole, calls = models.ImageModel.features, []
def features(self, pixels):
    calls.append(len(pixels))
    if len(calls) > int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, pixels)
models.ImageModel.features = features
main(sys.argv[2:])
"""


def test_a_killed_extraction_goes_on_where_it_was(
    place: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One call tells the model's shape; 16 plain images are 6 batches of 3, 8 others 3 batches:
    # killed in the 8th of 9.
    command = argv(place, models, "--views", "2")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "8", *command], cwd=REPOSITORY, check=False
    )
    assert done.returncode == -9
    (part,) = (place / "features").glob(".*.part")
    assert json.loads((part / "progress.json").read_text())["rows"] == {"0": ALL, "1": ALL, "2": 3}
    assert main(["describe", "food101", "--root", str(place)]) == 2

    sizes = counted(monkeypatch)
    assert main(command) == 0
    assert sizes == [1, 3, 2]
    assert not part.exists()
    assert main([*command, "--set", "features=whole"]) == 0
    for name in ("visual", "views", "text", "mask", "texts"):
        np.testing.assert_array_equal(array(place, name), array(place, name, "whole"))
    assert store(place).name == store(place, "whole").name
    # What is there is not made again.
    count = len(sizes)
    assert main(command) == 0
    assert len(sizes) == count


def test_a_damaged_image_is_named_and_what_was_done_is_kept(
    place: Path,
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut, text = (samples(place)[row] for row in (4, 9))
    cut.image.write_bytes(cut.image.read_bytes()[:400])
    text.image.write_text("no picture")
    assert main(argv(place, models)) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"2 of {ALL} samples cannot be read: {cut.image}: is not a readable image: "
    )
    assert f"{text.image}: is not a readable image: of no known kind; " in error
    assert (
        "--skip-bad leaves them out; all others are done and kept, also when these are mended\n"
        in error
    )
    calls = counted(monkeypatch)
    assert main(argv(place, models, "--skip-bad")) == 0
    assert calls == [1]
    out = capsys.readouterr().out
    assert f"left out: {cut.id}: {cut.image}: is not a readable image" in out
    assert f"features of {ALL - 2} samples" in out
    data = base.load(Food101Config(), base.resolve(Food101Config(), place))
    assert set(data.dropped) == {cut.id, text.id}
    assert [len(s) for s in data.splits.values()] == [TRAIN - 1, 3, 4]


def test_a_missing_image_is_named_before_anything_is_computed(
    place: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    gone = samples(place)[-1]
    gone.image.unlink()
    assert main(argv(place, models)) == 2
    why = f"{gone.image}: No such file or directory"
    message = f"1 of {ALL} samples cannot be read: {why}; --skip-bad leaves them out\n"
    assert capsys.readouterr().err == message
    assert not (place / "features").exists()
    assert main(argv(place, models, "--skip-bad")) == 0
    assert f"left out: {gone.id}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (MemoryError(), "too little memory"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_a_failure_that_passes_makes_no_bad_image(
    place: Path,
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    reason: str,
) -> None:
    picture, reads, whole = samples(place)[7].image, list[Path](), Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        reads.extend([path] if path == picture else [])
        if path == picture and len(reads) == 2:  # the first is for the key
            raise failure
        return whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        assert main(argv(place, models, "--skip-bad")) == 2
    message = f"{picture}: cannot be read now: {reason}; what is done is kept, and the same command resumes\n"
    assert capsys.readouterr().err == message
    (part,) = (place / "features").glob(".*.part")
    left = json.loads((part / "progress.json").read_text())
    assert (
        left["rows"] == {"0": ALL, "1": 6} and left["bad"] == {}
    )  # 6: two batches before that of row 7

    calls = counted(monkeypatch)
    assert main(argv(place, models)) == 0
    assert calls == [1, 3, 3, 3, 1]
    assert "left out" not in capsys.readouterr().out
    assert main(argv(place, models, "--set", "features=whole")) == 0
    np.testing.assert_array_equal(array(place, "visual"), array(place, "visual", "whole"))


def test_a_file_that_the_disk_does_not_give_stops_before_anything_is_computed(
    place: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    picture = samples(place)[3].image
    picture.unlink()
    picture.symlink_to("/proc/self/mem")  # whose first page no process has: an input/output error
    assert main(argv(place, models, "--skip-bad")) == 2
    assert capsys.readouterr().err.startswith(
        f"{picture}: cannot be read now: Input/output error; "
    )
    assert not (place / "features").exists()


def test_too_little_memory_for_a_batch_is_told_with_what_needs_less(
    place: Path,
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = pretrained.ImageModel.features

    def features(self: Any, pixels: Any) -> Any:
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, pixels)

    monkeypatch.setattr(pretrained.ImageModel, "features", features)
    assert main(argv(place, models)) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "food101: too little memory for extracting features (a smaller --batch than 3 needs less); "
    )
    assert main([*argv(place, models), "--batch", "2"]) == 0
    assert len(array(place, "visual")) == ALL


def test_a_folder_in_the_place_of_an_image_is_left_out(
    place: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    picture = samples(place)[3].image
    picture.unlink()
    picture.mkdir()
    assert main(argv(place, models, "--skip-bad")) == 0
    assert f"{picture}: Is a directory\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("numbers", "reason"), [([[5000]], "between 0 and 2047, got 101 to 5000"), ([[0.5]], "float64")]
)
def test_token_numbers_that_the_model_does_not_know(
    tmp_path: Path,
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    numbers: list[Any],
    reason: str,
) -> None:
    place = make(tmp_path, "mla")
    path = samples(place, "mla")[2].text
    assert isinstance(path, Path)
    np.save(path, np.array(numbers))
    assert main(argv(place, models, "--set", "layout=mla")) == 2
    error = capsys.readouterr().err
    assert f"{path}: are no readable token numbers: " in error and reason in error


def test_another_process_at_the_same_store_is_told(
    place: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv(place, models)) == 0
    final = store(place)
    shutil.rmtree(final)
    with FileLock(final.with_name(f"{final.name}.lock")):
        assert main(argv(place, models)) == 2
    assert f"{final}: another process is extracting these features" in capsys.readouterr().err


def test_models_that_cannot_be_taken_are_named(
    place: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**other: Path) -> str:
        assert main(argv(place, {**models, **other})) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert refused(image=tmp_path).startswith(
        "--image-model: must be a folder with config.json and model.safetensors"
    )
    pickled = tmp_path / "pickled"
    shutil.copytree(models["text"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "--text-model: no weights *.safetensors" in refused(text=pickled)
    deeper = tmp_path / "deeper"
    shutil.copytree(models["text"], deeper)
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    assert (
        "the weights are not those of config.json, the first missing: encoder.layer.1."
        in refused(text=deeper)
    )
    damaged = tmp_path / "damaged"
    shutil.copytree(models["image"], damaged)
    (damaged / "model.safetensors").write_bytes(b"nothing")
    assert f"--image-model: {damaged}: AutoModel cannot load it: " in refused(image=damaged)
    assert f"--image-model: {models['text']}: AutoImageProcessor cannot load it: " in refused(
        image=models["text"]
    )
    assert "--text-tokens: must be at most the 32 of the model" in _after(
        place, models, capsys, "--text-tokens", "33"
    )


def _after(
    place: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], *more: str
) -> str:
    assert main(argv(place, models, *more)) == 2
    return capsys.readouterr().err


def test_mistakes_of_the_command_line(
    place: Path,
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _after(place, models, capsys, "--views", "0") == "--views: must be >= 1, got 0\n"
    assert "--device nowhere: " in _after(place, models, capsys, "--device", "nowhere")
    wrong = argv(place, models)
    wrong[1] = "mosi"
    assert main(wrong) == 2
    assert (
        "mosi: is read as it is, nothing is to be extracted; data sets with features: food101"
        in capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "features are extracted with transformers: pip install 'tune_mm[features]'" in _after(
        place, models, capsys
    )


def test_lists_without_an_entry_are_refused(
    place: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (place / LISTS["cggm"].format("test")).write_text("[]")
    assert "test.json: must list at least one sample, got none" in _after(place, models, capsys)
