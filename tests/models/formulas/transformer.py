"""The formula is held by test_multimodal.py: here the fusion is its own reference."""

CASES: dict[str, dict[str, object]] = {
    "transformer": {"heads": 2, "layers": 2},
}


def literal(model, config, features, alone, path):
    if alone is None:
        return model.fusion.hidden(features)
    return model.fusion.unimodal(features, path)[alone]
