"""Names, lengths and batch sizes agree with what the installed MLflow accepts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Metric
from mlflow.utils import validation

from tune_mm.track import limits


@given(st.text())
def test_every_name_becomes_one_that_mlflow_accepts(raw: str) -> None:
    clean = limits.name(raw)
    validation._validate_metric_name(clean)
    validation._validate_param_name(clean)
    validation._validate_tag_name(clean)
    assert 0 < len(clean) <= validation.MAX_ENTITY_KEY_LENGTH
    assert limits.name(clean) == clean


@pytest.mark.parametrize(
    "name", ["val/accuracy/audio", "grad/norm_uni/rgb", "method.lambda", "time/epoch", "a-b c"]
)
def test_the_projects_own_names_stay(name: str) -> None:
    assert limits.name(name) == name


def test_values_are_shortened_visibly() -> None:
    short = limits.params({"x": "a" * 7000})["x"]
    assert len(short) == 6000 <= validation.MAX_PARAM_VAL_LENGTH
    assert short.endswith("...")
    assert len(limits.tags({"x": "a" * 9000})["x"]) <= validation.MAX_TAG_VAL_LENGTH


def test_zero_false_and_none_are_values_of_params() -> None:
    assert limits.params({"a": 0, "b": 0.0, "c": False, "d": None, "e": [1, "x"], "f": ""}) == {
        "a": "0",
        "b": "0.0",
        "c": "False",
        "d": "None",
        "e": '[1, "x"]',
        "f": "",
    }
    assert limits.tags({"a": None, "b": 0}) == {"b": "0"}


def test_metrics_become_floats_and_keep_nan() -> None:
    found = limits.metrics({"a": 1, "b": True, "c": math.nan, "d": math.inf})
    assert math.isnan(found.pop("c"))
    assert found == {"a": 1.0, "b": 1.0, "d": math.inf}


@given(st.lists(st.integers(1, 1200), max_size=8), st.integers(0, 300), st.integers(0, 300))
def test_batches_hold_everything_in_order_within_the_limits(
    steps: list[int], params: int, tags: int
) -> None:
    metrics = [
        Metric(f"m{i}", 0.0, 0, step) for step, width in enumerate(steps) for i in range(width)
    ]
    some_params, some_tags = (
        {f"p{i}": "" for i in range(params)},
        {f"t{i}": "" for i in range(tags)},
    )
    found = list(limits.batches(metrics, some_params, some_tags))
    for some, few, others in found:
        assert len(few) <= validation.MAX_PARAMS_TAGS_PER_BATCH
        assert len(others) <= validation.MAX_PARAMS_TAGS_PER_BATCH
        assert len(some) + len(few) + len(others) <= validation.MAX_ENTITIES_PER_BATCH
    assert [m for some, _, _ in found for m in some] == metrics
    assert [p.key for _, few, _ in found for p in few] == list(some_params)
    assert [t.key for _, _, others in found for t in others] == list(some_tags)


@given(st.lists(st.integers(1, 800), min_size=1, max_size=12))
def test_no_call_ends_within_a_step(steps: list[int]) -> None:
    metrics = [
        Metric(f"m{i}", 0.0, 0, step) for step, width in enumerate(steps) for i in range(width)
    ]
    calls = [{m.step for m in some} for some, _, _ in limits.batches(metrics, {}, {})]
    assert sum(len(c) for c in calls) == len(set.union(*calls))
