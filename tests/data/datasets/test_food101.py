"""UPMC Food-101: the four layouts, the store of features that trials read, and what goes wrong with
either.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import bound
from tune_mm.config import Config, load_config
from tune_mm.core.run import Run
from tune_mm.core.types import Dataset, Stored
from tune_mm.data import base
from tune_mm.data.base import DataError
from tune_mm.data.datasets.food101 import Food101, Food101Config
from tune_mm.data.features.food_lists import CLASSES, LISTS, Layout

pytestmark = pytest.mark.usefixtures("cache")
SIZES = {"train": 40, "val": 24, "test": 16}
LAYOUTS = tuple(LISTS)
REPOSITORY = Path(__file__).resolve().parents[3]


def make(root: Path, layout: Layout = "cggm", **options: Any) -> Path:
    config = Food101Config(layout=layout)
    return base.make(config, root, Food101.options(config).changed(**{**SIZES, **options}))


def load(place: Path, layout: Layout = "cggm", **config: Any) -> Dataset:
    return Food101.load(Food101Config(layout=layout, **config), place)


def store_of(place: Path) -> Path:
    (found,) = (p for p in (place / "features").iterdir() if p.is_dir())
    return found


def rows_of(place: Path, ids: tuple[str, ...]) -> list[int]:
    known = json.loads((store_of(place) / "meta.json").read_text())["ids"]
    return [known.index(name) for name in ids]


def without(place: Path, *names: str) -> None:
    """Make the store say that the images of these samples could not be read."""
    path = store_of(place) / "meta.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "bad": dict.fromkeys(names, "is no image")})
    )


def test_101_classes_in_alphabetical_order(tmp_path: Path) -> None:
    task = load(make(tmp_path)).spec.task
    assert (task.kind, task.outputs) == ("classification", 101)
    assert list(task.class_names) == sorted(set(task.class_names))
    assert (task.class_names[0], task.class_names[50], task.class_names[-1]) == (
        "apple_pie",
        "grilled_salmon",
        "waffles",
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_samples(tmp_path: Path, layout: Layout) -> None:
    one, other = load(make(tmp_path / "one")), load(make(tmp_path / layout, layout), layout)
    for split, count in SIZES.items():
        a, b = one.splits[split], other.splits[split]
        assert len(a) == len(b) == count
        assert [Path(i).name for i in a.ids] == [Path(i).name for i in b.ids]
        # The name of a made image starts with its class.
        assert [CLASSES[k] for k in b.target.tolist()] == [Path(i).stem[:-6] for i in b.ids]
        for m, x in a.batch(torch.arange(count)).inputs.items():
            assert torch.equal(x.value, b.batch(torch.arange(count)).inputs[m].value)


@pytest.mark.parametrize(("start", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_titles_without_headings_are_read_in_the_order_of_their_columns(
    tmp_path: Path, start: str, end: str
) -> None:
    place = make(tmp_path, "balancemm")
    whole = load(place, "balancemm")
    for path in (place / "texts").iterdir():
        heading, *lines = path.read_text().splitlines()
        assert heading == "Image_path,text,label"
        path.write_text(start + "".join(f"{line}{end}" for line in lines), newline="")
    data = load(place, "balancemm")
    for name, split in whole.splits.items():
        assert data.splits[name].ids == split.ids
        assert torch.equal(data.splits[name].target, split.target)


def test_a_text_between_quotes_holds_commas_without_headings_too(tmp_path: Path) -> None:
    place = make(tmp_path, "balancemm")
    titles = '"a.JPG","rice, fish, ""nori""",sushi\nb.jpg,Tacos al pastor,tacos\n'
    (place / "texts" / "train_titles.csv").write_text(titles)
    train = Food101.samples(Food101Config(layout="balancemm"), place)["train"]
    assert [(s.id, s.text, s.label) for s in train] == [
        ("images/train/sushi/a.JPG", 'rice, fish, "nori"', "sushi"),
        ("images/train/tacos/b.jpg", "Tacos al pastor", "tacos"),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_dev_list_validation_is_a_stratified_part_of_train(
    tmp_path: Path, layout: Layout
) -> None:
    place = make(tmp_path, layout, train=60)
    test = load(place, layout).splits["test"].ids
    (place / LISTS[layout].format("dev")).unlink()
    data = load(place, layout, val_fraction=0.2)
    assert [len(s) for s in data.splits.values()] == [48, 12, 16]
    assert data.splits["test"].ids == test
    # 60 samples of six classes, ten each: two of each are held out
    assert (
        torch.bincount(data.splits["val"].target)[data.splits["val"].target.unique()].tolist()
        == [2] * 6
    )
    assert (
        "no published validation split: 12 of 60 train samples held out (stratified by label, seed 0)"
        in data.notes
    )
    assert set(load(place, layout, val_fraction=0.2, split_seed=1).splits["val"].ids) != set(
        data.splits["val"].ids
    )


def test_batches_are_the_rows_of_the_store_as_float32(tmp_path: Path) -> None:
    place = make(tmp_path)
    data = load(place)
    visual, text, mask = (
        np.load(store_of(place) / f"{name}.npy") for name in ("visual", "text", "mask")
    )
    assert data.spec.shapes == {"visual": visual.shape[1:], "text": text.shape[1:]}
    for split in data.splits.values():
        index = torch.tensor([3, 0, 3])
        rows = [rows_of(place, split.ids)[i] for i in index.tolist()]
        found = split.batch(index).inputs
        assert found["visual"].mask is None and found["visual"].value.dtype == torch.float32
        np.testing.assert_array_equal(
            found["visual"].value.numpy(), visual[rows].astype(np.float32)
        )
        np.testing.assert_array_equal(found["text"].value.numpy(), text[rows].astype(np.float32))
        assert found["text"].mask is not None
        np.testing.assert_array_equal(found["text"].mask.numpy(), mask[rows])


def test_training_batches_draw_a_view_per_sample_and_evaluation_takes_the_plain_one(
    tmp_path: Path,
) -> None:
    place = make(tmp_path)
    plain, views = (np.load(store_of(place) / f"{name}.npy") for name in ("visual", "views"))
    assert views.shape == (1, 40, *plain.shape[1:])
    data = load(place)
    split, index = data.splits["train"], torch.zeros(400, dtype=torch.int64)
    row = rows_of(place, split.ids)[0]
    drawn = split.batch(index, torch.Generator().manual_seed(0)).inputs["visual"].value.numpy()
    first = [np.array_equal(x, plain[row]) for x in drawn]
    assert all(
        same or np.array_equal(x, views[0, row]) for x, same in zip(drawn, first, strict=True)
    )
    # 200 of 400 give or take 4 standard deviations of 10
    assert abs(sum(first) - 200) < 40
    val = data.splits["val"].inputs["visual"]
    assert isinstance(val, Stored)
    some = torch.arange(20)
    assert torch.equal(val.take(some, torch.Generator().manual_seed(0)).value, val.take(some).value)
    off = load(place, augment=False).splits["train"]
    assert torch.equal(
        off.batch(some, torch.Generator()).inputs["visual"].value,
        off.batch(some).inputs["visual"].value,
    )


def test_without_features_the_exact_command_is_named(tmp_path: Path) -> None:
    place = make(tmp_path, "mmbt")
    shutil.rmtree(place / "features")
    command = f"python -m tune_mm.data extract food101 --root {place} --set layout=mmbt "
    command += "--image-model PATH --text-model PATH"
    with pytest.raises(DataError) as error:
        load(place, "mmbt")
    assert (
        str(error.value)
        == f"{place / 'features'}: no features of these 80 samples; make them once: {command}"
    )


def test_features_of_other_texts_or_samples_are_not_taken(tmp_path: Path) -> None:
    place = make(tmp_path, "mmbt")
    path, key = place / "train.jsonl", store_of(place).name
    whole = path.read_text()
    first = json.loads(whole.splitlines()[0])
    path.write_text(json.dumps({**first, "text": "another page"}) + "\n" + whole.partition("\n")[2])
    with pytest.raises(
        DataError, match=f"{key} is made of other texts, the first that of '{first['img']}'"
    ):
        load(place, "mmbt")
    path.write_text(whole + json.dumps({**first, "img": "images/train/new.jpg"}) + "\n")
    with pytest.raises(
        DataError, match=f"{key} is without 1 of them, the first 'images/train/new.jpg'"
    ):
        load(place, "mmbt")
    path.write_text(whole.partition("\n")[2])  # fewer samples than were extracted
    assert len(load(place, "mmbt").splits["train"]) == 39


def test_of_several_stores_one_is_chosen_by_its_key(tmp_path: Path) -> None:
    place = make(tmp_path)
    store = store_of(place)
    shutil.copytree(store, store.with_name("00ff" * 4))
    with pytest.raises(DataError, match=f"choose with data.store=KEY: .*{store.name}"):
        load(place)
    data = load(place, store="00ff")
    assert data.notes[0].startswith("features 00ff00ff00ff00ff: ")
    with pytest.raises(
        DataError, match="no features whose key starts with '1234' of these 80 samples"
    ):
        load(place, store="1234")


def test_features_may_lie_elsewhere(tmp_path: Path) -> None:
    place = make(tmp_path / "data")
    shutil.move(place / "features", tmp_path / "fast")
    assert len(load(place, features=str(tmp_path / "fast")).splits["train"]) == 40


def test_a_copy_in_the_folder_that_is_named_goes_before_the_original(tmp_path: Path) -> None:
    place, fast = make(tmp_path / "data"), tmp_path / "fast"
    key = store_of(place).name
    shutil.copytree(store_of(place), fast / key)
    # Twice the original's values tell which of the two is read.
    np.save(fast / key / "visual.npy", 2 * np.load(store_of(place) / "visual.npy"))
    some = torch.arange(8)
    original = load(place).splits["val"].batch(some).inputs["visual"].value
    for chosen in ("", key, key[:5]):
        data = load(place, features=str(fast), store=chosen)
        torch.testing.assert_close(
            data.splits["val"].batch(some).inputs["visual"].value, 2 * original
        )
    # A second store beside the original is none to choose from while the named folder has one.
    shutil.copytree(store_of(place), place / "features" / ("00ff" * 4))
    assert load(place, features=str(fast)).notes[0].startswith(f"features {key}: ")
    with pytest.raises(DataError, match=f"{place / 'features'}: several stores of features fit"):
        load(place, features=str(tmp_path / "empty"))


def test_what_could_not_be_read_is_left_out_and_listed(tmp_path: Path) -> None:
    place = make(tmp_path)
    name = load(place).splits["val"].ids[2]
    without(place, name)
    data = load(place)
    assert data.dropped == {name: "is no image"}
    assert len(data.splits["val"]) == 23 and name not in data.splits["val"].ids
    assert "1 of 80 samples could not be read and are left out" in data.notes


def test_who_is_held_out_does_not_depend_on_what_could_be_read(tmp_path: Path) -> None:
    place = make(tmp_path, train=60)
    (place / LISTS["cggm"].format("dev")).unlink()
    whole = load(place).splits
    for names in ([whole["train"].ids[0]], [whole["val"].ids[1], *whole["train"].ids[5:9]]):
        without(place, *names)
        data = load(place)
        for split in ("train", "val", "test"):
            assert data.splits[split].ids == tuple(i for i in whole[split].ids if i not in names)
        assert (
            "no published validation split: 6 of 60 train samples held out (stratified by label, seed 0)"
            in data.notes
        )


def test_a_split_of_which_nothing_could_be_read_is_named(tmp_path: Path) -> None:
    place = make(tmp_path)
    without(place, *load(place).splits["val"].ids)
    with pytest.raises(DataError, match=f"{store_of(place).name}: no sample of val could be read"):
        load(place)


@pytest.mark.parametrize(
    "file", ["visual.npy", "views.npy", "text.npy", "mask.npy", "texts.npy", "meta.json"]
)
def test_a_damaged_store_is_named(tmp_path: Path, file: str) -> None:
    place = make(tmp_path)
    path = store_of(place) / file
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"{path.parent.name}: this store is damaged \({file}\)"):
        load(place)


