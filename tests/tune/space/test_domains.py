"""Domains: what is refused and why, what can be drawn, all values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_mm.tune.space.domains import Domain, parse
from tune_mm.tune.space.drawing import draw


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"unifrom": [0, 1]}, "must name one of uniform"),
        ({}, "got none"),
        ({"uniform": [0, 1], "choice": [1]}, "got uniform, choice"),
        ([0, 1], "must be a mapping"),
        ({"uniform": [1, 0]}, "low < high, got [1, 0]"),
        ({"uniform": [0]}, "uniform takes [low, high]"),
        ({"uniform": [0, True]}, "uniform takes"),
        ({"loguniform": [0, 1]}, "0 < low < high"),
        ({"quniform": [0, 1, 2]}, "0 < step <= high - low"),
        ({"randint": [1, 2.5]}, "integers with low <= high"),
        ({"choice": []}, "one or more different values"),
        ({"choice": [1, 1]}, "different values"),
        ({"choice": [0, False]}, "different values"),
        ({"choice": [[1], [2]]}, "numbers, strings, true, false, null"),
        ({"uniform": [0, 1], "when": "sgd"}, "when must be a mapping"),
    ],
)
def test_mistakes_are_named(raw: Any, message: str) -> None:
    found = parse(raw)
    assert isinstance(found, str)
    assert message in found


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        ({"choice": ["sgd", None, 0, True]}, ("sgd", None, 0, True)),
        ({"grid": [1, 2.0]}, (1, 2.0)),
        ({"randint": [1, 3]}, (1, 2, 3)),
        ({"quniform": [0.1, 0.7, 0.2]}, (0.1, 0.3, 0.5, 0.7)),
        ({"uniform": [0, 1]}, None),
    ],
)
def test_all_values(raw: dict[str, Any], values: tuple[Any, ...] | None) -> None:
    found = parse(raw)
    assert isinstance(found, Domain)
    assert found.values() == values


@given(
    st.sampled_from(["uniform", "loguniform", "quniform", "randint", "choice"]),
    st.integers(0, 10_000),
)
def test_what_is_drawn_lies_inside(kind: str, seed: int) -> None:
    import optuna

    special: dict[str, list[Any]] = {
        "quniform": [0.1, 0.9, 0.1],
        "randint": [2, 7],
        "choice": [0, True, "x"],
    }
    found = parse({kind: special.get(kind, [0.01, 3])})
    assert isinstance(found, Domain)
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(sampler=sampler)
    assert found.contains(draw({"x": found}, {}, study.ask())["x"])


def test_a_bool_is_no_number() -> None:
    numbers, choices = parse({"uniform": [0, 1]}), parse({"choice": [0, 1]})
    assert isinstance(numbers, Domain)
    assert isinstance(choices, Domain)
    assert numbers.contains(1)
    assert not numbers.contains(True)
    assert not choices.contains(True)


def test_text_shows_the_condition() -> None:
    found = parse({"uniform": [0, 0.99], "when": {"optim.name": ["sgd", "adam"]}})
    assert isinstance(found, Domain)
    assert found.text() == "uniform [0, 0.99] when optim.name = sgd | adam"
