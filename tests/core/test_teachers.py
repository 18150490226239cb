"""Models trained beforehand: once for what decides them, by however many processes, and again after
a change.
"""

import multiprocessing
from pathlib import Path

import pytest
import torch

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core import checkpoint, teachers
from tune_mm.core.build import method_of
from tune_mm.core.run import Run
from tune_mm.core.types import Dataset, Padded, Split, Stored, Tensors
from tune_mm.data.base import ENV_CACHE

OWN = {"train.epochs": 1, "optim.lr": 0.01, "optim.weight_decay": 0.0}


def alone(modality="text", changes=None, **overrides):
    base = with_overrides(support.config("dgl"), overrides)
    return teachers.alone(base, modality, {**OWN, **(changes or {})})


class Trainer:
    """Trains, and counts how often."""

    def __init__(self, data):
        self.data, self.count = data, 0

    def __call__(self, config):
        self.count += 1
        run = Run(config, self.data)
        while not run.epoch().done:
            pass
        return run.best_state()


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(t, two[n]) for n, t in one.items())


def test_what_is_trained_is_one_modality_by_the_default_metric():
    config = alone("audio", **{"train.monitor": "val/loss", "train.gradient_vectors": 3})
    assert (config.method.name, config.method.modality) == ("unimodal", "audio")
    assert (config.train.monitor, config.train.gradient_vectors, config.train.epochs) == (
        "auto",
        0,
        1,
    )


def test_a_second_ask_reads_the_first_ones_file(tmp_path):
    data = support.dataset()
    train = Trainer(data)
    first = teachers.state(alone(), data, tmp_path, train)
    second = teachers.state(alone(), data, tmp_path, train)
    assert train.count == 1
    assert equal(first, second)
    assert equal(first, Trainer(data)(alone()))


@pytest.mark.parametrize(
    ("overrides", "again"),
    [
        ({"method.alpha": 2.0}, False),  # of the method that asks
        ({"optim.lr": 0.5}, False),  # tuned, and set apart by the changes
        ({"train.monitor": "val/loss"}, False),
        ({"name": "another"}, False),
        ({"seed": 7}, True),
        ({"model.encoder.dropout_residual": 0.2}, True),
        ({"optim.name": "sgd"}, True),  # not among the changes
    ],
)
def test_only_what_decides_a_model_makes_another(tmp_path, overrides, again):
    data = support.dataset()
    train = Trainer(data)
    teachers.state(alone(), data, tmp_path, train)
    teachers.state(alone(**overrides), data, tmp_path, train)
    assert train.count == 1 + again


def changed(data, what):
    """One value of the data set, changed: any may be the one."""
    splits = dict(data.splits)
    split = splits["train" if what != "validation" else "val"]
    inputs, target = dict(split.inputs), split.target
    if what == "target":
        target = torch.cat([target[:-1], (target[-1:] + 1) % 3])
    else:
        name = "audio" if what == "other modality" else "text"
        value, mask, _ = inputs[name]
        assert mask is not None
        if what == "mask":
            inputs[name] = Padded(
                value, torch.cat([mask[:50], torch.ones_like(mask[50:51]), mask[51:]])
            )
        else:
            inputs[name] = Padded(torch.cat([value[:17], value[17:18] + 1, value[18:]]), mask)
    splits["train" if what != "validation" else "val"] = Split(inputs, target, split.ids)
    return Dataset(data.name, data.spec, splits)


@pytest.mark.parametrize(
    ("what", "again"),
    [
        ("input", True),
        ("target", True),
        ("validation", True),
        ("mask", True),
        ("other modality", False),
    ],
)
def test_changed_data_are_other_data(tmp_path, what, again):
    data = support.dataset()
    train = Trainer(data)
    teachers.state(alone(), data, tmp_path, train)
    teachers.state(alone(), changed(data, what), tmp_path, train)
    assert train.count == 1 + again


class Kept(Stored):
    """Values outside memory, made of files with some content."""

    def __init__(self, values, content):
        self.values, self.shape, self.made_of = values, tuple(values.shape[1:]), content

    @property
    def content(self):
        return self.made_of

    def __len__(self):
        return len(self.values)

    def to(self, device):
        return self

    def take(self, index, generator=None):
        return Padded(self.values[index])


