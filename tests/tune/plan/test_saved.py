"""search.json and suite.json that somebody edited, cut off or put there: one message, or a note."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tune.conftest import TOY
from tune_mm.errors import UserError
from tune_mm.tune.plan import plan as plans
from tune_mm.tune.plan import suite_plan
from tune_mm.tune.plan.plan import Options

SUITE = """
config: mosi
objective: val/accuracy
spaces: [joint_mosi, dgl_mosi]
baseline: joint
trials: 2
"""
# A value of each type that JSON has, and numbers out of any range.
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    1.5,
    2**40,
    "",
    "../../x",
    "text",
    [],
    ["a"],
    {},
    {"a": 1},
)
FOREIGN = {
    "empty": b"",
    "cut off": b'{"format": 1, "name": "cut',
    "an empty object": b"{}",
    "a list": b"[1, 2]",
    "not UTF-8": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "of a later version": b'{"format": 9, "name": "later"}',
}


def begun(root: Path) -> Path:
    """search.json of a search that has begun."""
    space = root / "toy.yaml"
    space.write_text(TOY)
    plan = plans.resolve(Options(root=root, space=str(space)))
    plan.save(closed=True)
    return plan.folder / "search.json"


def begun_suite(root: Path) -> Path:
    """suite.json of a suite that has begun."""
    space = root / "both.yaml"
    space.write_text(SUITE)
    plan = suite_plan.resolve(Options(root=root, space=str(space)))
    plan.save()
    return plan.folder / "suite.json"


def keys(value: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of nested mappings, but those inside a space's own values."""
    for key, inner in value.items():
        yield (*above, key)
        if isinstance(inner, dict) and key not in ("values", "config", "overrides"):
            yield from keys(inner, (*above, key))


def changed(values: dict[str, Any], key: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy with one value replaced."""
    copy: dict[str, Any] = json.loads(json.dumps(values))
    inner = copy
    for part in key[:-1]:
        inner = inner[part]
    inner[key[-1]] = value
    return copy


def test_a_wrong_value_in_search_json_is_one_message_that_names_the_file(tmp_path: Path) -> None:
    file = begun(tmp_path)
    whole = json.loads(file.read_text())
    refused = 0
    for key in keys(whole):
        for value in WRONG:
            file.write_text(json.dumps(changed(whole, key, value)))
            try:
                plans.resolve(Options(root=tmp_path, name="toy-1", resume=True))
            except UserError as error:
                refused += 1
                assert "search.json" in str(error) or "cannot go on as it began" in str(error)
    assert refused > 5 * len(list(keys(whole)))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    file = begun(tmp_path)
    whole = json.loads(file.read_text())
    del whole["seed"]
    file.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"seed: missing, .*search\.json"):
        plans.resolve(Options(root=tmp_path, name="toy-1", resume=True))


def test_a_wrong_value_in_suite_json_is_one_message(tmp_path: Path) -> None:
    file = begun_suite(tmp_path)
    whole = json.loads(file.read_text())
    refused = 0
    for key in keys(whole):
        for value in WRONG:
            file.write_text(json.dumps(changed(whole, key, value)))
            try:
                suite_plan.resolve(Options(root=tmp_path, name="both-1", resume=True))
            except UserError:
                refused += 1
    assert refused > 5 * len(list(keys(whole)))


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    file = begun(tmp_path)
    whole = json.loads(file.read_text())
    for key in ("name", "uid"):
        file.write_text(json.dumps({**whole, key: "../../../outside"}))
        with pytest.raises(UserError, match=f"{key}: must be letters, digits"):
            plans.resolve(Options(root=tmp_path, name="toy-1", resume=True))


def test_a_renamed_folder_says_so(tmp_path: Path) -> None:
    folder = begun(tmp_path).parent
    folder.rename(folder.with_name("moved"))
    with pytest.raises(UserError, match=r"must be its folder's, 'moved', got 'toy-1'"):
        plans.resolve(Options(root=tmp_path, name="moved", resume=True))


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_beside_a_search_blocks_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    begun(tmp_path)
    other = tmp_path / "mlruns" / "search" / "other" / "search.json"
    other.parent.mkdir()
    other.write_bytes(FOREIGN[what])
    plan = plans.resolve(Options(root=tmp_path, space=str(tmp_path / "toy.yaml"), resume=True))
    assert plan.name == "toy-1"
    assert f"skipped: {other}" in caplog.text
    with pytest.raises(UserError, match=r"other.search\.json: "):
        plans.resolve(Options(root=tmp_path, name="other", resume=True))


def test_a_foreign_suite_blocks_no_other(tmp_path: Path) -> None:
    begun_suite(tmp_path)
    other = tmp_path / "mlruns" / "search" / "other" / "suite.json"
    other.parent.mkdir()
    for content in FOREIGN.values():
        other.write_bytes(content)
        plan = suite_plan.resolve(
            Options(root=tmp_path, space=str(tmp_path / "both.yaml"), resume=True)
        )
        assert plan.name == "both-1"
