"""What the shipped spaces ask for, where that is not seen at a glance."""

from __future__ import annotations

from tune_mm import config as C
from tune_mm.tune import space as S
from tune_mm.tune.searchers import grid


def test_table_3_has_four_cells_and_the_first_is_joint_training() -> None:
    space = S.build("t", S.read("ablation_truncation"), {})
    cells = [C.flatten(C.replace(space.base, p)) for p in grid(space.domains, C.flatten(space.base))]
    keys = ("method.truncate_multimodal", "method.truncate_unimodal", "method.alpha")
    assert [tuple(c[k] for k in keys) for c in cells] == [
        (False, False, 0.0), (False, True, 4.0), (True, False, 4.0), (True, True, 4.0),
    ]  # fmt: skip
