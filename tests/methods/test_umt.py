"""UMT: distances to fixed teachers by hand, and teachers that a search shares."""

from pathlib import Path

import pytest
import torch

from tests import support
from tests.methods import dense
from tune_mm.config import ConfigError, load_config, with_overrides
from tune_mm.core.build import check
from tune_mm.core.run import Run
from tune_mm.core.types import Clock, DataSpec, Padded, Task
from tune_mm.data.base import ENV_CACHE
from tune_mm.methods.umt import feature_distance, logit_distance

MODALITIES = ("text", "audio", "visual")
CLOCK = Clock(0, 0, 6, 2)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def make(task="classification", overrides=(), **settings):
    data = support.dataset(MODALITIES, task)
    cfg = support.config("umt", overrides=dict(overrides), **settings)
    method, net = support.bound(cfg, data)
    start = support.start(cfg, data)
    return cfg, method, net, support.batch(data), start


def test_feature_distance_by_hand():
    """Vectors: (1 + 4 + 0 + 9) / 4. A sequence of 2 of 3 real steps and one of 1: ((1 + 4)/2 + 9) /
    2, width 1.
    """
    found = feature_distance(Padded(tensor([1, 2], [3, 0])), Padded(tensor([0, 0], [3, 3])))
    torch.testing.assert_close(found, tensor(3.5)[0])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    student, teacher = (
        tensor([[1], [2], [7]], [[3], [8], [9]]),
        torch.zeros(2, 3, 1, dtype=torch.float64),
    )
    found = feature_distance(Padded(student, mask), Padded(teacher, mask))
    torch.testing.assert_close(found, tensor((2.5 + 9) / 2)[0])


def test_logit_distance_by_hand():
    """T = 2: teacher softmax(ln 9 / 2, 0) = (3/4, 1/4), student (1/2, 1/2): 4 (3/4 ln 3/2 + 1/4 ln
    1/2).
    """
    teacher, student = tensor([9, 1]).log(), tensor([0, 0])
    expected = 4 * (0.75 * tensor(1.5).log() + 0.25 * tensor(0.5).log())[0]
    torch.testing.assert_close(logit_distance(student, teacher, tensor(2)[0]), expected)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("distill", ["features", "logits"])
def test_loss_with_the_teachers_own_models(distill, task):
    """The teachers' features and logits from their own models and fusions, not from the state."""
    cfg, method, net, batch, start = make(task, distill=distill, lam=3.0, temperature=2.0)
    found = method.grads(net, batch, support.hp(cfg.method), method.init(net, start), CLOCK)
    teachers = start.unimodal(cfg.method.teacher.changes(net.task))
    features = net.encode(batch.inputs)
    distances = []
    for m, teacher in teachers.items():
        theirs = {k: f.detach() for k, f in teacher.encode({m: batch.inputs[m]}).items()}
        own, fixed = features[m], theirs[m]
        score, target = net.unimodal(features)[m], teacher.fuse(theirs)
        if distill == "features":
            square = [
                ((a - b)[real] ** 2).mean()
                for a, b, real in zip(own.value, fixed.value, own.mask, strict=True)
            ]
            distances.append(torch.stack(square).mean())
        elif task == "regression":
            distances.append(((score - target) ** 2).mean())
        else:
            p, q = torch.softmax(target / 2, -1), torch.softmax(score / 2, -1)
            distances.append(4 * (p * (p / q).log()).sum(-1).mean())
    loss = net.loss(net.fuse(features), batch.target) + 3 * sum(distances)
    torch.testing.assert_close(found.loss, loss.detach())
    for name, gradient in zip(
        net.params, torch.autograd.grad(loss, list(net.params.values())), strict=True
    ):
        torch.testing.assert_close(found.grads[name], gradient, msg=support.named(name))


@pytest.mark.parametrize("network", ["unet", "esanet"])
def test_what_pixels_learn_from_is_what_the_teachers_own_forward_pass_makes(network):
    """ESANet: the teacher's maps after the first stage, to which its own forward pass gives no
    others; later ones would lack its gates. U-Net: the maps of all scales, each scale counting as
    much.
    """
    data, cfg = dense.dataset(2), dense.config("umt", network)
    method, net = support.bound(cfg, data)
    start, batch = support.start(cfg, data), dense.batch(data)
    net.model.train()
    logs = method.loss(net, batch, support.hp(cfg.method), method.init(net, start), CLOCK)[1]
    features = net.encode(batch.inputs)
    for m, teacher in start.unimodal(cfg.method.teacher.changes(net.task)).items():
        with torch.no_grad(), teacher.evaluating():
            theirs = teacher.encode({m: batch.inputs[m]})[m]
        maps = (
            [features[m].value] if network == "esanet" else [*features[m].levels, features[m].value]
        )
        expected = [
            ((a - b) ** 2).mean() for a, b in zip(maps, (*theirs.levels, theirs.value), strict=True)
        ]
        assert bool(expected[0] > 0)
        torch.testing.assert_close(logs[f"train/distance/{m}"], torch.stack(expected).mean())


