"""A checkpoint is whole or not there, and reading one executes nothing."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from tune_mm.core import checkpoint


def test_round_trip_and_replacement(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.pt"
    for value in (1.0, 2.0):
        checkpoint.save({"x": torch.tensor([value]), "n": [1, "a", None]}, path)
        found = checkpoint.load(path)
        assert found["x"].item() == value
        assert found["n"] == [1, "a", None]
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save({"n": 1}, path)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpoint.save({"n": lambda: 2}, path)
    assert checkpoint.load(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/evil",)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", pickle.dumps(Evil(), 2)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pt: no checkpoint"):
        checkpoint.load(path)


def test_a_checkpoint_with_code_inside_is_refused(tmp_path: Path) -> None:
    torch.save({"x": Evil()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.fixture
def state() -> dict[str, object]:
    return {"x": torch.arange(1000.0), "n": [1, "a", {"y": torch.ones(3, dtype=torch.int64)}]}


def test_any_flipped_bit_of_a_tensor_is_found(tmp_path: Path, state: dict[str, object]) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(state, path)
    whole = path.read_bytes()
    start = whole.index(torch.arange(1000.0).numpy().tobytes())
    for place, bit in ((0, 0), (17, 6), (3999, 7)):
        damaged = bytearray(whole)
        damaged[start + place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"state\.pt: damaged: .* does not have its checksum"):
            checkpoint.load(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_found(
    tmp_path: Path, state: dict[str, object], share: float
) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="damaged: it is truncated"):
        checkpoint.load(path)


def test_the_size_is_that_of_the_tensors(state: dict[str, object]) -> None:
    assert checkpoint.size(state) == 1000 * 4 + 3 * 8
