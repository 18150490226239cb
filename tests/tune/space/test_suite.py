"""Suites: what their files say, and searches of the toy through real Ray."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.tune.conftest import TOY, Searches
from tests.tune.test_search import runs
from tests.tune.toy import Toy
from tune_mm.config import ConfigError
from tune_mm.errors import UserError
from tune_mm.tune import search as search_runner
from tune_mm.tune import suite_search
from tune_mm.tune.plan import suite_plan
from tune_mm.tune.plan.plan import Options
from tune_mm.tune.space import space as space_files
from tune_mm.tune.space import suite as suites
from tune_mm.tune.space.suite import Suite

SUITE = """config: iemocap
objective: val/accuracy
spaces:
  - {space: JOINT, name: joint}
  - space: DGL
    set: {method.unimodal_path: mask}
  - GREEDY
trials: 3
searcher: {name: tpe, startup: 2}
scheduler: {name: none, epochs: 3}
finals: {seeds: 2, epochs: 2}
"""
OTHERS = {
    "joint": TOY,
    "dgl": TOY.replace("joint", "dgl").replace(
        "domains:\n", "domains:\n  method.alpha: {uniform: [0, 4]}\n"
    ),
    "greedy": TOY.replace("joint", "greedy\nset: {model.fusion: mmtm}"),
}


def written(root: Path, text: str = SUITE, **spaces: str) -> str:
    """A suite file with its spaces beside it; its path."""
    for name, space in {**OTHERS, **spaces}.items():
        path = root / f"{name}.yaml"
        path.write_text(space)
        text = text.replace(name.upper(), str(path))
    (root / "all.yaml").write_text(text)
    return str(root / "all.yaml")


def built(root: Path, text: str = SUITE, **spaces: str) -> Suite:
    return suites.build("all", space_files.read(written(root, text, **spaces)))


def call(
    searches: Searches,
    space: str | None = None,
    dry: bool = False,
    wait: float = 0.0,
    **options: Any,
) -> int:
    """The exit code of a suite; what it printed is in `searches.says`."""
    out = io.StringIO()
    given = Options(root=searches.root, space=space, concurrency=1, **options)
    assert suite_plan.asked(given)
    build = partial(Toy, marks=str(searches.root), wait=wait)
    try:
        return suite_search.run(given, Console(file=out, width=250), dry=dry, build=build)
    finally:
        searches.says = out.getvalue()


def summary(searches: Searches, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (searches.root / "mlruns" / "search" / name / "summary.json").read_text()
    )
    return found


# ---- the file


def test_what_a_suite_says_holds_for_all_and_a_method_keeps_its_own(tmp_path: Path) -> None:
    """Shared domains replace the spaces' own but for method.*; published values of those make way
    for the config's.
    """
    text = SUITE.replace("trials: 3", "domains: {optim.clip: {uniform: [0.5, 2.0]}}\ntrials: 3")
    suite = built(tmp_path, text)
    spaces = suites.spaces(suite, {})
    assert [m.name for m in suite.members] == ["joint", "dgl", "greedy"]
    assert set(spaces["joint"].domains) == {"optim.clip"}
    assert set(spaces["dgl"].domains) == {"method.alpha", "optim.clip"}
    assert [s.spec.trials for s in spaces.values()] == [3, 3, 3]
    assert {
        (s.spec.finals.seeds, s.spec.finals.top, s.spec.finals.baseline) for s in spaces.values()
    } == {(2, 1, None)}
    assert {s.spec.scheduler.name for s in spaces.values()} == {"none"}
    assert spaces["joint"].defaults == ({"optim.clip": spaces["joint"].base.optim.clip},)
    assert spaces["dgl"].base.method.unimodal_path == "mask"
    assert spaces["greedy"].base.model.fusion.name == "mmtm"


def test_without_shared_domains_the_spaces_keep_theirs_and_their_published_values(
    tmp_path: Path,
) -> None:
    spaces = suites.spaces(built(tmp_path), {})
    assert set(spaces["dgl"].domains) == {"method.alpha", "optim.lr"}
    assert spaces["dgl"].defaults[0]["optim.lr"] == 1e-3


def test_an_entry_sets_and_searches_what_it_will(tmp_path: Path) -> None:
    own = "    domains: {method.alpha: null, optim.weight_decay: {uniform: [0.0, 0.1]}}\n  - GREEDY"
    text = SUITE.replace("  - GREEDY", own).replace("mask}", "mask, optim.lr: 0.01}")
    spaces = suites.spaces(built(tmp_path, text), {})
    assert set(spaces["dgl"].domains) == {"optim.weight_decay"}, "one null, one set"
    assert spaces["dgl"].base.optim.lr == 0.01
    assert set(spaces["joint"].domains) == {"optim.lr"}


def test_data_are_switched_as_in_a_search(tmp_path: Path) -> None:
    spaces = suites.spaces(built(tmp_path), {"data": "mosi"})
    assert {s.spec.config for s in spaces.values()} == {"mosi"}
    assert spaces["joint"].base.data.name == "mosi"


def test_deviations_name_what_is_unlike_outside_the_method(tmp_path: Path) -> None:
    text = SUITE.replace("mask}", "mask, optim.clip: 3.0}")
    spaces = suites.spaces(built(tmp_path, text), {"optim.weight_decay": 0.5})
    assert suites.deviations(spaces["joint"], spaces["joint"]) == []
    assert suites.deviations(spaces["dgl"], spaces["joint"]) == ["optim.clip=3.0"]
    assert suites.deviations(spaces["greedy"], spaces["joint"]) == ["model.fusion=mmtm"]
    own = "{space: GREEDY, domains: {optim.lr: {uniform: [0.1, 1]}, model.fusion: {choice: [mmtm, sum]}}}"
    spaces = suites.spaces(built(tmp_path, text.replace("GREEDY", own)), {})
    found = suites.deviations(spaces["greedy"], spaces["joint"])
    assert found == ["optim.lr in uniform [0.1, 1]", "model.fusion in choice [mmtm, sum]"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials: 3", "trails: 3", "trails: no such key; nearest 'trials' (all.yaml line 8)"),
        ("trials: 3", "trials: 0", "trials: must be >= 1, got 0 (all.yaml line 8)"),
        (
            "seeds: 2",
            "seed: 2",
            "finals.seed: no such key; nearest 'finals.seeds' (all.yaml line 11)",
        ),
        (
            "    set:",
            "    sets:",
            "spaces.1.sets: no such key; nearest 'spaces.1.set' (all.yaml line 6)",
        ),
        ("mask", "masks", "dgl: method.unimodal_path: must be one of"),
        ("mask", "masks", "(all.yaml line 6)"),
        (
            "method.unimodal_path: mask",
            "data.standardize: train",
            "spaces.1: data.standardize must not be its own",
        ),
        (
            "method.unimodal_path: mask",
            "method.alhpa: 1.0",
            "dgl: method.alhpa: no such key; nearest 'method.alpha'",
        ),
        (
            "name: joint}",
            "name: jiont}",
            "baseline: no search 'joint'; nearest 'jiont'; available: jiont, dgl, greedy",
        ),
        (
            "name: joint}",
            "name: dgl}",
            "spaces.1: there is a search 'dgl' already; give this one a name of its own",
        ),
        (
            "{space: JOINT, name: joint}",
            "dgl_avdigts",
            "no such name 'dgl_avdigts'; nearest 'dgl_avdigits'",
        ),
        ("{space: JOINT, name: joint}", "dgl_avdigts", "(spaces.0 (all.yaml line 4))"),
        (
            "{space: JOINT, name: joint}",
            "{space: JOINT, set: {optim.lr: 0.1}}",
            "nothing is left to search of joint",
        ),
        (
            "{space: JOINT, name: joint}",
            "ablation_alpha",
            "spaces.0: ablation_alpha tunes nothing (finals.top: all)",
        ),
        (
            "{name: tpe, startup: 2}",
            "grid",
            "searcher: must not be grid: spaces have grids of unlike size",
        ),
        (
            "val/accuracy",
            "test/accuracy",
            "objective: must be a validation metric, val/..., got 'test/accuracy'",
        ),
    ],
)
def test_a_mistake_is_named_with_file_and_line(
    old: str, new: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert old in SUITE
    with pytest.raises(ConfigError) as caught:
        suites.spaces(built(tmp_path, SUITE.replace(old, new)), {})
    assert message in str(caught.value)


@pytest.mark.parametrize("name", suites.names())
def test_shipped_suites_are_right(name: str) -> None:
    """Every method has the same trials, seeds, epochs and scheduler, and published settings run
    first.
    """
    document = space_files.read(name)
    suite = suites.build(name, document)
    spaces = suites.spaces(suite, {})
    assert (
        len(
            {
                (s.spec.trials, s.spec.scheduler, s.spec.searcher, s.spec.finals)
                for s in spaces.values()
            }
        )
        == 1
    )
    shared = [
        (s.spec.config, s.spec.objective, s.base.data, s.base.train.epochs) for s in spaces.values()
    ]
    assert all(own == shared[0] for own in shared)
    assert all(space.defaults for space in spaces.values())
    assert spaces[suite.spec.baseline].base.method.name == "joint"
    assert document.path.read_text().startswith("# ")


# ---- searches


def test_a_suite_that_stops_in_the_middle_goes_on_to_its_table(
    searches: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, with equal budgets. Greedy needs two modalities and is left out. Interrupted after
    the first search, which is not touched again; gains are paired by seed.
    """
    space, search = written(searches.root), search_runner.run

    def interrupted(given: Options, *arguments: Any, **more: Any) -> int:
        if given.name == "all-1-dgl":
            raise KeyboardInterrupt
        return search(given, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(search_runner, "run", interrupted)
        assert call(searches, space) == 130
    says = searches.says
    why = "method.name: greedy needs 2 modalities, got 3 (text, audio, visual)"
    assert f"left out: greedy: {why}" in says
    assert (
        says.index("all-1 1/2: joint")
        < says.index("search all-1-joint: 3 trials")
        < says.index("all-1 2/2: dgl")
    )
    assert "unfinished: dgl" in says
    assert "resume all of them with: python -m tune_mm.search --name all-1 --resume" in says
    assert [
        says.count(line) for line in ("compare: mlflow ui ", "resume with: ", "no baseline")
    ] == [1, 0, 0]
    told = summary(searches, "all-1")
    assert told["status"] == "interrupted"
    assert [(m["name"], m["status"]) for m in told["methods"]] == [
        ("joint", "completed"),
        ("dgl", "not begun"),
    ]
    before = {r.info.run_id: r.info.end_time for r in runs(searches)}

    assert call(searches, space, resume=True) == 0, searches.says
    assert "1/2: joint, ended before" in searches.says
    tracked = runs(searches)
    after = {r.info.run_id: r.info.end_time for r in tracked}
    assert len(after) == 2 * len(before) == 2 * (1 + 3 + 2)
    assert {run: after[run] for run in before} == before

    told = summary(searches, "all-1")
    assert (told["status"], told["left_out"]) == ("completed", {"greedy": why})
    assert [(m["name"], m["trials"]) for m in told["methods"]] == [("joint", 3), ("dgl", 3)]
    groups = {
        name: summary(searches, f"all-1-{name}")["finals"]["groups"][0] for name in ("joint", "dgl")
    }
    assert all(sorted(group["test"]) == ["1", "2"] for group in groups.values())
    joint, dgl = (
        [groups[n]["test"][s]["test/accuracy"] for s in ("1", "2")] for n in ("joint", "dgl")
    )
    assert told["methods"][0]["gain"] is None
    assert told["methods"][1]["gain"]["n"] == 2
    assert told["methods"][1]["gain"]["mean"] == pytest.approx(
        (dgl[0] - joint[0] + dgl[1] - joint[1]) / 2
    )

    assert {r.data.tags["suite"] for r in tracked} == {"all-1"}
    assert {r.data.tags["space"] for r in tracked if "space" in r.data.tags} == {"all"}, (
        "one experiment"
    )
    finals = [r.data.tags for r in tracked if r.data.tags["stage"] == "final"]
    assert {(t["method"], t["role"], t["seed"]) for t in finals} == {
        (m, "tuned", s) for m in ("joint", "dgl") for s in ("1", "2")
    }
    _goes_on_as_it_began(searches)


def _goes_on_as_it_began(searches: Searches) -> None:
    """A suite that has ended: with more trials for all, and not with another number, nor with
    another file.
    """
    given = Options(root=searches.root, name="all-1", extend=2)
    plan = suite_plan.resolve(given)
    options = [plan.member_options(m, plan.folder) for m in plan.suite.members[:2]]
    assert plan.trials == 5
    assert [(o.name, o.extend, o.resume) for o in options if o] == [
        ("all-1-joint", 2, False),
        ("all-1-dgl", 2, False),
    ]
    with pytest.raises(UserError, match="--trials: the search has 3, got 5"):
        call(searches, name="all-1", resume=True, trials=5)
    with pytest.raises(UserError, match="'all-1' exists already"):
        call(searches, str(searches.root / "all.yaml"), name="all-1")
    file = searches.root / "all.yaml"
    file.write_text(file.read_text().replace("startup: 2", "startup: 3"))
    with pytest.raises(UserError, match=r"joint\.searcher\.startup: the suite has changed since"):
        call(searches, name="all-1", resume=True)


def test_failures_in_one_search_do_not_end_the_others(searches: Searches) -> None:
    """A weight decay of 2 raises in the toy: joint's trials all fail, dgl's do not."""
    text = SUITE.replace(
        "{space: JOINT, name: joint}", "{space: JOINT, set: {optim.weight_decay: 2.0}}"
    )
    assert call(searches, written(searches.root, text)) == 1
    methods = {m["name"]: m for m in summary(searches, "all-1")["methods"]}
    assert methods["joint"]["status"] == "the first 3 trials all failed"
    assert methods["dgl"]["test"]["n"] == 2
    assert methods["dgl"]["gain"] is None
    assert "unfinished: joint" in searches.says


def test_a_dry_run_shows_the_whole_plan_and_writes_nothing(searches: Searches) -> None:
    assert (
        call(
            searches,
            written(searches.root),
            dry=True,
            trials=5,
            time_budget=120,
            overrides={"optim.clip": 2.0},
        )
        == 0
    )
    for text in (
        "all-1-joint",
        "all-1-dgl",
        "method.alpha, optim.lr",
        "5 of each search",
        "--set optim.clip",
        "30 epochs of tuning and 8 of finals; tuning stops after 60 s",
        "left out: greedy",
    ):
        assert text in searches.says
    assert not (searches.root / "mlruns").exists()


def test_a_suite_whose_baseline_does_not_fit_is_refused(searches: Searches) -> None:
    text = SUITE.replace("trials: 3", "baseline: greedy\ntrials: 3")
    with pytest.raises(
        UserError,
        match=r"all: greedy, the baseline of joint, does not fit: .*greedy needs 2 modalities",
    ):
        call(searches, written(searches.root, text), dry=True)
