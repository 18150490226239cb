"""`python -m tune_mm.data extract`: what frozen models make of Food-101, kept through kills, named when it cannot be.

The models are tiny BERTs and ViTs with random weights, saved here; the expected features are computed by transformers
itself, sample by sample.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from tune_mm.data import _pretrained, base
from tune_mm.data.__main__ import main
from tune_mm.data._extract import stream
from tune_mm.data._features import Sample
from tune_mm.data._food_lists import LISTS, Layout, read
from tune_mm.data._food_synthetic import FIRST_WORD, WORDS
from tune_mm.data.food101 import Food101, Food101Config

pytest.importorskip("transformers")
library: Any = _pretrained.transformers()
pytestmark = pytest.mark.usefixtures("cache")

REPOSITORY = Path(__file__).resolve().parents[2]
VOCABULARY = 2048
TRAIN, ALL, LENGTH = 8, 16, 6


def bert(folder: Path, **changes: Any) -> Path:
    """A BERT whose vocabulary has the words of the made texts where BERT's own has ordinary ones."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = library.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **{**sizes, **changes})
    library.BertModel(config).save_pretrained(folder)
    words = [f"[unused{i}]" for i in range(VOCABULARY)]
    words[0], words[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words[FIRST_WORD : FIRST_WORD + len(WORDS)] = WORDS
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n")
    library.BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


def vit(folder: Path, processor: dict[str, Any] | None = None) -> Path:
    config = library.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    library.ViTModel(config).save_pretrained(folder)
    made = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "size": {"height": 16, "width": 16}}
    library.ViTImageProcessorPil(**made, **(processor or {})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    return {"image": vit(folder / "vit"), "text": bert(folder / "bert")}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make(tmp_path)


def make(root: Path, layout: Layout = "cggm") -> Path:
    """A data set of 8 / 4 / 4 images without features."""
    config = Food101Config(layout=layout)
    options = Food101.options(config).changed(train=TRAIN, val=4, test=4, classes=2)
    place = base.make(config, root, options)
    shutil.rmtree(place / "features")
    (place / base.MARKER).unlink()
    return place


def argv(place: Path, models: dict[str, Path], *more: str) -> list[str]:
    paths = ["--image-model", str(models["image"]), "--text-model", str(models["text"])]
    sizes = ["--text-tokens", str(LENGTH), "--batch", "3", "--device", "cpu"]
    return ["extract", "food101", "--root", str(place), *paths, *sizes, *more]


def store(place: Path, folder: str = "features") -> Path:
    (found,) = (p for p in (place / folder).iterdir() if p.is_dir() and not p.name.startswith("."))
    return found


def array(place: Path, name: str, folder: str = "features") -> Any:
    return np.load(store(place, folder) / f"{name}.npy")


def samples(place: Path, layout: Layout = "cggm") -> list[Sample]:
    return [sample for own in read(layout, place).values() for sample in own]


def by_transformers(models: dict[str, Path], made: Sequence[Sample]) -> tuple[Any, Any]:
    """Last hidden states of every image [N, T, D] and of every text [n, D] without padding, one by one."""
    image = library.ViTModel.from_pretrained(models["image"]).eval()
    prepare = library.ViTImageProcessorPil.from_pretrained(models["image"])
    text = library.BertModel.from_pretrained(models["text"]).eval()
    tokenizer = library.BertTokenizer.from_pretrained(models["text"])
    pictures, words = [], []
    with torch.no_grad():
        for sample in made:
            pixels = prepare(Image.open(sample.image), return_tensors="pt")["pixel_values"]
            pictures.append(image(pixels).last_hidden_state[0].numpy())
            numbers = tokenizer(sample.text, return_tensors="pt", truncation=True, max_length=LENGTH)
            words.append(text(**numbers).last_hidden_state[0].numpy())
    return np.stack(pictures), words


def test_features_are_the_models_last_hidden_states(place: Path, models: dict[str, Path]) -> None:
    assert main(argv(place, models)) == 0
    visual, text, mask = (array(place, name) for name in ("visual", "text", "mask"))
    pictures, words = by_transformers(models, samples(place))
    assert visual.dtype == text.dtype == np.float16 and visual.shape == (ALL, 5, 8) and text.shape == (ALL, LENGTH, 12)
    # fp16 has 11 bits: half a step is 2^-11 of the value
    np.testing.assert_allclose(visual, pictures, rtol=2**-10, atol=1e-5)
    for row, expected in enumerate(words):
        assert mask[row].sum() == len(expected)
        np.testing.assert_allclose(text[row, mask[row]], expected, rtol=2**-10, atol=1e-5)
        assert (text[row, ~mask[row]] == 0).all()


def test_a_run_finds_what_was_extracted(
    place: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv(place, models, "--views", "3")) == 0
    assert capsys.readouterr().out == f"{store(place)}: features of {ALL} samples, vit and bert, 3 views\n"
    data = base.load(Food101Config(), base.resolve(Food101Config(), place))
    assert data.kind == "real"
    assert data.spec.shapes == {"visual": (5, 8), "text": (LENGTH, 12)}
    assert data.notes[0] == f"features {store(place).name}: vit and bert, 3 views"
    # The marks of what the extraction did are gone: the lock stays, as locks do.
    assert sorted(p.suffix for p in (place / "features").iterdir()) == ["", ".lock"]


@pytest.mark.parametrize("layout", ["mmbt", "balancemm", "mla"])
def test_every_layout_gives_the_same_features(tmp_path: Path, models: dict[str, Path], layout: Layout) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other", layout)
    assert main(argv(one, models)) == main(argv(other, models, "--set", f"layout={layout}")) == 0
    for name in ("visual", "text", "mask"):
        np.testing.assert_array_equal(array(one, name), array(other, name))
    assert (array(other, "texts") == 0).all() == (layout == "mla")


def test_views_of_training_images_are_seeded_crops(place: Path, models: dict[str, Path]) -> None:
    assert main(argv(place, models, "--views", "3", "--seed", "5")) == 0
    views, plain = array(place, "views"), array(place, "visual")
    assert views.shape == (2, TRAIN, 5, 8)
    other = [a for k in range(2) for a in views[k]] + list(plain[:TRAIN])
    assert len({a.tobytes() for a in other}) == 3 * TRAIN
    model = _pretrained.ImageModel(models["image"], torch.device("cpu"))
    for row, sample in enumerate(samples(place)[:TRAIN]):
        pixels = model.view(Image.open(sample.image).convert("RGB"), stream(5, 2, sample.id))
        np.testing.assert_allclose(views[1, row], model.features(pixels[None])[0], rtol=2**-9, atol=1e-4)
    # Neither the batch nor the plain view depends on the views; another seed gives other crops.
    chosen = ["--views", "3", "--seed", "6", "--batch", "16", "--set", "features=other"]
    assert main(argv(place, models, *chosen)) == 0
    np.testing.assert_allclose(array(place, "visual", "other"), plain, rtol=2**-9, atol=1e-4)
    assert not np.allclose(array(place, "views", "other"), views, atol=1e-2)


def test_a_view_is_a_part_of_the_image_with_the_models_normalisation(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:60, :60].astype(np.uint8) * 4
    image = Image.fromarray(np.stack((rows, columns, 0 * rows), 2))
    model = _pretrained.ImageModel(vit(tmp_path / "vit"), torch.device("cpu"))
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
    mirrored = 0
    for k in range(40):
        pixels = model.view(image, stream(0, k, "x")).transpose(1, 2, 0) * std + mean
        place = pixels[..., :2] * 255 / 4  # of the row and the column that a pixel shows
        np.testing.assert_allclose(pixels[..., 2], 0, atol=1e-6)
        down, right = np.diff(place[..., 0], axis=0), np.diff(place[..., 1], axis=1)
        assert down.min() >= 0 and (right.min() >= 0 or right.max() <= 0)
        assert place.min() >= 0 and place.max() <= 59
        mirrored += bool(right.max() <= 0)
    # 20 of 40 give or take 4 standard deviations of 3.2
    assert abs(mirrored - 20) < 13


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the image model gets from now on; the first tells its shape."""
    sizes: list[int] = []
    whole = _pretrained.ImageModel.features

    def features(self: Any, pixels: Any) -> Any:
        sizes.append(len(pixels))
        return whole(self, pixels)

    monkeypatch.setattr(_pretrained.ImageModel, "features", features)
    return sizes


KILLED = """
import os, signal, sys
from tune_mm.data import _pretrained
from tune_mm.data.__main__ import main
whole, calls = _pretrained.ImageModel.features, []
def features(self, pixels):
    calls.append(len(pixels))
    if len(calls) > int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, pixels)
