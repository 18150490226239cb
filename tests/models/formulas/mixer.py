"""Rows of one pooled vector; see mixer_formula.py."""

from tests.models.formulas._features import means
from tests.models.mixer_formula import mixer

CASES: dict[str, dict[str, object]] = {
    "mixer": {"factor": 1.5, "dropout": 0.0},
    "mixer-concat": {
        "hidden": (2, 4, 5),
        "length": 2,
        "readout": "concat",
        "dropout": 0.0,
    },
    "mixer-flatten": {
        "blocks": 1,
        "length": 3,
        "width": 4,
        "readout": "flatten",
        "dropout": 0.0,
    },
}


def literal(model, config, features, alone, path):
    length = model.fusion.length
    rows = {m: h[:, None].repeat(1, length, 1) for m, h in means(features).items()}
    return mixer(model.fusion, rows, alone, path)
