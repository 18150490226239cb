"""Data on the command line.

    python -m tune_mm.data list
    python -m tune_mm.data describe mosi --root DIR
    python -m tune_mm.data make iemocap --root DIR --dominant text --imbalance 0.6 --noise 1 --seed 0
    python -m tune_mm.data extract food101 --root DIR --image-model PATH --text-model PATH --views 4

NAME is a data set (`list` shows them) or a configuration whose `data:` section is taken
(`utd_mhad`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tune_mm.cli import INTERRUPTED, MISTAKE, Parser
from tune_mm.data import base, catalog
from tune_mm.data.features import extract
from tune_mm.data.features.store import open_features
from tune_mm.data.summary import described
from tune_mm.errors import ConfigError, UserError

_ROOT = f"data root; default: {base.ENV_ROOT}, else ./data"


def _list(args: argparse.Namespace) -> None:
    for line in catalog.listed():
        print(line)


def _describe(args: argparse.Namespace) -> None:
    overrides = list(args.set)
    if args.skip_bad:
        overrides.append("skip_bad=true")
    config = catalog.section(args.name, overrides)
    source = base.resolve(config, args.root, require_real=args.require_real)
    dataset = base.load(config, source)
    print(source.message or f"{dataset.name}: real data from {source.root}")
    for line in described(dataset):
        print(line)


def _make(args: argparse.Namespace) -> None:
    config = catalog.section(args.name, args.set)
    shapes = dict(_shape(text) for text in args.shape)
    options = base.options_of(config, shapes, vars(args))
    place = base.make(config, args.root, options)
    print(
        f"{place}: synthetic {args.name}, "
        f"{options.train} / {options.val} / {options.test} samples; {options.dominant} dominates "
        f"(imbalance {options.imbalance}, noise {options.noise}, seed {options.seed})"
    )


def _extract(args: argparse.Namespace) -> None:
    config = catalog.section(args.name, args.set)
    plugin = extract.plugin_of(config)
    settings = extract.Settings(args.views, args.seed, args.text_tokens, args.batch, args.skip_bad)
    device = extract.device(args.device)
    models = extract.Models(args.image_model.expanduser(), args.text_model.expanduser(), device)
    source = base.resolve(config, args.root)
    samples = plugin.samples(config, source.root)
    folder = plugin.stores(config, source.root)[0]
    if source.message:
        print(source.message, file=sys.stderr)
    store, bad = extract.extract(args.name, samples, folder, models, settings)
    for name, reason in bad.items():
        print(f"left out: {name}: {reason}")
    opened = open_features(store)
    count = len(opened.opened.rows) - len(bad)
    print(f"{store}: features of {count} samples, {opened.about}")


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Modality and shape, of `modality=TxD`. Raises ConfigError."""
    name, _, sizes = text.partition("=")
    try:
        return name, tuple(int(size) for size in sizes.split("x"))
    except ValueError:
        wanted = "modality=TxD or modality=D, for example text=12x64"
        raise ConfigError(f"--shape {text!r}: must be {wanted}") from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tune_mm.data", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("list", help="the data sets and the files they expect")
    show.set_defaults(run=_list)
    _add_describe(commands)
    _add_make(commands)
    _add_extract(commands)
    return parser


def _add_command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    """A command on one data set."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about)
    parser.add_argument("name", help="a data set or a configuration")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a field of `data:`"
    )
    return parser


def _add_describe(commands: Any) -> None:
    parser = _add_command(commands, "describe", "load a data set and show what it holds")
    parser.set_defaults(run=_describe)
    parser.add_argument("--root", type=Path, help=_ROOT)
    parser.add_argument("--require-real", action="store_true", help="refuse synthetic data")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave damaged clips out, and list them"
    )


def _add_make(commands: Any) -> None:
    about = "write a synthetic data set in the real on-disk format"
    parser = _add_command(commands, "make", about)
    parser.set_defaults(run=_make)
    parser.add_argument(
        "--root", type=Path, required=True, help="data root to write below; nothing is overwritten"
    )
    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}", type=int, help="samples")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="MODALITY=TxD",
        help="longest sequence x width",
    )
    parser.add_argument("--dominant", help="the strongest modality")
    parser.add_argument("--imbalance", type=float, help="0 (all alike) to 1")
    parser.add_argument("--noise", type=float, help="standard deviation of the noise")


def _add_extract(commands: Any) -> None:
    about = "features of frozen models, computed once; interrupted runs resume"
    parser = _add_command(commands, "extract", about)
    parser.set_defaults(run=_extract)
    parser.add_argument("--root", type=Path, help=_ROOT)
    for kind, example in (("image", "ViT"), ("text", "BERT")):
        about = f"local folder of a model such as {example}"
        parser.add_argument(f"--{kind}-model", type=Path, required=True, help=about)
    parser.add_argument(
        "--views",
        type=int,
        default=1,
        help="of every training image, the plain one included; default: 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the augmented views")
    parser.add_argument(
        "--text-tokens",
        type=int,
        default=50,
        help="longest text, special tokens included; default: 50",
    )
    parser.add_argument("--batch", type=int, default=64, help="samples at a time; default: 64")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 ...")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out what cannot be read, and list it"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 after one message for a user's mistake."""
    try:
        args = _parser().parse_args(argv)
        args.run(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print(
            "stopped; what an extraction has done is kept, and the same command resumes",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