def test_lists_of_another_layout_are_told(tmp_path: Path) -> None:
    place = make(tmp_path, "mla")
    with pytest.raises(DataError) as error:
        base.resolve(Food101Config(), tmp_path)
    assert (
        str(error.value)
        == f"food101: no train.json in {place}, but my_train_food.txt: use data.layout=mla"
    )


DISH = {"id": "a", "text_tokens": ["a"], "img_path": "a.jpg", "label": "sushi"}


@pytest.mark.parametrize(
    ("layout", "content", "message"),
    [
        (
            "cggm",
            json.dumps([{**DISH, "label": "suhsi"}]),
            "entry 0: no class 'suhsi'; nearest 'sushi'",
        ),
        ("cggm", json.dumps([DISH, DISH]), "every image must be listed once, got 'a.jpg' twice"),
        (
            "cggm",
            json.dumps([{**DISH, "img_path": "../a.jpg"}]),
            "entry 0: an image must be a path below",
        ),
        (
            "cggm",
            json.dumps([{**DISH, "img_path": "/etc/a.jpg"}]),
            "entry 0: an image must be a path below",
        ),
        ("cggm", json.dumps([{**DISH, "img_path": "\ud83d.jpg"}]), r", got '\ud83d.jpg'"),
        ("cggm", json.dumps([{**DISH, "img_path": "a\0.jpg"}]), r", got 'a\x00.jpg'"),
        ("cggm", json.dumps([{**DISH, "img_path": 3}]), "entry 0: 'img_path' must be str, got int"),
        (
            "cggm",
            json.dumps([{**DISH, "text_tokens": [1]}]),
            "entry 0: 'text_tokens' must be a list of words",
        ),
        ("cggm", json.dumps({"a": 1}), "must be a list of objects, got dict"),
        ("cggm", "[]", "must list at least one sample, got none"),
        ("cggm", "[" * 100_000, "is not readable JSON"),
        (
            "mmbt",
            '{"id": "a", "label": "sushi", "txt": "a", "img": "a.jpg"}\n',
            "line 1: no field 'text'; nearest 'txt'",
        ),
        ("mmbt", "\n[]\n", "line 2: must be an object with fields, got list"),
        (
            "balancemm",
            "image,text,label\na.jpg,a,sushi\n",
            "line 2: no field 'Image_path'; it has image, text, label",
        ),
        (
            "balancemm",
            "Image_path,text,label\na.jpg,a\n",
            "line 2: 'label' must be str, got NoneType",
        ),
        ("balancemm", 'Image_path,text,label\na.jpg,"a,sushi\n', "is not a readable row"),
        ("balancemm", "a.jpg,a,sushi\nb.jpg,b\n", "line 2: 'label' must be str, got NoneType"),
        ("balancemm", "a.jpg,one, two,sushi\n", "line 1: no class ' two'"),
        ("mla", "a.jpg,sushi\n", "line 1: must be name.jpg label, got 'a.jpg,sushi'"),
    ],
)
def test_a_mistake_in_a_list_is_named_with_its_place(
    tmp_path: Path, layout: Layout, content: str, message: str
) -> None:
    place = make(tmp_path, layout)
    path = place / LISTS[layout].format("train")
    path.write_text(content)
    with pytest.raises(DataError) as error:
        load(place, layout)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_features_must_be_sequences(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shape of 'text' must be T x D, got \(4,\)"):
        make(tmp_path, shapes={"visual": (3, 4), "text": (4,)})


def small() -> Config:
    return load_config(
        "food101",
        ["method=cggm", "model.encoder.layers=1", "model.fusion.layers=1", "train.epochs=1"],
    )


def test_each_modality_learns_through_a_projection_of_its_own(tmp_path: Path) -> None:
    data = load(make(tmp_path))
    _, net = bound(small(), data)
    batch = data.splits["train"].batch(torch.arange(16))
    logits = net.model({m: type(x)(x.value.double(), x.mask) for m, x in batch.inputs.items()})
    torch.nn.functional.cross_entropy(logits, batch.target).backward()
    own = dict(net.model.named_parameters())
    for modality, width in (("visual", 32), ("text", 32)):
        weight = own[f"encoders.{modality}.project.weight"]
        assert weight.shape == (40, width)
        assert weight.grad is not None and weight.grad.abs().max() > 0


def test_a_run_reports_accuracy_and_f1_and_loads_no_pretrained_model(tmp_path: Path) -> None:
    config, place = small(), make(tmp_path)
    run = Run(config, base.load(config.data, base.Source(place, "synthetic")))
    values = run.epoch().metrics
    for name in (
        "val/accuracy",
        "val/f1",
        "val/f1_macro",
        "val/accuracy/visual",
        "val/accuracy/text",
    ):
        assert 0 <= values[name] <= 1
    code = (
        "import sys\nfrom pathlib import Path\nfrom tune_mm.data.datasets.food101 import plugin\n"
        f"plugin.load(plugin.Config(), Path({str(place)!r}))\nprint('transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
