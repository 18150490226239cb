"""Configurations and settings that mean harm, through the command line: one clear refusal, nothing
run or written.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.survival.hostile import LONGEST, SPACE, Place, refused
from tune_mm import search
from tune_mm.cli import run_cli
from tune_mm.config.yaml import write_yaml


def laughs(levels: int = 9) -> str:
    """Ten times ten times ... of one text, by references."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


BOMBS: dict[str, tuple[str | bytes, str]] = {
    "references": (laughs(), "alias '*a0' is not allowed"),
    "depth": ("a: " + "[" * 100_000, "nested more than 50 deep"),
    "depth of keys": ("? " * 100_000, "nested more than 50 deep"),
    "many keys": (
        "".join(f"k{i}: 1\n" for i in range(60_000)),
        "holds more than 10000 keys and values",
    ),
    "long list": ("domains: [" + "1," * 400_000 + "]", "holds more than 10000 keys and values"),
    "a line of 10 MB": ("a: " + "x" * 10_000_000, "must be at most 1000000 bytes"),
    "a long text": (
        "config: mosi\ntrials: " + "x" * 900_000,
        "trials: must be an integer or null, got 'xxx",
    ),
    "a long key": (
        '? "' + "x" * 900_000 + '"\n: 1',
        "a key must have at most 200 characters, got 900000",
    ),
    "a long number": ("trials: 0x" + "f" * 100_000, "trials: cannot be read as int, got '0xfff"),
    "all wrong": ("".join(f"k{i}: !!x 1\n" for i in range(4000)), "and 3950 more mistakes"),
    "code": (
        "a: !!python/object/apply:os.mkdir [run]",
        "tag '!!python/object/apply:os.mkdir' is not allowed",
    ),
    "no UTF-8": (b"a: \xff\xfe", "must be UTF-8 text, got byte 0xff (line 1)"),
    "half a character": ('config: "\\uD800"', "config: cannot be read as UTF-8 text"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("where", ["space", "config", "baseline"])
def test_yaml_that_grows_or_runs(
    bomb: str, where: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the space, as the configuration that it names, as the baseline that it names."""
    text, message = BOMBS[bomb]
    bad = place.space("bad.yaml", text)
    if where == "space":
        told = refused(place, capsys, "--space", bad)
    elif where == "config":
        told = refused(place, capsys, "--space", place.space(config=bad))
    else:
        told = refused(place, capsys, "--space", place.space(finals={"baseline": bad}))
    assert (
        "trials: no such key" if (bomb, where) == ("a long text", "config") else message
    ) in told


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.lr=*a", "alias '*a' is not allowed"),
        ("optim.lr=" + "[" * 50_000, "nested more than 50 deep"),
        ("optim.lr=0x" + "f" * 50_000, "cannot be read as int"),
        ("optim.lr=!!python/name:os.mkdir ''", "tag '!!python/name:os.mkdir' is not allowed"),
        ("data.file=/etc/passwd", "data.file: must match"),
        ("data.file=../../secret.pkl", "data.file: must match"),
    ],
    ids=["alias", "depth", "number", "code", "absolute", "above"],
)
def test_settings_of_the_command_line(
    setting: str, message: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(place, capsys, "--space", place.space(), "--set", setting)


@pytest.mark.parametrize(
    "flag", ["--name", "--data-root", "--storage", "--tracking-uri", "--address"]
)
def test_names_that_are_no_utf8(
    flag: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"d\xff")
    os.mkdir(b"d\xff")
    told = refused(place, capsys, "--space", place.space(), flag, name)
    assert f"{flag}: must be UTF-8 text, got 'd\\udcff'" in told


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", "", "a\0b", "x" * 101])
def test_names_that_lead_elsewhere(
    name: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(place, capsys, "--space", place.space(), f"--name={name}")
    assert "--name: must be letters, digits" in told


# Random configurations

WORDS = st.sampled_from(
    [
        "mosi",
        "iemocap",
        "joint",
        "dgl",
        "cggm",
        "val/accuracy",
        "test/accuracy",
        "val/mae",
        "grid",
        "tpe",
        "asha",
        "all",
        "/etc/passwd",
        "../x.yaml",
        "null",
        "",
        "optim.lr",
        "method.alpha",
        "uniform",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | WORDS
KEYS = st.sampled_from(
    [*SPACE, "set", "defaults", "searcher", "scheduler", "resources", "finals"]
) | st.text(max_size=8)
INNER = st.sampled_from(
    [
        "optim.lr",
        "method.alpha",
        "model.fusion",
        "data",
        "train.epochs",
        "name",
        "top",
        "seeds",
        "baseline",
        "epochs",
        "uniform",
        "loguniform",
        "choice",
        "grid",
        "when",
        "cpus",
        "startup",
        "grace",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(INNER | st.text(max_size=6), v, max_size=3),
)


@given(
    st.dictionaries(KEYS, VALUES, min_size=1, max_size=4), st.lists(KEYS, max_size=1), st.booleans()
)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_random_spaces_are_planned_or_refused(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    without: list[str],
    whole: bool,
) -> None:
    """Each is a space with some of its sections replaced; a dry run shows the plan or one clear
    refusal.
    """
    values = {**SPACE, "objective": "val/accuracy", **changes} if whole else changes
    values = {k: v for k, v in values.items() if k not in without}
    place.space("random.yaml", write_yaml(values))
    before = place.state()
    code = run_cli(lambda: search.main(["--space", "random.yaml", "--dry-run"]))
    told = capsys.readouterr()
    assert code in (0, 2)
    assert (code == 2) == bool(told.err) and len(told.err) <= LONGEST
    after = {k: v for k, v in place.state().items() if not k.startswith(str(place.root / "cache"))}
    before = {k: v for k, v in before.items() if not k.startswith(str(place.root / "cache"))}
    before.pop(str(place.root)), after.pop(str(place.root))  # the cache appears in it
    assert after == before, "nothing but the stand-in data in the cache is written"
