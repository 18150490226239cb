"""The file name is the registry: what is a plug-in, what is not, and what every plug-in provides."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_mm import plugins
from tune_mm.config import Section
from tune_mm.config.sections import PLUGINS

REPOSITORY = Path(__file__).resolve().parent.parent
KINDS = sorted(PLUGINS.values())  # those that a configuration chooses from
ALL = [(kind, name) for kind in KINDS for name in plugins.available(kind)]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_plugin_has_a_section_named_as_its_file(kind, name):
    section = plugins.load(kind, name).Config
    assert issubclass(section, Section)
    assert section.model_fields["name"].default == name
    assert section.model_config["frozen"] and section.model_config["strict"]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_plugin_says_what_it_is(kind, name):
    plugin = plugins.load(kind, name)
    assert sys.modules[plugin.__module__].__doc__
    assert plugin.__module__ == f"{plugins.PACKAGES[kind]}.{name}"


@pytest.mark.parametrize("kind", KINDS)
def test_helpers_and_bases_are_not_plugins(kind):
    names = plugins.available(kind)
    assert list(names) == sorted(names)
    assert not [n for n in names if n.startswith("_") or n == "base"]


def test_the_first_set_of_plugins():
    assert {"joint", "unimodal", "dgl", "cggm"} <= set(plugins.available("methods"))
    assert {"mosi", "iemocap", "npz"} <= set(plugins.available("data"))
    assert "transformer" in plugins.available("encoders")
    assert {"transformer", "concat", "sum"} <= set(plugins.available("fusions"))


def test_an_unknown_plugin_names_the_nearest_and_all():
    with pytest.raises(
        plugins.UnknownPlugin, match=r"^methods: no 'cgmm'; nearest 'cggm'; available: .*cggm, dgl"
    ):
        plugins.load("methods", "cgmm")


@given(st.text(max_size=12))
def test_no_name_reaches_the_import_system_unless_it_is_a_file(name):
    if name not in plugins.available("methods"):
        with pytest.raises(plugins.UnknownPlugin):
            plugins.load("methods", name)


def test_a_new_file_is_a_new_plugin(tmp_path):
    """In a fresh process: nothing but the file makes `method=mine` valid, its fields and bounds
    included.
    """
    (tmp_path / "mine.py").write_text(
        "'''A method of one's own.'''\n"
        "from typing import Literal\n"
        "from pydantic import Field\n"
        "from tune_mm.config import Section\n"
        "from tune_mm.methods.joint import plugin as Joint\n"
        "class MineConfig(Section):\n"
        "    name: Literal['mine'] = 'mine'\n"
        "    strength: float = Field(1.0, gt=0)\n"
        "class plugin(Joint):\n"
        "    Config = MineConfig\n"
    )
    code = (
        f"import tune_mm.methods; tune_mm.methods.__path__.append({str(tmp_path)!r})\n"
        "from tune_mm.config import check_field, load_config\n"
        "print(load_config('mosi', ['method=mine', 'method.strength=2']).method)\n"
        "print(check_field(load_config('mosi', ['method=mine']), 'method.strength', 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "name='mine' strength=2.0",
        "method.strength: must be > 0, got 0",
    ], done.stderr
