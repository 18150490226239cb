"""What the shipped spaces ask for, where that is not seen at a glance."""

from __future__ import annotations

import pytest

from tune_mm import plugins
from tune_mm.config import flatten, load_config, with_overrides
from tune_mm.tune.space import space as space_files
from tune_mm.tune.space.drawing import grid

CGGM = ("method.magnitude", "method.rho", "method.lam", "method.direction")


def cells(name: str, data: str) -> list[dict[str, object]]:
    """The settings of every point of a space's grid on the protocol `data`."""
    space = space_files.build("t", space_files.read(name), {"data": data})
    assert space.exhaustive
    return [
        flatten(with_overrides(space.base, p)) for p in grid(space.domains, flatten(space.base))
    ]


def test_table_3_has_four_cells_and_the_first_is_joint_training() -> None:
    keys = ("method.truncate_multimodal", "method.truncate_unimodal", "method.alpha")
    assert [tuple(c[k] for k in keys) for c in cells("ablation_truncation", "cremad")] == [
        (False, False, 0.0),
        (False, True, 4.0),
        (True, False, 4.0),
        (True, True, 4.0),
    ]


@pytest.mark.parametrize("data", ["iemocap", "utd_mhad", "mosi"])
@pytest.mark.parametrize("name", ["ablation_rho", "ablation_lambda", "ablation_direction"])
def test_a_cggm_ablation_starts_with_joint_training_on_any_protocol(name: str, data: str) -> None:
    found = cells(name, data)
    neutral = {f"method.{k}": v for k, v in plugins.load("methods", "cggm").neutral.items()}
    assert [{k: c[k] for k in neutral} == neutral for c in found] == [True] + [False] * (
        len(found) - 1
    )
    assert {c["optim.lr"] for c in found} == {load_config(data).optim.lr}
    assert {c["data.name"] for c in found} == {load_config(data).data.name}


def test_figure_5_has_seven_values_of_rho_and_six_of_lambda() -> None:
    rho = [tuple(c[k] for k in CGGM) for c in cells("ablation_rho", "iemocap")[1:]]
    assert rho == [(True, r, 0.2, "gradient") for r in (0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)]
    lam = [tuple(c[k] for k in CGGM) for c in cells("ablation_lambda", "iemocap")[1:]]
    assert lam == [(True, 1.2, value, "gradient") for value in (0.01, 0.05, 0.1, 0.15, 0.2, 0.25)]


def test_table_6_has_neither_direction_magnitude_and_both() -> None:
    assert [tuple(c[k] for k in CGGM) for c in cells("ablation_direction", "iemocap")] == [
        (False, 1.2, 0.0, "off"),
        (False, 1.2, 0.2, "gradient"),
        (True, 1.2, 0.0, "off"),
        (True, 1.2, 0.2, "gradient"),
    ]


@pytest.mark.parametrize("data", ["cremad", "avdigits"])
def test_table_4_weighs_g_blending_by_the_values_of_dgl(data: str) -> None:
    values = [c["method.alpha"] for c in cells("ablation_alpha", data)]
    keys = ("method.mode", "method.heads", "method.alpha")
    assert values == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [tuple(c[k] for k in keys) for c in cells("ablation_blending", data)] == [
        ("fixed", "fusion", value) for value in values
    ]
