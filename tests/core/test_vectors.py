"""The gradient vectors that a finished run leaves: against autograd, at the best epoch, and as a
file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core import artifacts, batches, statistics
from tune_mm.core.artifacts import BEST, GRADIENTS
from tune_mm.core.run import Run


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("fusion", ["concat", "transformer"])
def test_vectors_are_what_autograd_gives(fusion: str, task: str) -> None:
    """unimodal: d loss(m alone) / d head weight, m's columns; classifier: d loss(f_m) / d its
    head's weight (Eq. 9).
    """
    data = support.dataset(task=task)
    cfg = with_overrides(
        support.config("cggm"), {} if fusion == "transformer" else {"model.fusion": fusion}
    )
    method, net = support.bound(cfg, data)
    net.model.eval()
    batch = support.batch(data)
    found = statistics.vectors(net, batch, method)
    assert set(found) == {
        f"{m}/{kind}" for m in net.modalities for kind in ("unimodal", "classifier")
    }
    features = net.encode(batch.inputs)
    alone = net.unimodal(features, method.unimodal_path)
    for m in net.modalities:
        (whole,) = torch.autograd.grad(
            net.loss(alone[m], batch.target), net.params["fusion.head.weight"], retain_graph=True
        )
        torch.testing.assert_close(found[f"{m}/unimodal"], whole[:, net.block(m)].flatten())
        classifier = net.model.get_submodule(f"aux.{m}")
        hidden = classifier.hidden(features[m])
        loss = net.loss(classifier.head(hidden), batch.target)
        (own,) = torch.autograd.grad(loss, classifier.head.weight, retain_graph=True)
        torch.testing.assert_close(found[f"{m}/classifier"], own.flatten())


def test_a_method_without_classifiers_gives_the_unimodal_ones() -> None:
    data = support.dataset()
    method, net = support.bound(support.config("joint"), data)
    found = statistics.vectors(net, support.batch(data), method)
    assert set(found) == {f"{m}/unimodal" for m in net.modalities}


def test_a_run_takes_them_batch_by_batch_at_its_best_epoch(tmp_path: Path) -> None:
    cfg = support.config("cggm", overrides={"train.gradient_vectors": 2, "train.epochs": 3})
    data = support.dataset()
    run, plain = Run(cfg, data), Run(with_overrides(cfg, {"train.gradient_vectors": 0}), data)
    assert run.gradient_vectors() == {}, "there is no best epoch yet"
    artifacts.write(tmp_path, run.best_state(), run.gradient_vectors())
    assert list(tmp_path.iterdir()) == []
    for _ in range(3):
        run.epoch()
        plain.epoch()
    found = run.gradient_vectors()

    best = Run(cfg, data)
    best.model.load_state_dict(run.best_state())
    best.model.eval()
    split = best.splits["train"]
    order = batches.order(len(split), cfg.train.batch_size, batches.key(cfg.seed, 0))
    assert len(order) > 2
    for i, index in enumerate(order[:2]):
        for name, vector in statistics.vectors(best.net, split.batch(index), best.method).items():
            torch.testing.assert_close(found[name][i], vector)
    assert {len(vectors) for vectors in found.values()} == {2}

    artifacts.write(tmp_path, run.best_state(), found)
    with np.load(tmp_path / GRADIENTS, allow_pickle=False) as archive:
        assert set(archive.files) == set(found)
        for name, vectors in found.items():
            np.testing.assert_allclose(archive[name], vectors.numpy(), rtol=1e-6)
    (tmp_path / "plain").mkdir()
    artifacts.write(tmp_path / "plain", plain.best_state(), plain.gradient_vectors())
    assert [p.name for p in (tmp_path / "plain").iterdir()] == [BEST]
