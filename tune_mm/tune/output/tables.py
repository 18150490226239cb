"""The last tables of a search on the terminal: best trials, finals, gain."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from tune_mm.stats import Spread, direction, spread
from tune_mm.tune.output.display import number, settings
from tune_mm.tune.output.finals import FinalGroup, Finals
from tune_mm.tune.output.ranking import ranked
from tune_mm.tune.output.summary import counts, trial_facts
from tune_mm.tune.plan.plan import Plan
from tune_mm.tune.propose.ledger import Ledger

ROWS = {"search": 5, "baseline": 1}  # trials shown of each stage


def show(console: Console, plan: Plan, ledgers: Mapping[str, Ledger], found: Finals | None) -> None:
    """Print them."""
    for stage, rows in ROWS.items():
        if stage in ledgers:
            console.print(_best_table(plan, stage, ledgers[stage], rows))
    if found is None or not found.groups:
        return
    console.print(_finals_table(plan, found))
    # Within a suite the table of all searches has the gain.
    if not plan.space.exhaustive and not plan.options.suite:
        console.print(_gain_sentence(found))


def mean_and_deviation(found: Spread | None, signed: bool = False) -> str:
    """`0.7704 ± 0.0040`; of one value the mean alone, of none a dash."""
    if found is None:
        return "-"
    if signed:
        mean = f"{found.mean:+.4f}"
    else:
        mean = f"{found.mean:.4f}"
    if found.std is None:
        return mean
    return f"{mean} ± {found.std:.4f}"


def better_way(metric: str) -> str:
    """Which way a metric is better, in a word."""
    if direction(metric) == "min":
        return "lower"
    return "higher"


def _best_table(plan: Plan, stage: str, ledger: Ledger, rows: int) -> Table:
    objective = plan.space.spec.objective
    states = ", ".join(f"{count} {state}" for state, count in counts(ledger).items())
    table = Table(title=f"{stage} of {plan.name}: {states}", title_justify="left")
    for name in ("trial", objective, "epochs"):
        table.add_column(name, justify="right")
    table.add_column("state")
    table.add_column("settings")
    for trial in ranked(ledger)[:rows]:
        facts = trial_facts(trial)
        table.add_row(
            str(trial.number),
            number(facts["value"]),
            str(facts.get("epochs", "-")),
            facts["state"],
            settings(facts["settings"]),
        )
    return table


def _finals_table(plan: Plan, found: Finals) -> Table:
    seeds = ", ".join(str(seed) for seed in plan.final_seeds)
    how = "chosen by validation"
    if plan.space.exhaustive:
        how = "every point of the grid"
    title = f"finals: {plan.final_epochs} epochs, seeds {seeds}; mean ± standard deviation; {how}"
    table = Table(title=title, title_justify="left")
    table.add_column("from")
    for name in ("runs", plan.space.spec.objective, found.metric):
        table.add_column(name, justify="right")
    if plan.space.exhaustive:
        table.add_column("over the first", justify="right")
    table.add_column("settings")
    for group in found.groups:
        style = "bold" if group is found.winner else ""
        table.add_row(*_finals_row(plan, found, group), style=style)
    return table


def _finals_row(plan: Plan, found: Finals, group: FinalGroup) -> list[str]:
    cells = [
        group.source.replace("/", " "),
        str(len(group.val)),
        mean_and_deviation(spread(group.val.values())),
        mean_and_deviation(found.test(group)),
    ]
    if plan.space.exhaustive:
        first = found.groups[0]
        if group is first:
            gain = ""
        else:
            gain = mean_and_deviation(found.over(group, first), signed=True)
        cells.append(gain)
    cells.append(settings(group.values))
    return cells


def _gain_sentence(found: Finals) -> str:
    gain = found.gain
    if gain is None and found.baseline is None:
        return "no baseline to compare with"
    if gain is None:
        return "no gain: no seed ended in both"
    size = f"gain over the tuned baseline: {mean_and_deviation(gain, signed=True)} {found.metric}"
    way = f"{better_way(found.metric)} is better"
    if gain.interval is None:
        return f"{size} ({way}; one seed, no interval)"
    low, high = gain.interval
    sentence = f"{size} ({way}), {gain.n} paired seeds, 95 % interval {low:+.4f} to {high:+.4f}"
    if low > 0 or high < 0:
        return sentence
    return f"{sentence}; zero lies within: no difference is shown"
