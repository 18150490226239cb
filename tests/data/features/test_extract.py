"""`python -m tune_mm.data extract`: what frozen models make of Food-101.

The expected features are computed by transformers itself, sample by sample.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.features.pretrained import (
    ALL,
    LENGTH,
    TRAIN,
    argv,
    array,
    bert,
    library,
    make,
    samples,
    store,
    vit,
)
from tune_mm.data import base
from tune_mm.data.__main__ import main
from tune_mm.data.datasets.food101 import Food101Config
from tune_mm.data.features import pretrained
from tune_mm.data.features.extract import stream
from tune_mm.data.features.food_lists import LISTS, Layout
from tune_mm.data.features.store import Sample

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make(tmp_path)


def by_transformers(models: dict[str, Path], made: Sequence[Sample]) -> tuple[Any, Any]:
    """Last hidden states of every image [N, T, D] and of every text [n, D] without padding, one by
    one.
    """
    image = library.ViTModel.from_pretrained(models["image"]).eval()
    prepare = library.ViTImageProcessorPil.from_pretrained(models["image"])
    text = library.BertModel.from_pretrained(models["text"]).eval()
    tokenizer = library.BertTokenizer.from_pretrained(models["text"])
    pictures, words = [], []
    with torch.no_grad():
        for sample in made:
            pixels = prepare(Image.open(sample.image), return_tensors="pt")["pixel_values"]
            pictures.append(image(pixels).last_hidden_state[0].numpy())
            numbers = tokenizer(
                sample.text, return_tensors="pt", truncation=True, max_length=LENGTH
            )
            words.append(text(**numbers).last_hidden_state[0].numpy())
    return np.stack(pictures), words


def test_features_are_the_models_last_hidden_states(place: Path, models: dict[str, Path]) -> None:
    assert main(argv(place, models)) == 0
    visual, text, mask = (array(place, name) for name in ("visual", "text", "mask"))
    pictures, words = by_transformers(models, samples(place))
    assert (
        visual.dtype == text.dtype == np.float16
        and visual.shape == (ALL, 5, 8)
        and text.shape == (ALL, LENGTH, 12)
    )
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
    assert (
        capsys.readouterr().out
        == f"{store(place)}: features of {ALL} samples, vit and bert, 3 views\n"
    )
    data = base.load(Food101Config(), base.resolve(Food101Config(), place))
    assert data.kind == "real"
    assert data.spec.shapes == {"visual": (5, 8), "text": (LENGTH, 12)}
    assert data.notes[0] == f"features {store(place).name}: vit and bert, 3 views"
    # The marks of what the extraction did are gone: the lock stays, as locks do.
    assert sorted(p.suffix for p in (place / "features").iterdir()) == ["", ".lock"]


@pytest.mark.parametrize("layout", ["mmbt", "balancemm", "mla"])
def test_every_layout_gives_the_same_features(
    tmp_path: Path, models: dict[str, Path], layout: Layout
) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other", layout)
    assert main(argv(one, models)) == main(argv(other, models, "--set", f"layout={layout}")) == 0
    for name in ("visual", "text", "mask"):
        np.testing.assert_array_equal(array(one, name), array(other, name))
    assert (array(other, "texts") == 0).all() == (layout == "mla")


@pytest.mark.parametrize("layout", ["cggm", "mmbt"])
def test_half_a_character_in_a_text_is_read_as_a_question_mark(
    tmp_path: Path, models: dict[str, Path], layout: Layout
) -> None:
    place = make(tmp_path, layout)
    first = samples(place, layout)[0]
    path = place / LISTS[layout].format("train")

    def extracted(said: str, folder: str) -> Any:
        """The first text's features when the list says `said`, written as JSON writes it."""
        path.write_text(whole.replace(word, json.dumps(said)[1:-1], 1))
        assert (
            main(argv(place, models, "--set", f"layout={layout}", "--set", f"features={folder}"))
            == 0
        )
        config = Food101Config(layout=layout, features=folder)
        base.load(
            config, base.resolve(config, place)
        )  # raises where a run does not find these texts
        return array(place, "text", folder)[0]

    assert isinstance(first.text, str)
    whole, word = path.read_text(), first.text.split()[0]
    half, mark, none = extracted("\ud83d", "half"), extracted("?", "mark"), extracted("pan", "none")
    np.testing.assert_array_equal(half, mark)
    assert not np.array_equal(half, none)


def test_views_of_training_images_are_seeded_crops(place: Path, models: dict[str, Path]) -> None:
    assert main(argv(place, models, "--views", "3", "--seed", "5")) == 0
    views, plain = array(place, "views"), array(place, "visual")
    assert views.shape == (2, TRAIN, 5, 8)
    other = [a for k in range(2) for a in views[k]] + list(plain[:TRAIN])
    assert len({a.tobytes() for a in other}) == 3 * TRAIN
    model = pretrained.ImageModel(models["image"], torch.device("cpu"))
    for row, sample in enumerate(samples(place)[:TRAIN]):
        pixels = model.view(Image.open(sample.image).convert("RGB"), stream(5, 2, sample.id))
        np.testing.assert_allclose(
            views[1, row], model.features(pixels[None])[0], rtol=2**-9, atol=1e-4
        )
    # Neither the batch nor the plain view depends on the views; another seed gives other crops.
    chosen = ["--views", "3", "--seed", "6", "--batch", "16", "--set", "features=other"]
    assert main(argv(place, models, *chosen)) == 0
    np.testing.assert_allclose(array(place, "visual", "other"), plain, rtol=2**-9, atol=1e-4)
    assert not np.allclose(array(place, "views", "other"), views, atol=1e-2)


def test_a_view_is_a_part_of_the_image_with_the_models_normalisation(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:60, :60].astype(np.uint8) * 4
    image = Image.fromarray(np.stack((rows, columns, 0 * rows), 2))
    model = pretrained.ImageModel(vit(tmp_path / "vit"), torch.device("cpu"))
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


def test_the_key_tells_content_and_settings_apart(
    place: Path, models: dict[str, Path], tmp_path: Path
) -> None:
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
