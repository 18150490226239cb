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

import torch

from tune_mm import plugins
from tune_mm.cli import Parser
from tune_mm.config import Section, file_names, load_config
from tune_mm.core.build import device_of
from tune_mm.core.types import VOID, Dataset, Padded, Split
from tune_mm.data import base
from tune_mm.data.arrays.checks import count
from tune_mm.data.features import extract as _extraction
from tune_mm.data.features.store import FeaturePlugin, open_features
from tune_mm.errors import ConfigError, UserError, nearest

# A complete configuration, of which only `data:` is replaced and used: `data=NAME` switches to the
# defaults of NAME.
_CARRIER = "iemocap"


def section(name: str, overrides: Sequence[str]) -> Section:
    """The `data:` section of a configuration, or of a data set by its defaults, with `key=value`
    overrides.

    Raises ConfigError.
    """
    changes = [f"data.{text}" for text in overrides]
    if name in file_names("configs") or name.endswith((".yaml", ".yml")):
        named: Section = load_config(name, changes).data
        return named
    known = plugins.available("data")
    if name not in known:
        every = sorted({*known, *file_names("configs")})
        raise ConfigError(
            f"no data set or configuration '{name}'{nearest(name, every)}; available: {', '.join(every)}"
        )
    plain: Section = load_config(_CARRIER, [f"data={name}", *changes]).data
    return plain


def _list(args: argparse.Namespace) -> None:
    width = max(map(len, plugins.available("data")))
    for name in plugins.available("data"):
        plugin = plugins.load("data", name)
        config = plugin.Config()
        about = (sys.modules[plugin.__module__].__doc__ or "").splitlines()[0]
        print(f"{name:<{width}}  {about}")
        print(
            f"{'':<{width}}  files: {', '.join(f'{plugin.folder_of(config)}/{f}' for f in plugin.files(config))}"
        )


def _describe(args: argparse.Namespace) -> None:
    config = section(args.name, [*args.set, *(["skip_bad=true"] if args.skip_bad else [])])
    source = base.resolve(config, args.root, require_real=args.require_real)
    dataset = base.load(config, source)
    print(source.message or f"{dataset.name}: real data from {source.root}")
    for line in describe(dataset):
        print(line)


def describe(dataset: Dataset) -> list[str]:
    """Shapes, sizes, how the target is spread and how much is padding, one line each."""
    task = dataset.spec.task
    if task.kind == "regression":
        outputs = ""
    else:
        outputs = f", {task.outputs} classes"
    lines = [f"task: {task.kind}{outputs}"]
    for modality, shape in dataset.spec.shapes.items():
        x = dataset.splits["train"].inputs[modality]
        mask = x.mask if isinstance(x, Padded) else None
        padding = ""
        if mask is not None:
            share = 1 - mask.float().mean().item()
            padding = f", {share:.0%} of train's steps are padding"
        lines.append(f"{modality}: {list(shape)}{padding}")
    for name, split in dataset.splits.items():
        lines.append(f"{name}: {len(split)} samples, {_spread(split, task.kind)}")
    lines += [f"note: {note}" for note in dataset.notes]
    return lines + [f"left out: {name}: {reason}" for name, reason in dataset.dropped.items()]


def _spread(split: Split, kind: str) -> str:
    if kind == "regression":
        t = split.target
        return f"values {t.min().item():.3g} to {t.max().item():.3g}, mean {t.mean().item():.3g}"
    if kind == "segmentation":
        found = count(split.target.numpy())
        unknown = ""
        if VOID in found:
            unknown = f", {found.pop(VOID) / split.target.numel():.1%} unknown"
        known = sum(found.values())
        return "pixels " + " ".join(f"{k}:{n / known:.1%}" for k, n in found.items()) + unknown
    return "per class " + " ".join(f"{k}:{n}" for k, n in count(split.target.numpy()).items())


def _make(args: argparse.Namespace) -> None:
    config = section(args.name, args.set)
    options = base.plugin_of(config).options(config)
    shapes = {**options.shapes, **dict(map(_shape, args.shape))}
    unknown = [m for m in shapes if m not in options.shapes]
    if unknown:
        available = ", ".join(options.shapes)
        raise ConfigError(
            f"--shape: no modality '{unknown[0]}'{nearest(unknown[0], options.shapes)}; available: {available}"
        )
    try:
        options = options.changed(**{**vars(args), "shapes": shapes})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    place = base.make(config, args.root, options)
    print(
        f"{place}: synthetic {args.name}, {options.train} / {options.val} / {options.test} samples; "
        f"{options.dominant} dominates (imbalance {options.imbalance}, noise {options.noise}, seed {options.seed})"
    )