_pretrained.ImageModel.features = features
main(sys.argv[2:])
"""


def test_a_killed_extraction_goes_on_where_it_was(
    place: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One call tells the model's shape; 16 plain images are 6 batches of 3, 8 others 3 batches: killed in the 8th of 9.
    command = argv(place, models, "--views", "2")
    done = subprocess.run([sys.executable, "-c", KILLED, "8", *command], cwd=REPOSITORY, check=False)
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
    place: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, text = (samples(place)[row] for row in (4, 9))
    cut.image.write_bytes(cut.image.read_bytes()[:400])
    text.image.write_text("no picture")
    assert main(argv(place, models)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"2 of {ALL} samples cannot be read: {cut.image}: is not a readable image: ")
    assert str(text.image) in error and "--skip-bad leaves them out; all others are done and kept" in error
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
    message = (
        f"1 of {ALL} samples cannot be read: {gone.image}: No such file or directory; --skip-bad leaves them out\n"
    )
    assert capsys.readouterr().err == message
    assert not (place / "features").exists()
    assert main(argv(place, models, "--skip-bad")) == 0
    assert f"left out: {gone.id}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("numbers", "reason"), [([[5000]], "between 0 and 2047, got 101 to 5000"), ([[0.5]], "float64")]
)
def test_token_numbers_that_the_model_does_not_know(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], numbers: list[Any], reason: str
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


def test_the_key_tells_content_and_settings_apart(place: Path, models: dict[str, Path], tmp_path: Path) -> None:
    keys = list[str]()

    def key(*more: str, **other: Path) -> None:
        folder = f"k{len(keys)}"
        assert main(argv(place, {**models, **other}, "--set", f"features={folder}", *more)) == 0
        keys.append(store(place, folder).name)

    key()
    key("--batch", "16", "--seed", "3")  # neither matters for one view
    shutil.copytree(models["image"], tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("more")
    key(image=tmp_path / "copy")
    assert len(set(keys)) == 1
    key("--text-tokens", "5")
    key("--views", "2")
    key("--views", "2", "--seed", "1")
    torch.manual_seed(1)
    key(text=bert(tmp_path / "bert"))
    picture = samples(place)[0].image
    picture.write_bytes(samples(place)[1].image.read_bytes())
    key()
    assert len(set(keys)) == 6


def test_models_that_cannot_be_taken_are_named(
    place: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**other: Path) -> str:
        assert main(argv(place, {**models, **other})) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert refused(image=tmp_path).startswith("--image-model: must be a folder with config.json and model.safetensors")
    pickled = tmp_path / "pickled"
    shutil.copytree(models["text"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "--text-model: no weights *.safetensors" in refused(text=pickled)
    deeper = tmp_path / "deeper"
    shutil.copytree(models["text"], deeper)
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    assert "the weights are not those of config.json, the first missing: encoder.layer.1." in refused(text=deeper)
    damaged = tmp_path / "damaged"
    shutil.copytree(models["image"], damaged)
    (damaged / "model.safetensors").write_bytes(b"nothing")
    assert f"--image-model: {damaged}: AutoModel cannot load it: " in refused(image=damaged)
    assert f"--image-model: {models['text']}: AutoImageProcessor cannot load it: " in refused(image=models["text"])
    assert "--text-tokens: must be at most the 32 of the model" in _after(place, models, capsys, "--text-tokens", "33")


def _after(place: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert main(argv(place, models, *more)) == 2
    return capsys.readouterr().err


def test_mistakes_of_the_command_line(
    place: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
    assert "features are extracted with transformers: pip install 'tune_mm[features]'" in _after(place, models, capsys)


def test_lists_without_an_entry_are_refused(
    place: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (place / LISTS["cggm"].format("test")).write_text("[]")
    assert "test.json: must list at least one sample, got none" in _after(place, models, capsys)
