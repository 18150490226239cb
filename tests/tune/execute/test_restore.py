"""A trial goes on from its newest checkpoint that is whole; a disk that is full costs checkpoints,
not trials.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ray.tune import Checkpoint

from tests.tune.execute.test_trainable import real, trainable, without_time
from tune_mm.core import checkpoint
from tune_mm.tune.execute.restore import before, newest_whole
from tune_mm.tune.execute.trainable import MARGIN, STATE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints after epochs 1 and 2, named as Ray names them."""
    run = trainable(real)
    for epoch in (1, 2):
        run.step()
        place = tmp_path / f"checkpoint_{epoch - 1:06d}"
        place.mkdir()
        run.save_checkpoint(str(place))
    return tmp_path


def damage(file: Path, how: str) -> None:
    whole = file.read_bytes()
    if how == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif how == "flipped":
        middle = len(whole) // 2  # in the tensors: they make up nearly all of the file
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "gone"])
@pytest.mark.parametrize("by", ["ray", "ledger"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder: Path, how: str, by: str) -> None:
    undisturbed = trainable(real)
    expected = [without_time(undisturbed.step()) for _ in range(3)]
    damage(folder / "checkpoint_000001" / STATE, how)
    last = folder / "checkpoint_000001"
    again = trainable(real, checkpoint=last if by == "ledger" else None)
    if by == "ray":
        again.restore(Checkpoint(str(last)))
    second, third = without_time(again.step()), without_time(again.step())
    (note,) = second.pop("notes")
    assert note.startswith("its checkpoint checkpoint_000001 cannot be used: ")
    assert "notes" in expected[1] and second == {
        k: v for k, v in expected[1].items() if k != "notes"
    }
    assert third == expected[2]


def test_a_trial_without_a_whole_checkpoint_starts_anew_and_says_so(folder: Path) -> None:
    for name in ("checkpoint_000000", "checkpoint_000001"):
        damage(folder / name / STATE, "truncated")
    again = trainable(real)
    again.restore(Checkpoint(str(folder / "checkpoint_000001")))
    result = again.step()
    assert result["training_iteration"] == 1
    assert [n.partition(" cannot")[0] for n in result["notes"]] == [
        "its checkpoint checkpoint_000001",
        "its checkpoint checkpoint_000000",
        "it has no checkpoint that is whole: it starts anew",
    ]
    assert again.step()["notes"] == [], "it is said once"


def test_a_folder_that_is_gone_has_nothing_before(tmp_path: Path) -> None:
    assert list(before(Checkpoint(str(tmp_path / "away" / "checkpoint_000003")))) == []


def test_what_is_whole_is_loaded_without_a_word(folder: Path) -> None:
    seen: list[Path] = []
    assert newest_whole(Checkpoint(str(folder / "checkpoint_000001")), seen.append) == []
    assert [p.name for p in seen] == ["checkpoint_000001"]


def test_no_checkpoint_is_asked_for_where_none_fits(disk: Path) -> None:
    def asked(result: dict[str, Any]) -> bool:
        return bool(result.get("should_checkpoint"))

    run = trainable(real, save_every=0.0, storage=str(disk))
    first = run.step()
    assert asked(first) and first["notes"] == []
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - MARGIN))
    second, third = run.step(), run.step()
    assert not asked(second) and not asked(third)
    (note,) = second["notes"]
    assert note.startswith(
        f"no checkpoint: it needs 1.2 MiB and {disk} has 1.0 left; training goes on"
    )
    assert third["notes"] == []
    last = run.step()
    assert (last["done"], last["training_iteration"]) == (True, 4)


def test_a_disk_that_fills_while_a_checkpoint_is_written_keeps_the_one_before(disk: Path) -> None:
    file = disk / STATE
    checkpoint.save({"n": 1}, file)
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free))
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.save({"n": 2, "x": bytes(10_000)}, file)
    assert checkpoint.load(file) == {"n": 1}
    assert {p.name for p in disk.iterdir()} == {STATE, "other"}