def _extract(args: argparse.Namespace) -> None:
    config = section(args.name, args.set)
    plugin = base.plugin_of(config)
    if not issubclass(plugin, FeaturePlugin):
        known = []
        for n in plugins.available("data"):
            if issubclass(plugins.load("data", n), FeaturePlugin):
                known.append(n)
        raise ConfigError(
            f"{args.name}: is read as it is, nothing is to be extracted; data sets with features: {', '.join(known)}"
        )
    for name, least in (("views", 1), ("seed", 0), ("text_tokens", 3), ("batch", 1)):
        if getattr(args, name) < least:
            raise ConfigError(
                f"--{name.replace('_', '-')}: must be >= {least}, got {getattr(args, name)}"
            )
    try:
        device = torch.zeros(0, device=device_of(args.device)).device
    except RuntimeError as error:
        raise ConfigError(
            f"--device {args.device}: {next(iter(str(error).splitlines()), 'not there')}"
        ) from None
    source = base.resolve(config, args.root)
    models = _extraction.Models(args.image_model.expanduser(), args.text_model.expanduser(), device)
    settings = _extraction.Settings(
        args.views, args.seed, args.text_tokens, args.batch, args.skip_bad
    )
    samples = plugin.samples(config, source.root)
    folder = plugin.stores(config, source.root)[0]
    if source.message:
        print(source.message, file=sys.stderr)
    store, bad = _extraction.extract(args.name, samples, folder, models, settings)
    for name, reason in bad.items():
        print(f"left out: {name}: {reason}")
    print(
        f"{store}: features of {sum(map(len, samples.values())) - len(bad)} samples, {open_features(store).about}"
    )


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.partition("=")
    try:
        return name, tuple(int(n) for n in sizes.split("x"))
    except ValueError:
        raise ConfigError(
            f"--shape {text!r}: must be modality=TxD or modality=D, for example text=12x64"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tune_mm.data", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the data sets and the files they expect")
    show = commands.add_parser("describe", help="load a data set and show what it holds")
    write = commands.add_parser(
        "make", help="write a synthetic data set in the real on-disk format"
    )
    for command in (show, write):
        command.add_argument("name", help="a data set or a configuration")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="a field of `data:`"
        )
    _add_extract(commands)
    show.add_argument("--root", type=Path, help=f"data root; default: {base.ENV_ROOT}, else ./data")
    show.add_argument("--require-real", action="store_true", help="refuse synthetic data")
    show.add_argument(
        "--skip-bad", action="store_true", help="leave damaged clips out, and list them"
    )
    write.add_argument(
        "--root", type=Path, required=True, help="data root to write below; nothing is overwritten"
    )
    for name in ("train", "val", "test", "classes", "seed"):
        write.add_argument(
            f"--{name}", type=int, help=None if name in ("classes", "seed") else "samples"
        )
    write.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="MODALITY=TxD",
        help="longest sequence x width",
    )
    write.add_argument("--dominant", help="the strongest modality")
    write.add_argument("--imbalance", type=float, help="0 (all alike) to 1")
    write.add_argument("--noise", type=float, help="standard deviation of the noise")
    return parser


def _add_extract(commands: Any) -> None:
    parser = commands.add_parser(
        "extract", help="features of frozen models, computed once; interrupted runs resume"
    )
    parser.add_argument("name", help="a data set or a configuration")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a field of `data:`"
    )
    parser.add_argument(
        "--root", type=Path, help=f"data root; default: {base.ENV_ROOT}, else ./data"
    )
    for kind, example in (("image", "ViT"), ("text", "BERT")):
        parser.add_argument(
            f"--{kind}-model",
            type=Path,
            required=True,
            help=f"local folder of a model such as {example}",
        )
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
    commands = {"list": _list, "describe": _describe, "make": _make, "extract": _extract}
    try:
        args = _parser().parse_args(argv)
        commands[args.command](args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "stopped; what an extraction has done is kept, and the same command goes on",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