def trained(cache: Path) -> list[Path]:
    return sorted((cache / "unimodal").glob("*.pt"))


def test_a_search_shares_its_teachers(tmp_path, monkeypatch):
    """Everything that spaces tune may differ; the teachers' tensors and files are the same. A seed
    has its own.
    """
    monkeypatch.setenv(ENV_CACHE, str(tmp_path))
    cfg, data = support.config("umt", teacher={"epochs": 1}), support.dataset()
    first = Run(cfg, data).state
    files = trained(tmp_path)
    assert len(files) == 3
    tuned = {
        "optim.lr": 0.5,
        "optim.weight_decay": 0.1,
        "optim.name": "sgd",
        "optim.clip": None,
        "method.lam": 50.0,
        "train.batch_size": 8,
        "model.fusion": "sum",
        "method.distill": "logits",
    }
    other = Run(with_overrides(cfg, tuned), data).state
    assert trained(tmp_path) == files
    assert first.keys() == other.keys()
    assert all(torch.equal(first[name], other[name]) for name in first)
    Run(with_overrides(cfg, {"seed": 5}), data)
    assert len(trained(tmp_path)) == 6
    Run(with_overrides(cfg, {"method.teacher.optim.lr": 0.01}), data)
    assert len(trained(tmp_path)) == 9


def test_teachers_do_not_move_and_are_in_the_checkpoint():
    run = Run(support.config("umt", teacher={"epochs": 1}), support.dataset())
    before = {n: t.clone() for n, t in run.state.items()}
    run.epoch()
    kept = run.state_dict()["method"]
    assert {n for n in kept if n.startswith("encoders.")} == set(run.net.group("encoders"))
    assert all(torch.equal(kept[n], t) for n, t in before.items())
    assert kept["head.text.weight"].shape == (3, 10)


def test_teachers_have_no_dropout():
    """A student with the teachers' weights is at a distance of 0 from them where it has no dropout
    itself.
    """
    overrides = {"model.encoder.dropout_residual": 0.5}
    cfg, method, net, batch, start = make(overrides=overrides)
    state = method.init(net, start)
    with torch.no_grad():
        for name in net.group("encoders"):
            net.params[name].copy_(state[name])
    hp = support.hp(cfg.method)
    drawn = torch.get_rng_state()
    net.model.eval()
    with torch.no_grad():
        logs = method.loss(net, batch, hp, state, CLOCK)[1]
    assert [float(logs[f"train/distance/{m}"]) for m in MODALITIES] == [0, 0, 0]
    assert torch.equal(torch.get_rng_state(), drawn)
    net.model.train()
    net.encode(batch.inputs)
    after_one_pass = torch.get_rng_state()
    torch.set_rng_state(drawn)
    with torch.no_grad():
        assert float(method.loss(net, batch, hp, state, CLOCK)[1]["train/distance/text"]) > 0
    assert torch.equal(torch.get_rng_state(), after_one_pass)
    assert net.model.training


def test_logits_are_refused_where_the_fusion_runs_the_encoders_later_stages():
    spec = DataSpec({"audio": (1, 40, 51), "visual": (1, 28, 28)}, Task("classification", 10))
    cfg = with_overrides(load_config("avdigits"), {"method": {"name": "umt", "distill": "logits"}})
    check(cfg, spec)
    staged = with_overrides(cfg, {"model.fusion": {"name": "mmtm", "stages": [2, 3]}})
    with pytest.raises(
        ValueError, match=r"method\.distill: must be features with this fusion, got 'logits'.*mmtm"
    ):
        check(staged, spec)
    check(with_overrides(staged, {"method.distill": "features"}), spec)


def test_unknown_teacher_settings_are_refused_with_the_nearest_name():
    with pytest.raises(
        ConfigError, match=r"method\.teacher\.epoch: .*nearest 'method\.teacher\.epochs'"
    ):
        support.config("umt", teacher={"epoch": 3})
