"""The mean of the features."""

from tests.models.formulas._features import alone_by, means

CASES: dict[str, dict[str, object]] = {
    "shared_head": {},
}


def hidden(fusion, h):
    return sum(h.values()) / len(h)


def literal(model, config, features, alone, path):
    """Alone by another path than zero, a modality's features pass as they are."""
    h = means(features)
    if alone is None:
        return hidden(model.fusion, h)
    if path == "zero":
        return hidden(model.fusion, alone_by(path, alone, h))
    return h[alone]
