"""Optuna's samplers by name, each seeded by the trial's number."""

from __future__ import annotations

import hashlib
import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler

from tune_mm.tune.propose.cmaes import RebuiltCmaEs
from tune_mm.tune.propose.tpe import WindowedTPE
from tune_mm.tune.space.domains import SearcherName


def seed_of(seed: int, number: int) -> int:
    """A seed for trial `number`, the same in every process (Python's own hash is not)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def make_sampler(
    name: SearcherName, seed: int, number: int, startup: int, conditional: bool
) -> BaseSampler:
    """The sampler for trial `number` of a search with `seed`.

    startup: trials drawn at random before a model is trusted (tpe, cmaes), or the population
        (nsgaii).
    conditional: trials differ in what is drawn.
    """
    chosen = seed_of(seed, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "tpe":
            return WindowedTPE(chosen, startup, conditional)
        if name == "cmaes":
            return RebuiltCmaEs(chosen, startup)
        if name == "nsgaii":
            return NSGAIISampler(seed=chosen, population_size=max(startup, 2))
    # A grid's trials are decided beforehand: it draws nothing.
    return RandomSampler(seed=chosen)
