"""Order and random streams of the training batches, with a store that is read from a file."""

import numpy as np
import pytest
import torch

from tests import support
from tune_mm.core import batches
from tune_mm.core.run import Run
from tune_mm.core.types import Dataset, DataSpec, Padded, Split, Stored, Task


class Mapped(Stored):
    """Rows of a .npy file; in training a random window of 5 of its 8 columns, in evaluation the
    first 5.
    """

    shape = (5,)

    def __init__(self, path, rows):
        self.path, self.rows, self.values = path, rows, np.load(path, mmap_mode="r")

    def __len__(self):
        return len(self.rows)

    def to(self, device):
        return self

    def take(self, index, generator=None):
        rows = self.values[self.rows[index.numpy()]]
        first = 0 if generator is None else int(torch.randint(0, 4, (1,), generator=generator))
        return Padded(torch.from_numpy(rows[:, first : first + 5].copy()))


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 96)
    values = (rng.standard_normal((96, 8)) + label[:, None]).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    parts = {"train": np.arange(64), "val": np.arange(64, 80), "test": np.arange(80, 96)}
    splits = {
        name: Split(
            {
                "text": Mapped(tmp_path / "a.npy", rows),
                "audio": Padded(torch.from_numpy(values[rows, :3].copy())),
            },
            torch.from_numpy(label[rows]),
        )
        for name, rows in parts.items()
    }
    return Dataset(
        "mapped", DataSpec({"text": (5,), "audio": (3,)}, Task("classification", 3)), splits
    )


def test_order_is_a_shuffle_that_differs_by_epoch_and_seed():
    first, second, other = (
        torch.cat(batches.order(96, 16, batches.key(s, e))) for s, e in ((0, 0), (0, 1), (1, 0))
    )
    for one in (first, second, other):
        assert not torch.equal(one, torch.arange(96))
        assert torch.equal(one.sort().values, torch.arange(96))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("count", "sizes"), [(33, [16, 17]), (34, [16, 16, 2]), (32, [16, 16]), (1, [1]), (17, [17])]
)
def test_no_last_batch_of_one_sample(count, sizes):
    assert [len(part) for part in batches.order(count, 16, 0)] == sizes


def test_batches_are_the_same_whenever_they_are_read(data):
    split = data.splits["train"]
    order = batches.order(64, 16, 5)
    once, again, ahead = (
        list(batches.read(split, order, 5, thread)) for thread in (False, False, True)
    )
    for a, b, c in zip(once, again, ahead, strict=True):
        assert torch.equal(a.inputs["text"].value, b.inputs["text"].value)
        assert torch.equal(a.inputs["text"].value, c.inputs["text"].value)
        assert torch.equal(a.index, c.index)
        assert torch.equal(a.target, split.target[a.index])
    windows = [b.inputs["text"].value for b in once]
    still = [split.batch(part).inputs["text"].value for part in order]
    assert any(not torch.equal(a, b) for a, b in zip(windows, still, strict=True))


def test_a_run_on_stored_data_resumes_bit_for_bit(data):
    cfg = support.config(overrides={"train.epochs": 3, "model.fusion.layers": 1})
    whole, first = Run(cfg, data), Run(cfg, data)
    for _ in range(3):
        whole.epoch()
    first.epoch()
    second = Run(cfg, data)
    second.load_state_dict(first.state_dict())
    second.epoch()
    second.epoch()
    assert all(torch.equal(p, second.net.params[n]) for n, p in whole.net.params.items())
    assert whole.test() == second.test()


def test_an_error_of_the_reading_thread_reaches_the_loop(data):
    split = data.splits["train"]
    split.inputs["text"].values = None
    with pytest.raises(TypeError):
        list(batches.read(split, batches.order(64, 16, 5), 5, True))


class Parts(Stored):
    """Samples of several parts [N, P, ...], of which training draws one, and evaluation sees the
    first.
    """

    def __init__(self, values):
        self.values, self.shape = values, tuple(values.shape[2:])

    def __len__(self):
        return len(self.values)

    def to(self, device):
        return self

    def take(self, index, generator=None):
        part = (
            0
            if generator is None
            else torch.randint(self.values.shape[1], index.shape, generator=generator)
        )
        return Padded(self.values[index, part])


def test_all_modalities_and_the_target_draw_the_same_part_and_the_transform_goes_on_from_there():
    """Every pixel holds 10 times its sample's number plus its part's; the transform goes on with
    the stream.
    """
    number = (10 * torch.arange(8)[:, None] + torch.arange(6))[:, :, None, None].expand(8, 6, 4, 4)
    images = number[:, :, None].float()
    seen = []

    def note(inputs, target, generator):
        seen.append(None if generator is None else float(torch.rand((), generator=generator)))
        return inputs, target

    split = Split(
        {"a": Parts(images), "b": Parts(-images)},
        number[:, 0].byte(),
        (),
        note,
        Parts(number.byte()),
    )
    for seed in range(3):
        index, other = torch.tensor([5, 0, 5, 7, 2]), torch.Generator().manual_seed(seed)
        batch = split.batch(index, torch.Generator().manual_seed(seed))
        part = torch.randint(6, (5,), generator=other)
        assert torch.equal(batch.target, (10 * index + part)[:, None, None].expand(5, 4, 4))
        assert torch.equal(batch.inputs["a"].value[:, 0].long(), batch.target)
        assert torch.equal(batch.inputs["b"].value, -batch.inputs["a"].value)
        assert seen[-1] == float(torch.rand((), generator=other))
    evaluated = split.to(torch.device("cpu")).batch(torch.arange(8))
    assert torch.equal(evaluated.target, number[:, 0])
    assert torch.equal(evaluated.inputs["a"].value[:, 0].long(), evaluated.target)
    assert seen[-1] is None
