"""MSLR: ratios by name, what the optimizer makes of them, and rates that follow validation scores."""

import pytest
import torch

from tests import support
from tune_mm.config import check_field, flatten, load_config, with_overrides
from tune_mm.core import build, step
from tune_mm.core.run import Run
from tune_mm.core.settings import float_fields
from tune_mm.core.types import Clock
from tune_mm.methods import mslr
from tune_mm.tune.space import space as space_files

CLOCK = Clock(0, 0, 6, 2)
SPACE = """# A ratio for a modality.
config: avdigits
method: mslr
objective: val/accuracy
domains:
  method.ratios.{name}: {{loguniform: [0.1, 10]}}
defaults:
  - {{method.ratios.{name}: 1.0}}
"""


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def moves(method, optimizer, **settings):
    """What the first step of a run changes, by parameter, in float32."""
    changes = {"optim.name": optimizer, "optim.lr": 0.1, "optim.clip": None}
    run = Run(support.config(method, overrides=changes, **settings), support.dataset())
    before = {n: p.detach().clone() for n, p in run.net.params.items()}
    run.step(run.splits["train"].batch(torch.arange(16)), CLOCK)
    return {n: p.detach() - before[n] for n, p in run.net.params.items()}


def test_a_ratio_is_a_setting_of_its_own():
    cfg = load_config(
        "avdigits", ["method=mslr", "method.ratios.audio=0.5", "method.ratios.visual=2"]
    )
    flat = flatten(cfg)
    assert (flat["method.ratios.audio"], flat["method.ratios.visual"]) == (0.5, 2.0)
    assert float_fields(cfg.method) == {
        "ratios.audio": 0.5,
        "ratios.visual": 2.0,
        "smooth": 0.0,
    }
    assert (
        with_overrides(
            load_config("avdigits", ["method=mslr"]),
            {"method.ratios.visual": 2.0, "method.ratios.audio": 0.5},
        )
        == cfg
    )
    assert (
        check_field(cfg, "method.ratios.audio", 0.0) == "method.ratios.audio: must be > 0, got 0.0"
    )


@pytest.mark.parametrize(
    ("name", "problem"), [("audio", None), ("audoi", "no modality 'audoi'; nearest 'audio'")]
)
def test_a_searched_ratio_is_tried_on_the_data_before_trials_start(name, problem, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE.format(name=name))
    space = space_files.build("mine", space_files.read(str(path)), {})
    assert {f"method.ratios.{name}": 0.1} in space_files.variants(space)
    spec = support.dataset(("audio", "visual")).spec
    tried = [
        with_overrides(support.config("mslr"), change) for change in space_files.variants(space)
    ]
    refused = set()
    for cfg in tried:
        try:
            build.check(cfg, spec)
        except ValueError as error:
            refused.add(str(error))
    assert refused == (
        set() if problem is None else {f"method.ratios: {problem}; available: audio, visual"}
    )


def test_smoothing_is_a_geometric_mean():
    """4^1 = 4, 4^0.5 = 2, 4^0 = 1; 0.25^0.5 = 0.5."""
    found = [mslr.smoothed(tensor(4.0, 0.25), tensor(s)[0]).tolist() for s in (0.0, 0.5, 1.0)]
    assert found == [[4.0, 0.25], [2.0, 0.5], [1.0, 1.0]]


def test_progress_by_hand():
    """0.6 / mean(0.4, 0.6) = 1.2; 0.2 / mean(0.5, 0.3) = 0.5; nothing before: 1."""
    found = mslr.progress(
        tensor(0.6, 0.2, 0.7), torch.stack([tensor(0.4, 0.5, 0.0), tensor(0.6, 0.3, 0.0)])
    )
    torch.testing.assert_close(found, tensor(1.2, 0.5, 1.0))


