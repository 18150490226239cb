"""What a proposal costs as a search grows: TPE's window and the journal against Optuna's own.

    python benchmarks/ask.py [--trials 1000 10000] [--rounds 15]

A study of five parameters, of whose trials six of ten were pruned, in a journal file. Per round
every sampler asks for one trial and draws it, in turn; the median of the process's CPU time. Writes
benchmarks/results/ask.json.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
from _measure import save
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_mm.tune.propose.journal import open_storage
from tune_mm.tune.propose.tpe import WindowedTPE

STARTUP = 10
SPACE: dict[str, BaseDistribution] = {
    "rho": FloatDistribution(0.5, 2.0),
    "lam": FloatDistribution(1e-3, 1.0, log=True),
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "clip": FloatDistribution(0.1, 5.0),
    "fusion": CategoricalDistribution(("concat", "sum", "film")),
}
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "window": lambda seed: WindowedTPE(seed, STARTUP, conditional=False),
    "optuna": lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True),
}
STORAGES: dict[str, Callable[[Path], BaseStorage]] = {
    "ours": open_storage,
    "optuna": lambda path: JournalStorage(JournalFileBackend(str(path))),
}


def ended(rng: random.Random) -> FrozenTrial:
    """A trial that completed, or was pruned after its first epoch."""
    rho = rng.uniform(0.5, 2.0)
    params = {
        "rho": rho,
        "lam": 10 ** rng.uniform(-3, 0),
        "lr": 10 ** rng.uniform(-5, -1),
        "clip": rng.uniform(0.1, 5.0),
        "fusion": rng.choice(("concat", "sum", "film")),
    }
    value = 0.1 * rng.random() - (rho - 1.2) ** 2
    if rng.random() < 0.6:
        return create_trial(
            params=params,
            distributions=SPACE,
            state=TrialState.PRUNED,
            intermediate_values={1: value},
        )
    return create_trial(
        params=params, distributions=SPACE, value=value, intermediate_values={1: value, 2: value}
    )


def proposals(storage: BaseStorage, count: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a proposal by sampler, in a study of `count` trials."""
    rng = random.Random(0)
    study = optuna.create_study(storage=storage, direction="maximize")
    study.add_trials([ended(rng) for _ in range(count)])
    taken: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    for number in range(rounds + 1):  # the first is for warming up
        for name, make in SAMPLERS.items():
            study.sampler = make(number)
            start = time.process_time()
            trial = study.ask(SPACE)
            taken[name].append(time.process_time() - start)
            study.tell(trial, rng.random())
    return {name: 1000 * statistics.median(times[1:]) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in given.trials:
            for name, make in STORAGES.items():
                storage = make(Path(folder) / f"{name}-{count}")
                row = proposals(storage, count, given.rounds)
                found[f"{count} trials, journal: {name}"] = row
                print(f"{count:6d} trials, journal {name:7s}", end="")
                print("".join(f"   {sampler} {ms:7.1f} ms" for sampler, ms in row.items()))
    save("ask", {"milliseconds": found, "rounds": given.rounds})


if __name__ == "__main__":
    main()
