"""Search hyperparameters: Ray Tune trains, Optuna proposes, MLflow records.

python -m tune_mm.search --space cggm_iemocap
python -m tune_mm.search --space my_space.yaml --trials 40 --concurrency 4 --gpus-per-trial 0.25
python -m tune_mm.search --name cggm_iemocap-1 --resume
python -m tune_mm.search --space methods_avdigits                         # a suite: many methods, compared
ray submit cluster/aws.yaml tune_mm/search.py -- --space cggm_iemocap     # on a cluster, which it joins by itself
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tune_mm.cli import Parser, run_cli
from tune_mm.config.yaml import read_value
from tune_mm.errors import ConfigError, UserError

EPILOG = """exit codes: 0 done; 1 trials failed (each is named; one that diverged is a result, no failure);
2 a mistake in what was asked for; 130 interrupted (resume with --resume)"""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _count(text: str) -> int:
    return _checked(text, int, lambda n: n >= 1, "an integer >= 1")


def _seed(text: str) -> int:
    return _checked(text, int, lambda n: 0 <= n < 2**31, "an integer from 0 to 2147483647")


def _positive(text: str) -> float:
    return _checked(text, float, lambda x: 0 < x < float("inf"), "a number > 0")


def _share(text: str) -> float | str:
    if text == "auto":
        return text
    allowed = "auto or a number >= 0 (whole above 1), such as 0.25"
    share: float = _checked(
        text, float, lambda x: 0 <= x <= 1 or (1 < x < float("inf") and x == int(x)), allowed
    )
    return share


def _checked(text: str, kind: Any, holds: Any, what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not holds(value):
        raise argparse.ArgumentTypeError(f"must be {what}, got '{text}'")
    return value


def _duration(text: str) -> float:
    """Seconds of `90`, `90s`, `30m`, `1.5h`, `2d`."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)([smhd]?)", text)
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"must be a time such as 90s, 30m or 1.5h, got '{text}'")
    return float(match[1]) * _UNITS[match[2]]


def _listed(text: str) -> str:
    if text not in ("spaces", "methods"):
        raise argparse.ArgumentTypeError(f"must be spaces or methods, got '{text}'")
    return text


def _setting(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise argparse.ArgumentTypeError(f"must be key=value, got '{text}'")
    try:
        return key.strip(), read_value(value)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{key}: {error}") from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog="tune_mm.search", description=__doc__, epilog=EPILOG)
    p.add_argument(
        "--space", metavar="NAME|PATH", help="a space or a suite of search_spaces/, or a file"
    )
    kinds = "show the spaces, or the methods and what each can train, and leave"
    p.add_argument("--list", type=_listed, nargs="?", const="spaces", metavar="methods", help=kinds)
    p.add_argument("--dry-run", action="store_true", help="show what would be done and leave")
    p.add_argument(
        "--trials", type=_count, metavar="N", help="trials of the search (and of the baseline)"
    )
    p.add_argument(
        "--epochs", type=_count, metavar="N", help="full budget of a trial and of a final run"
    )
    p.add_argument("--set", type=_setting, action="append", default=[], metavar="KEY=VALUE", dest="settings",
                   help="fix a setting of the config (repeatable); one that is searched no longer is")  # fmt: skip
    p.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="of the sampler and of every trial (default: the config's)",
    )
    p.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="where the data sets are (else TUNE_MM_DATA, else data/)",
    )
    p.add_argument(
        "--require-real", action="store_true", help="fail instead of using synthetic data"
    )
    p.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave damaged clips out, and list them (data.skip_bad)",
    )
    p.add_argument(
        "--name", metavar="NAME", help="of the search (default: the space's and a number)"
    )
    p.add_argument(
        "--concurrency",
        type=_count,
        metavar="N",
        help="trials at a time (default: what the resources allow)",
    )
    p.add_argument("--cpus-per-trial", type=_positive, metavar="X", help="CPUs of one trial")
    gpus = "GPUs of one trial; 0.25: four trials share one; auto: as many as fit by the measured memory of one; 0: CPU"
    p.add_argument("--gpus-per-trial", type=_share, metavar="X", help=gpus)
    p.add_argument(
        "--mps",
        action="store_true",
        help="start NVIDIA's Multi-Process Service on the nodes with GPUs",
    )
    budget = "bounds the tuning of this call (search and baseline), not the finals: 90s, 30m, 1.5h"
    p.add_argument("--time-budget", type=_duration, metavar="TIME", help=budget)
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (else MLFLOW_TRACKING_URI, else mlruns/mlflow.db)",
    )
    p.add_argument(
        "--storage",
        metavar="DIR|URI",
        help="checkpoints; on a cluster a place that all nodes reach",
    )
    p.add_argument(
        "--address", metavar="ADDRESS", help="join a Ray cluster ('auto': the one on this machine)"
    )
    p.add_argument(
        "--resume",
        action="store_true",
        help="resume --name, or the latest search of --space",
    )
    p.add_argument("--extend", type=_count, metavar="N", help="the same with N more trials")
    return p


def uploaded() -> bool:
    """Whether this file is a copy outside the installed package: `ray submit` puts one into the
    head's home.
    """
    import tune_mm

    return Path(__file__).resolve().parent != Path(tune_mm.__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command line. Raises UserError for a mistake in it."""
    given = parser().parse_args(arguments)
    from rich.console import Console

    from tune_mm.tune import search, suite_search
    from tune_mm.tune.output import listing
    from tune_mm.tune.plan import suite_plan
    from tune_mm.tune.plan.plan import Options

    console = Console(
        soft_wrap=not sys.stdout.isatty(),
        highlight=False,
        width=None if sys.stdout.isatty() else 200,
    )
    if given.list:
        return listing.methods(console) if given.list == "methods" else search.spaces(console)
    if given.resume and given.extend is not None:
        raise UserError(
            "--resume and --extend: give one of them (--extend also finishes what is unfinished)"
        )
    options = Options(
        root=Path(os.getcwd()),
        space=given.space,
        name=given.name,
        trials=given.trials,
        epochs=given.epochs,
        seed=given.seed,
        overrides={**dict(given.settings), **({"data.skip_bad": True} if given.skip_bad else {})},
        data_root=given.data_root,
        require_real=given.require_real,
        concurrency=given.concurrency,
        cpus=given.cpus_per_trial,
        gpus=given.gpus_per_trial,
        mps=given.mps,
        time_budget=given.time_budget,
        tracking_uri=given.tracking_uri,
        storage=given.storage,
        address=given.address
        or ("auto" if uploaded() and not os.environ.get("RAY_ADDRESS") else None),
        resume=given.resume,
        extend=given.extend,
    )
    run = suite_search.run if suite_plan.asked(options) else search.run
    return run(options, console, dry=given.dry_run)


if __name__ == "__main__":
    sys.exit(run_cli(main))
