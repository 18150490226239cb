"""A method reads its tunable settings from `hp` alone."""

import copy
import pickle
import re
from typing import Annotated, Literal

import pytest
from pydantic import Field

from tests import support
from tune_mm import plugins
from tune_mm.config import Section
from tune_mm.core.build import method_of
from tune_mm.core.settings import float_fields, tunable

METHODS = plugins.available("methods")


class Written(Section):
    """Every way in which a type may hold floats, and ways in which it does not."""

    plain: float = 1.5
    absent: float | None = None
    bounded: Annotated[float | None, Field(gt=0)] = None
    mixed: Literal["auto"] | float = "auto"
    by_name: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    several: tuple[float, ...] = ()
    count: int = 2
    flag: bool = True
    word: Literal["float", "1.5"] = "float"
    counts: tuple[int, ...] = (1,)
    counts_by_name: dict[str, int] = Field(default_factory=dict)


def written_with_float(section):
    """The fields in whose declared type the word float stands, outside of quotes."""
    found = set()
    for name, info in section.model_fields.items():
        declared = repr(info.annotation).replace("<class 'float'>", "float")
        declared = re.sub(r"'[^']*'", "", declared)
        if re.search(r"\bfloat\b", declared):
            found.add(name)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_tunable_setting_cannot_be_read_from_the_config(name):
    """Whether or not it is set: null and empty settings too."""
    config = support.config(name)
    method = method_of(config)
    forbidden = written_with_float(type(config.method))
    for field in forbidden:
        message = rf'method\.{field} is tunable: read hp\["{field}"\]'
        with pytest.raises(AttributeError, match=message):
            getattr(method.config, field)
        assert method.value(field) == getattr(config.method, field)
    for field in type(config.method).model_fields.keys() - forbidden:
        assert getattr(method.config, field) == getattr(config.method, field)


def test_settings_that_are_null_or_empty_by_default_are_tunable():
    found = {}
    for name in METHODS:
        config = support.config(name)
        set_now = {key.partition(".")[0] for key in float_fields(config.method)}
        found[name] = set(tunable(type(config.method))) - set_now
    assert found["agm"] == {"cap", "head_clip"}
    assert found["cggm"] == {"clamp", "ema", "floor"}
    assert found["mla"] == found["ume"] == {"weights"}
    assert found["mrd"] == {"p_of"}
    assert found["mslr"] == {"ratios"}


def test_the_type_says_what_is_tunable():
    expected = ["plain", "absent", "bounded", "mixed", "by_name", "several"]
    assert tunable(Written) == expected
    assert set(expected) == written_with_float(Written)


def test_only_numbers_that_are_set_have_a_value():
    assert float_fields(Written()) == {"plain": 1.5}
    full = Written(
        absent=2.0, bounded=3.0, mixed=4.0, by_name={"text": 5.0}, several=(6.0, 7.0), count=8
    )
    assert float_fields(full) == {
        "plain": 1.5,
        "absent": 2.0,
        "bounded": 3.0,
        "mixed": 4.0,
        "by_name.text": 5.0,
        "several.0": 6.0,
        "several.1": 7.0,
    }


def test_copies_keep_what_they_refuse():
    method = method_of(support.config("dgl", alpha=2.0))
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert other.config.truncate_unimodal is True
        assert other.value("alpha") == 2.0
        with pytest.raises(AttributeError, match=r"method\.alpha is tunable"):
            _ = other.config.alpha
