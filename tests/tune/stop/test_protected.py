"""Which epochs are quiet, by what methods declare, and that passes over the data survive a resume."""

from __future__ import annotations

from functools import partial
from io import StringIO
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from tests.tune.conftest import TOY, Searches
from tests.tune.toy import Toy
from tune_mm.config import Config, ScheduleConfig, load_config, with_overrides
from tune_mm.tune import search
from tune_mm.tune.plan.plan import Options
from tune_mm.tune.space import space as space_files
from tune_mm.tune.stop import protected, schedulers
from tune_mm.tune.stop.protected import ProtectedEpochs


def relearn(**settings: Any) -> Config:
    return with_overrides(load_config("avdigits"), {"method": {"name": "relearn", **settings}})


@pytest.mark.parametrize(
    ("epoch", "ranges", "expected"),
    [
        (4, ((1, 3), (6, 7)), 4),
        (2, ((1, 3), (6, 7)), 4),
        (2, ((1, 3), (4, 5)), 6),
        (2, ((2, 4), (1, 9)), 10),
        (1, (), 1),
    ],
)
def test_the_first_epoch_behind(epoch: int, ranges: protected.Ranges, expected: int) -> None:
    assert protected.behind(epoch, ranges) == expected
    assert protected.within(epoch, ranges) == (expected != epoch)


def test_the_epochs_before_the_drop() -> None:
    """Drops at 30 and 60 of 100, a twentieth past the last: 1 to 64."""
    step = ScheduleConfig(name="step", milestones=(0.3, 0.6))
    assert schedulers.until_drop(100, step) == ((1, 64),)
    assert (
        schedulers.until_drop(100, ScheduleConfig(name="cosine"))
        == schedulers.until_drop(100, None)
        == ()
    )


def test_a_trial_s_quiet_epochs_are_its_own_method_s_and_those_of_all() -> None:
    """Resets after 6 and 12 of 30 epochs, a dip of two epochs behind each; another period, another
    dip.
    """
    quiet = ProtectedEpochs(relearn(period=0.2, times=2), ((1, 3),))
    assert quiet({}) == ((1, 3), (6, 8), (12, 14))
    assert quiet({"optim.lr": 0.1}) == quiet({})
    assert quiet({"method.period": 0.3, "method.times": 1}) == ((1, 3), (9, 11))
    assert ProtectedEpochs(load_config("avdigits"))({}) == ()


def test_all_trials_keep_to_the_dips_of_any_setting_that_is_listed() -> None:
    """G-Blending: fixed has none, offline estimates after epoch 1, online after 1, 11 and 21
    (super-epoch 10).
    """
    space = space_files.build("g_blending_avdigits", space_files.read("g_blending_avdigits"), {})
    assert protected.shared(space, with_overrides(space.base, {"train.epochs": 30})) == (
        (2, 3),
        (12, 13),
        (22, 23),
    )
    assert protected.text(((2, 3), (12, 12))) == "2-3, 12"
    joint = space_files.build("joint_avdigits", space_files.read("joint_avdigits"), {})
    assert protected.shared(joint, joint.base) == ()


def shown(searches: Searches, text: str) -> str:
    out = StringIO()
    options = Options(root=searches.root, space=searches.write(text))
    assert search.run(options, Console(file=out, width=300), dry=True, build=Toy) == 0
    return next(line for line in out.getvalue().splitlines() if "scheduler" in line)


def test_the_plan_says_when_asha_decides_and_why_not_before(searches: Searches) -> None:
    """Rungs 1, 3, 9 of 9 epochs; a reset after epoch 3 (.3 x 9) is a dip of 3 and 4."""
    text = TOY.replace("method: joint", "method: {name: relearn, period: 0.3, times: 1}")
    assert "decides after 1, 3, 9 passes over the data, keeps 1 in 3" in shown(searches, TOY)
    line = shown(
        searches,
        text.replace(
            "method: {name: relearn, period: 0.3, times: 1}",
            "method: relearn\nset: {method.period: 0.3, method.times: 1}",
        ),
    )
    assert "decides after 1, 5, 9 passes over the data" in line
    assert "(not in epochs 3-4, where relearn lets metrics dip)" in line


def test_passes_are_kept_with_a_trial_and_decide_after_a_resume(searches: Searches) -> None:
    """Two and a half passes per epoch: what ended is in the ledger by epoch and by passes."""
    dear = partial(Toy, passes=2.5)
    assert searches.run(searches.write(), build=dear) == 0, searches.says
    book = searches.book("toy-1")
    found = list(book.past(TrialState.COMPLETE, TrialState.PRUNED))
    assert len(found) == 6
    for known in found:
        assert [e for e, _ in known.reported] == list(range(1, len(known.reported) + 1))
        assert [p for _, p, _ in known.timeline()] == [2.5 * e for e, _ in known.reported]
    stopped = [len(known.reported) for known in found if len(known.reported) < 9]
    # Rungs 1, 3, 9, 27 in passes are met at epochs 1 (2.5), 2 (5), 4 (10); 22.5 is all that there
    # is.
    assert stopped
    assert set(stopped) <= {1, 2, 4}
    assert searches.run(name="toy-1", extend=2, build=dear) == 0, searches.says
    assert len(searches.book("toy-1").trials()) == 8


def test_nothing_is_kept_where_a_pass_is_an_epoch(searches: Searches) -> None:
    assert searches.run(searches.write(), trials=2) == 0, searches.says
    assert all("passes" not in t.user_attrs for t in searches.book("toy-1").trials())
