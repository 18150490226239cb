"""The lists of UPMC Food-101 in the four layouts that circulate, each read as samples with an image
and a text.

    layout      list of a split                          image                                   text
    cggm        <split>.json, a list of objects          img_path                                text_tokens, joined
                {id, text_tokens, img_path, label}
    mmbt        <split>.jsonl, an object a line          img (images/<split>/<class>/...)        text
                {id, label, text, img}
    balancemm   texts/<split>_titles.csv with headings   images/<split>/<label>/<Image_path>     text
                Image_path, text, label, or without
                any and these columns in this order
    mla         my_<split>_food.txt, `name.jpg label`    visual/<split>_imgs/<name>.jpg          BERT token numbers:
                                                         text_token/<split>_token/<name>_token.npy

Splits are train, test and, where its list is there, dev. A sample is named by the path of its image
below the data's folder, which no two splits share. Other fields and columns are ignored. A .csv
whose first field is the name of an image (.jpg, .jpeg, .png) has no headings.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tune_mm.config.yaml import is_utf8
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.features.store import Sample
from tune_mm.data.splits.listing import IMAGES, known, rows, text
from tune_mm.errors import nearest

Layout = Literal["cggm", "mmbt", "balancemm", "mla"]
# Names of the lists; {} is train, dev or test.
LISTS: dict[Layout, str] = {
    "cggm": "{}.json",
    "mmbt": "{}.jsonl",
    "balancemm": "texts/{}_titles.csv",
    "mla": "my_{}_food.txt",
}
COLUMNS = ("Image_path", "text", "label")  # of the lists of balancemm
PUBLISHED = {"train": "train", "val": "dev", "test": "test"}

_NAMES = """
    apple_pie baby_back_ribs baklava beef_carpaccio beef_tartare beet_salad beignets bibimbap bread_pudding
    breakfast_burrito bruschetta caesar_salad cannoli caprese_salad carrot_cake ceviche cheese_plate cheesecake
    chicken_curry chicken_quesadilla chicken_wings chocolate_cake chocolate_mousse churros clam_chowder club_sandwich
    crab_cakes creme_brulee croque_madame cup_cakes deviled_eggs donuts dumplings edamame eggs_benedict escargots
    falafel filet_mignon fish_and_chips foie_gras french_fries french_onion_soup french_toast fried_calamari fried_rice
    frozen_yogurt garlic_bread gnocchi greek_salad grilled_cheese_sandwich grilled_salmon guacamole gyoza hamburger
    hot_and_sour_soup hot_dog huevos_rancheros hummus ice_cream lasagna lobster_bisque lobster_roll_sandwich
    macaroni_and_cheese macarons miso_soup mussels nachos omelette onion_rings oysters pad_thai paella pancakes
    panna_cotta peking_duck pho pizza pork_chop poutine prime_rib pulled_pork_sandwich ramen ravioli red_velvet_cake
    risotto samosa sashimi scallops seaweed_salad shrimp_and_grits spaghetti_bolognese spaghetti_carbonara spring_rolls
    steak strawberry_shortcake sushi tacos takoyaki tiramisu tuna_tartare waffles
"""
CLASSES = tuple(_NAMES.split())


def lists(layout: Layout, place: Path) -> dict[str, Path]:
    """The list of each split of ours (train, val, test), whether or not it is there."""
    found = {}
    for split, name in PUBLISHED.items():
        found[split] = place / LISTS[layout].format(name)
    return found


def read(layout: Layout, place: Path) -> dict[str, list[Sample]]:
    """The samples of train, test and, where there is a list of it, val, in the order of the lists.

    Raises DataError naming file and entry for what is no such list, for an unknown class and for an
    image twice.
    """
    found = {}
    for split, path in lists(layout, place).items():
        if split == "val" and not path.is_file():
            continue
        samples = list(_READERS[layout](path, PUBLISHED[split], place))
        _require_distinct(samples, path)
        found[split] = samples
    return found


def _require_distinct(samples: list[Sample], path: Path) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise DataError(f"{path}: every image must be listed once, got '{sample.id}' twice")
        seen.add(sample.id)


def _sample(place: Path, image: str, label: str, said: str | Path, where: str) -> Sample:
    below = PurePosixPath(image)
    outside = below.is_absolute() or ".." in below.parts
    if not image or outside or "\0" in image or not is_utf8(image):
        raise DataError(f"{where}: an image must be a path below {place}, got {image!r}")
    return Sample(str(below), known(label, CLASSES, where), place / below, said)


def _field(entry: Any, key: str, where: str, kind: type = str) -> Any:
    """`entry[key]`. Raises DataError when there is no such field or it is of another type."""
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: must be an object with fields, got {type(entry).__name__}")
    if key not in entry:
        has = [str(name) for name in entry]
        raise DataError(f"{where}: no field '{key}'{nearest(key, has)}; it has {', '.join(has)}")
    value = entry[key]
    if not isinstance(value, kind):
        got = type(value).__name__
        raise DataError(f"{where}: '{key}' must be {kind.__name__}, got {got}")
    return value


def _json(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not readable JSON: {error}") from error


def _cggm(path: Path, split: str, place: Path) -> Iterator[Sample]:
    entries = _json(text(path), str(path))
    if not isinstance(entries, list):
        raise DataError(f"{path}: must be a list of objects, got {type(entries).__name__}")
    for number, entry in enumerate(entries):
        where = f"{path} entry {number}"
        words = _field(entry, "text_tokens", where, list)
        if not all(isinstance(word, str) for word in words):
            raise DataError(f"{where}: 'text_tokens' must be a list of words")
        image = _field(entry, "img_path", where)
        label = _field(entry, "label", where)
        yield _sample(place, image, label, " ".join(words), where)


def _mmbt(path: Path, split: str, place: Path) -> Iterator[Sample]:
    for number, line in enumerate(text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        entry = _json(line, where)
        said = _field(entry, "text", where)
        image = _field(entry, "img", where)
        label = _field(entry, "label", where)
        yield _sample(place, image, label, said, where)


def _balancemm(path: Path, split: str, place: Path) -> Iterator[Sample]:
    content = text(path)
    first = content.partition(",")[0].strip().strip('"')
    columns = None
    if first.lower().endswith(IMAGES):
        columns = COLUMNS
    reader = csv.DictReader(io.StringIO(content, newline=""), columns, strict=True)
    try:
        for row in reader:
            where = f"{path} line {reader.line_num}"
            image, said, label = (_field(row, key, where) for key in COLUMNS)
            yield _sample(place, f"images/{split}/{label}/{image}", label, said, where)
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: is not a readable row: {error}") from error


def _mla(path: Path, split: str, place: Path) -> Iterator[Sample]:
    for row in rows(path, ("name.jpg", "label"), " "):
        name, label = row.fields
        tokens = place / "text_token" / f"{split}_token" / f"{Path(name).stem}_token.npy"
        yield _sample(place, f"visual/{split}_imgs/{name}", label, tokens, row.where)


_READERS: dict[Layout, Callable[[Path, str, Path], Iterator[Sample]]] = {
    "cggm": _cggm,
    "mmbt": _mmbt,
    "balancemm": _balancemm,
    "mla": _mla,
}