@pytest.mark.parametrize(("content", "again"), [("b", True), ("a", False)])
def test_stored_values_are_known_by_the_content_of_their_files(tmp_path, content, again):
    """Neither ids nor shapes tell that a file has changed."""

    def data(made_of):
        whole = support.dataset(vectors=True)
        splits = {
            name: Split(
                {m: Kept(x.value, made_of) for m, x in split.inputs.items()},
                split.target,
                split.ids,
            )
            for name, split in whole.splits.items()
        }
        return Dataset(whole.name, whole.spec, splits)

    train = Trainer(data("a"))
    config = alone(changes={"model.fusion": "concat"})
    teachers.state(config, data("a"), tmp_path, train)
    teachers.state(config, data(content), tmp_path, train)
    assert train.count == 1 + again


def cut(path: Path, _weights: Tensors) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path, weights: Tensors) -> None:
    """One bit of a weight: torch would read it."""
    raw = bytearray(path.read_bytes())
    raw[raw.index(weights["fusion.head.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(bytes(raw))


def foreign(path: Path, _weights: Tensors) -> None:
    checkpoint.save({"something": 1}, path)


@pytest.mark.parametrize("harm", [cut, flip, foreign])
def test_a_damaged_file_is_trained_anew(tmp_path, harm):
    data = support.dataset()
    train = Trainer(data)
    first = teachers.state(alone(), data, tmp_path, train)
    (path,) = tmp_path.glob("*.pt")
    harm(path, first)
    assert equal(teachers.state(alone(), data, tmp_path, train), first)
    assert train.count == 2
    teachers.state(alone(), data, tmp_path, train)
    assert train.count == 2


def test_a_training_that_fails_leaves_nothing(tmp_path):
    data = support.dataset()

    def fail(config):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        teachers.state(alone(), data, tmp_path, fail)
    assert not list(tmp_path.glob("*.pt"))
    assert teachers.state(alone(), data, tmp_path, Trainer(data))


def ask(folder, meeting):
    """How often this process trains, and what it gets: it asks when the other does."""
    data = support.dataset()
    train = Trainer(data)
    meeting.wait()
    found = teachers.state(alone(), data, Path(folder), train)
    return train.count, {n: t.numpy() for n, t in found.items()}


def answer(folder, meeting, answers):
    answers.put(ask(folder, meeting))


def test_two_processes_train_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    meeting, answers = context.Barrier(2), context.Queue()
    process = context.Process(target=answer, args=(str(tmp_path), meeting, answers))
    process.start()
    one, first = ask(str(tmp_path), meeting)
    two, second = answers.get(timeout=120)
    process.join()
    assert one + two == 1
    assert all((first[n] == second[n]).all() for n in first)
    assert len(list(tmp_path.glob("*.pt"))) == 1


def test_a_model_is_fixed_and_predicts_as_the_run_it_comes_from(tmp_path):
    data = support.dataset()
    run = Run(alone("audio"), data)
    run.epoch()
    net = teachers.net(alone("audio"), data, tmp_path, Trainer(data), torch.device("cpu"))
    assert net.modalities == ("audio",)
    assert not net.model.training
    assert not any(p.requires_grad for p in net.params.values())
    batch = data.splits["val"].batch(torch.arange(32))
    found = method_of(alone("audio")).predict(net, batch.inputs, {})["joint"]
    accuracy = (found.argmax(-1) == batch.target).double().mean()
    assert float(accuracy) == pytest.approx(run.best_value)


def test_asking_leaves_the_process_and_the_run_as_they_were(tmp_path, monkeypatch):
    """Whether the models were trained or read: the global stream stays, and the run goes on to the
    same numbers.
    """
    cfg, data = support.config("umt", teacher={"epochs": 1}, lam=0.0), support.dataset()
    joint = Run(support.config("joint"), data)
    monkeypatch.setenv(ENV_CACHE, str(tmp_path))
    torch.manual_seed(11)
    before = torch.get_rng_state()
    trained = Run(cfg, data)
    read = Run(cfg, data)
    assert torch.equal(torch.get_rng_state(), before)
    for run in (trained, read):
        run.epoch()
    joint.epoch()
    for name, p in joint.net.params.items():
        assert torch.equal(trained.net.params[name], read.net.params[name])
        torch.testing.assert_close(trained.net.params[name], p, rtol=1e-4, atol=1e-5)
