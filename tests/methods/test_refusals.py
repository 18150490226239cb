"""What a method cannot train is refused before anything starts, by a message that says who refuses,
what, and what is allowed.
"""

from __future__ import annotations

import re

import pytest

from tests import support
from tests.methods.combinations import METHODS, Combination, everything, trained
from tune_mm import plugins
from tune_mm.config import field_types
from tune_mm.core.method import Method

DATA = ("sequences", "clips", "pixels")


def of(method: str, data: str) -> list[Combination]:
    return [case for case in everything() if (case.method, case.data) == (method, data)]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_does_not_state_is_refused_by_its_name(method: str, data: str) -> None:
    """The message names the method, what was given, and everything that it takes instead."""
    stated = plugins.load("methods", method).support
    for case in of(method, data):
        if case.stated:
            continue
        message = support.refusal(case.config, case.spec)
        assert message is not None, f"{case} is trained, against what the method states"
        said = words(message)
        assert method in said, message
        count = len(case.modalities)
        if count < stated.least or (stated.most is not None and count > stated.most):
            assert message.startswith("method.name: "), message
            assert {str(stated.least), str(count), *case.modalities} <= said, message
        elif case.task not in stated.tasks:
            assert message.startswith("method.name: "), message
            assert {case.task, *stated.tasks} <= said, message
        else:
            assert message.startswith("model.fusion: "), message
            assert {case.fusion, *(stated.fusions or ())} <= said, message


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_what_a_model_does_not_fit_is_refused_by_its_name(method: str, data: str) -> None:
    """By the fusion that cannot be built, or by the method's own check of the model: the message
    begins with the setting that is wrong and says what it must be.
    """
    for case in of(method, data):
        if not case.stated or trained(case):
            continue
        config = case.config
        message = support.refusal(config, case.spec)
        assert message is not None
        setting, _, rest = message.partition(": ")
        said = words(rest)
        assert re.search(r"\b(must be|needs|takes)\b", rest), message
        assert case.fusion in said, message
        if setting.startswith("method."):
            assert setting in field_types(config), message
            assert method in said, message
            assert type(plugins.load("methods", method)(config.method)).check is not Method.check
        else:
            assert setting in {"model.fusion", "model.encoder"}, message


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_some_of_what_it_states(method: str) -> None:
    """So that a check which refuses too much does not take tests away unseen."""
    stated = plugins.load("methods", method).support
    found = {case.task for case in everything() if case.method == method and trained(case)}
    assert "classification" in found
    assert ("segmentation" in found) == ("segmentation" in stated.tasks)
    if stated.fusions is None:
        assert found == set(stated.tasks)