def test_rates_multiply_what_the_optimizer_would_have_taken():
    hp = {"lr": tensor(0.1)[0], "momentum": tensor(0.9)[0]}
    found = step.rated(
        {"aux": {"lr": tensor(0.5)[0]}}, hp, {"aux": tensor(3.0)[0], "encoders.a": tensor(2.0)[0]}
    )
    assert {owner: {k: float(v) for k, v in own.items()} for owner, own in found.items()} == {
        "aux": {"lr": 1.5},
        "encoders.a": {"lr": 0.2},
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_encoders_step_at_their_own_rates(optimizer):
    """Multiplied gradients would change nothing under Adam, whose first step is lr *
    sign(gradient).
    """
    plain = moves("joint", optimizer)
    found = moves("mslr", optimizer, ratios={"text": 0.25, "audio": 4.0})
    halved = moves("mslr", optimizer, ratios={"text": 0.25, "audio": 4.0}, smooth=0.5)
    for name, change in plain.items():
        factor = {"encoders.text": 0.25, "encoders.audio": 4.0}.get(
            ".".join(name.split(".")[:2]), 1.0
        )
        torch.testing.assert_close(
            found[name], factor * change, rtol=1e-3, atol=1e-6, msg=support.named(name)
        )
        torch.testing.assert_close(
            halved[name], factor**0.5 * change, rtol=1e-3, atol=1e-6, msg=support.named(name)
        )


@pytest.mark.parametrize(
    ("task", "metric"), [("classification", "accuracy"), ("regression", "mae")]
)
def test_dynamic_rates_follow_validation(task, metric):
    """d = a_t / mean(a of the K = 2 epochs before), from the third epoch on; a = accuracy, or 1 /
    mae.
    """
    modalities = ("text", "audio", "visual")
    cfg = support.config("mslr", overrides={"train.epochs": 4}, strategy="dynamic", memory=2)
    run = Run(cfg, support.dataset(modalities, task))
    scores, expected = [], [[1.0] * 3]
    for epoch in range(4):
        found = run.epoch().metrics
        assert [found[f"balance/{m}"] for m in modalities] == pytest.approx(expected[-1], rel=1e-5)
        raw = [found[f"val/{metric}/{m}"] for m in modalities]
        scores.append(raw if metric == "accuracy" else [1 / x for x in raw])
        ratio = (
            [2 * now / (a + b) for a, b, now in zip(*scores[-3:], strict=True)]
            if epoch >= 2
            else [1.0] * 3
        )
        expected.append(ratio)
    assert expected[3] != [1.0] * 3
    assert run.state["rate"].tolist() == pytest.approx(expected[4], rel=1e-5)


def test_a_dynamic_rate_moves_its_encoder():
    cfg = support.config(
        "mslr",
        overrides={"optim.name": "sgd", "optim.lr": 0.1, "optim.clip": None},
        strategy="dynamic",
    )
    changes = []
    for rate in (1.0, 3.0):
        run = Run(cfg, support.dataset())
        run.state["rate"] = torch.tensor([1.0, rate, 1.0])
        before = {n: p.detach().clone() for n, p in run.net.params.items()}
        run.step(run.splits["train"].batch(torch.arange(16)), CLOCK)
        changes.append({n: p.detach() - before[n] for n, p in run.net.params.items()})
    for name, change in changes[0].items():
        factor = 3.0 if name.startswith("encoders.audio.") else 1.0
        torch.testing.assert_close(
            changes[1][name], factor * change, rtol=1e-3, atol=1e-6, msg=support.named(name)
        )


def test_dynamic_rates_survive_a_checkpoint(tmp_path):
    cfg = support.config("mslr", overrides={"train.epochs": 4}, strategy="dynamic", memory=1)
    whole, first = Run(cfg, support.dataset()), Run(cfg, support.dataset())
    for _ in range(4):
        whole.epoch()
    first.epoch()
    first.epoch()
    torch.save(first.state_dict(), tmp_path / "run.pt")
    second = Run(cfg, support.dataset())
    second.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    second.epoch()
    second.epoch()
    assert all(torch.equal(p, second.net.params[n]) for n, p in whole.net.params.items())
    assert all(torch.equal(t, second.state[n]) for n, t in whole.state.items())
