"""The description of a search's parent run: what it says follows from the search's summary alone."""

from typing import Any

import pytest

from tune_mm.track import description, limits

FACTS = {
    "method": "cggm",
    "dataset": "iemocap",
    "data_kind": "real",
    "objective": "val/loss",
    "mode": "min",
    "trials": 20,
    "epochs": 5,
    "searcher": "tpe",
    "scheduler": "asha",
}


def summary(low: float = 0.01, high: float = 0.03, gain: bool = True) -> dict[str, Any]:
    """A summary.json with one tuned setting and one baseline."""
    result = {"metric": "test/loss", "mean": 0.5, "std": 0.25, "n": 3}
    found = {
        "metric": "test/loss",
        "mean": (low + high) / 2,
        "std": 0.1,
        "n": 3,
        "interval95": [low, high],
    }
    settings = {"method.rho": 1.23456, "optim.name": "adam", "model": {"encoder": {"name": "mlp"}}}
    return {
        "status": "completed",
        "objective": "val/loss",
        "stages": {"search": {"complete": 12, "pruned": 8}, "baseline": {}},
        "best": {"search": [{"trial": 7, "value": 0.125, "settings": settings}], "baseline": []},
        "finals": {
            "groups": [{"source": "search/7", "settings": settings, "result": result}],
            "gain": found if gain else None,
        },
    }


def test_the_heading_says_what_is_searched_and_which_way_is_better() -> None:
    assert description.heading("first", FACTS) == (
        "Search **first**: cggm on iemocap, real data.\n"
        "Objective val/loss (lower is better); 20 trials of up to 5 epochs; searcher tpe, scheduler asha."
    )
    assert "higher is better" in description.heading("first", {**FACTS, "mode": "max"})


def test_synthetic_data_are_said_to_prove_nothing() -> None:
    said = "synthetic data: the numbers say nothing about the real data set."
    assert said in description.heading("first", {**FACTS, "data_kind": "synthetic"})
    assert "nothing" not in description.heading("first", FACTS)


def test_the_outcome_has_gain_status_finals_and_best_trial() -> None:
    assert description.outcome(summary()).split("\n\n") == [
        "Gain over the tuned baseline: **+0.0200** test/loss, 3 paired seeds, 95 % interval +0.0100 to +0.0300.",
        "Status: completed (search: 12 complete, 8 pruned).",
        "Finals, mean ± standard deviation over seeds:",
        "* search 7: **0.5000 ± 0.2500** test/loss, n = 3; method.rho=1.23 optim.name=adam",
        "Best trials:",
        "* search 7: 0.1250 val/loss; method.rho=1.23 optim.name=adam",
    ]


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(-0.01, 0.01, False), (0.0, 0.02, False), (-0.03, -0.01, True)]
)
def test_an_interval_that_contains_zero_shows_no_difference(
    low: float, high: float, shown: bool
) -> None:
    assert ("no difference is shown" not in description.outcome(summary(low, high))) == shown


def test_a_search_that_was_stopped_early_says_what_it_has() -> None:
    early = {**summary(), "status": "interrupted", "stages": {}, "best": {}, "finals": None}
    assert description.outcome(early) == "Status: interrupted."
    assert "Gain" not in description.outcome(summary(gain=False))


def test_one_seed_has_no_interval() -> None:
    found = summary()
    found["finals"]["gain"] |= {"n": 1, "interval95": None}
    assert description.outcome(found).startswith(
        "Gain over the tuned baseline: **+0.0200** test/loss, one seed, no interval."
    )


def test_links_lead_to_the_artifacts_of_the_run() -> None:
    said = description.links("first", "4", "abc")
    assert "(#/experiments/4/runs/abc/artifacts/summary.json)" in said
    assert "`python -m tune_mm.report search first`" in said


def test_a_long_description_is_cut_to_what_a_tag_holds() -> None:
    assert description.text("one", "", "two") == "one\n\ntwo"
    assert len(description.text("x" * 2 * limits.TAG)) == limits.TAG
