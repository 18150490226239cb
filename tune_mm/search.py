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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tune_mm.cli import Parser, count, duration, gpu_share, positive, run_cli, seed
from tune_mm.config.yaml import read_value
from tune_mm.errors import ConfigError, UserError

EPILOG = """exit codes: 0 done; 1 trials failed (each is named; one that diverged is a result,
no failure); 2 a mistake in what was asked for; 130 interrupted (resume with --resume)"""


def _setting(text: str) -> tuple[str, Any]:
    """A key and its value, read as YAML, of `key=value`."""
    key, sign, value = text.partition("=")
    key = key.strip()
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"must be key=value, got '{text}'")
    try:
        return key, read_value(value)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{key}: {error}") from None


def _listed(text: str) -> str:
    if text not in ("spaces", "methods"):
        raise argparse.ArgumentTypeError(f"must be spaces or methods, got '{text}'")
    return text


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = Parser(prog="tune_mm.search", description=__doc__, epilog=EPILOG)
    _add_subject(line)
    _add_budget(line)
    _add_data(line)
    _add_resources(line)
    _add_stores(line)
    return line


def _add_subject(line: Parser) -> None:
    group = line.add_argument_group("what is searched")
    group.add_argument(
        "--space", metavar="NAME|PATH", help="a space or a suite of search_spaces/, or a file"
    )
    group.add_argument(
        "--list",
        type=_listed,
        nargs="?",
        const="spaces",
        metavar="methods",
        help="show the spaces, or the methods and what each can train, and leave",
    )
    group.add_argument("--dry-run", action="store_true", help="show what would be done and leave")
    group.add_argument(
        "--name", metavar="NAME", help="of the search (default: the space's and a number)"
    )
    group.add_argument(
        "--resume", action="store_true", help="resume --name, or the latest search of --space"
    )
    group.add_argument("--extend", type=count, metavar="N", help="the same with N more trials")
    group.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="fix a setting of the config (repeatable); one that is searched no longer is",
    )
    group.add_argument(
        "--seed",
        type=seed,
        metavar="N",
        help="of the sampler and of every trial (default: the config's)",
    )


def _add_budget(line: Parser) -> None:
    group = line.add_argument_group("budget")
    group.add_argument(
        "--trials", type=count, metavar="N", help="trials of the search (and of the baseline)"
    )
    group.add_argument(
        "--epochs", type=count, metavar="N", help="full budget of a trial and of a final run"
    )
    group.add_argument(
        "--time-budget",
        type=duration,
        metavar="TIME",
        help="bounds the tuning of this call (search and baseline), not the finals: 90s, 30m, 1.5h",
    )


def _add_data(line: Parser) -> None:
    group = line.add_argument_group("data")
    group.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="where the data sets are (else TUNE_MM_DATA, else data/)",
    )
    group.add_argument(
        "--require-real", action="store_true", help="fail instead of using synthetic data"
    )
    group.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave damaged clips out, and list them (data.skip_bad)",
    )


def _add_resources(line: Parser) -> None:
    group = line.add_argument_group("resources")
    group.add_argument(
        "--concurrency",
        type=count,
        metavar="N",
        help="trials at a time (default: what the resources allow)",
    )
    group.add_argument("--cpus-per-trial", type=positive, metavar="X", help="CPUs of one trial")
    group.add_argument(
        "--gpus-per-trial",
        type=gpu_share,
        metavar="X",
        help="GPUs of one trial; 0.25: four trials share one; "
        "auto: as many as fit by the measured memory of one; 0: CPU",
    )
    group.add_argument(
        "--mps",
        action="store_true",
        help="start NVIDIA's Multi-Process Service on the nodes with GPUs",
    )
    group.add_argument(
        "--address", metavar="ADDRESS", help="join a Ray cluster ('auto': the one on this machine)"
    )


def _add_stores(line: Parser) -> None:
    group = line.add_argument_group("where results go")
    group.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (else MLFLOW_TRACKING_URI, else mlruns/mlflow.db)",
    )
    group.add_argument(
        "--storage",
        metavar="DIR|URI",
        help="checkpoints; on a cluster a place that all nodes reach",
    )


def uploaded() -> bool:
    """Whether this file is a copy outside the installed package.

    `ray submit` puts one into the head's home.
    """
    import tune_mm

    return Path(__file__).resolve().parent != Path(tune_mm.__file__).resolve().parent


def _address(given: str | None) -> str | None:
    """Where Ray is: an uploaded file runs on a cluster's head and joins that cluster."""
    if given:
        return given
    if uploaded() and not os.environ.get("RAY_ADDRESS"):
        return "auto"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command line. Raises UserError for a mistake in it."""
    given = parser().parse_args(arguments)
    from rich.console import Console

    from tune_mm.tune import search, suite_search
    from tune_mm.tune.output import listing
    from tune_mm.tune.plan import suite_plan
    from tune_mm.tune.plan.plan import Options

    on_terminal = sys.stdout.isatty()
    width = None if on_terminal else 200
    console = Console(soft_wrap=not on_terminal, highlight=False, width=width)
    if given.list == "methods":
        return listing.methods(console)
    if given.list:
        return listing.spaces(console)
    if given.resume and given.extend is not None:
        raise UserError(
            "--resume and --extend: give one of them (--extend also finishes what is unfinished)"
        )
    overrides = dict(given.settings)
    if given.skip_bad:
        overrides["data.skip_bad"] = True
    options = Options(
        root=Path(os.getcwd()),
        space=given.space,
        name=given.name,
        trials=given.trials,
        epochs=given.epochs,
        seed=given.seed,
        overrides=overrides,
        data_root=given.data_root,
        require_real=given.require_real,
        concurrency=given.concurrency,
        cpus=given.cpus_per_trial,
        gpus=given.gpus_per_trial,
        mps=given.mps,
        time_budget=given.time_budget,
        tracking_uri=given.tracking_uri,
        storage=given.storage,
        address=_address(given.address),
        resume=given.resume,
        extend=given.extend,
    )
    if suite_plan.asked(options):
        run = suite_search.run
    else:
        run = search.run
    return run(options, console, dry=given.dry_run)


if __name__ == "__main__":
    sys.exit(run_cli(main))
