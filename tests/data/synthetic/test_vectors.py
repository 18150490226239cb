"""Is the imbalance of the synthetic data what was asked for? Read with scikit-learn's linear
models.
"""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tune_mm.data.synthetic.vectors import Synthetic, SyntheticOptions, generate

SHAPES = {"text": (8, 24), "audio": (16, 16), "visual": (10, 16)}


def options(
    dominant: str = "text", imbalance: float = 0.6, noise: float = 1.0, seed: int = 0
) -> SyntheticOptions:
    return SyntheticOptions(
        SHAPES, dominant, 1000, 20, 1000, imbalance=imbalance, noise=noise, seed=seed
    )


def means(data: Synthetic, modality: str) -> np.ndarray:
    """[N, D]: the mean over real steps."""
    x = data.modalities[modality]
    return np.asarray(x.values.sum(axis=1) / x.lengths[:, None])


def accuracy(asked: SyntheticOptions, *modalities: str) -> float:
    """Test accuracy of a linear model on the modalities together."""
    data = generate(asked)
    features = np.concatenate([means(data, m) for m in modalities], axis=1)
    train, test = asked.bounds()["train"], asked.bounds()["test"]
    model = LogisticRegression(max_iter=500).fit(features[train], data.target[train])
    return float(model.score(features[test], data.target[test]))


def probe(asked: SyntheticOptions) -> dict[str, float]:
    """Accuracy of each modality alone."""
    return {m: accuracy(asked, m) for m in SHAPES}


@pytest.mark.parametrize("dominant", SHAPES)
def test_the_dominant_modality_is_clearly_the_best(dominant: str) -> None:
    alone = probe(options(dominant))
    weak = [v for m, v in alone.items() if m != dominant]
    assert alone[dominant] > max(weak) + 0.2
    # The weak ones know something, and what they know is not in the dominant one.
    assert min(weak) > 0.33
    assert accuracy(options(dominant), *SHAPES) > alone[dominant] + 0.04


def test_without_imbalance_all_are_alike() -> None:
    values = list(probe(options(imbalance=0.0)).values())
    assert max(values) - min(values) < 0.1


def test_more_imbalance_widens_the_gap_and_noise_lowers_all() -> None:
    def gap(imbalance: float) -> float:
        alone = probe(options(imbalance=imbalance))
        return alone["text"] - alone["audio"]

    assert gap(0.2) < gap(0.5) < gap(0.9)
    quiet, loud = probe(options(noise=0.5)), probe(options(noise=2.0))
    assert all(quiet[m] > loud[m] + 0.05 for m in SHAPES)


def test_scores_follow_the_dominant_modality_too() -> None:
    asked = options()
    data = generate(asked, scores=True)
    assert data.target.dtype == np.float32
    assert np.abs(data.target).max() <= 3

    def correlation(modality: str) -> float:
        features = np.column_stack([means(data, modality), np.ones(asked.total)])
        train, test = asked.bounds()["train"], asked.bounds()["test"]
        weights = np.linalg.lstsq(features[train], data.target[train], rcond=None)[0]
        return float(np.corrcoef(features[test] @ weights, data.target[test])[0, 1])

    assert correlation("text") > 0.6
    assert correlation("text") > max(correlation("audio"), correlation("visual")) + 0.15


def test_lengths_vary_and_what_is_beyond_them_is_zero() -> None:
    for modality, x in generate(options()).modalities.items():
        steps = SHAPES[modality][0]
        assert x.lengths.max() == steps
        assert 1 <= x.lengths.min() < steps
        beyond = np.arange(steps)[None, :] >= x.lengths[:, None]
        assert (x.values[beyond] == 0).all()
        assert (x.values[~beyond] != 0).any(axis=-1).all()


def test_one_modality_and_vectors_work() -> None:
    asked = SyntheticOptions({"only": (12,)}, "only", 40, 10, 10)
    assert generate(asked).modalities["only"].values.shape == (60, 12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"imbalance": 1.5}, "imbalance must be between 0 and 1 inclusive, got 1.5"),
        ({"noise": -1.0}, "noise must be >= 0 and finite, got -1.0"),
        ({"noise": float("nan")}, "noise must be >= 0 and finite, got nan"),
        ({"dominant": "txt"}, "dominant: no modality 'txt'; available: text, audio, visual"),
        ({"classes": 1}, "classes must be >= 2, got 1"),
        ({"val": 3}, "train, val and test must be >= 2 per class, got 320, 3, 96 for 4 classes"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        (
            {"shapes": {"text": (0, 4)}},
            r"shape of text must be T x D, D or C x H x W, all >= 1, got \(0, 4\)",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticOptions(SHAPES, "text").changed(**values)
