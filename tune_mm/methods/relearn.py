"""Diagnosing and Re-learning: encoders that memorise are drawn back to their initial weights.

Paper
    Wei et al.: Diagnosing and Re-learning for Balanced Multimodal Learning, ECCV 2024, Sec. 3.2 and
    3.3.
Idea
    How well the classes separate in a modality's features, on train against val, tells whether its
    encoder has learned what generalises; the larger the gap, the more of its weights is reset.
Equations
    From time to time, per modality m and split, k-means (k = classes) on features scaled to [0, 1]:
    p = 1/N sum_clusters (samples of its commonest class)                                           (purity)
    beta_m  = tanh(lam |p_train - p_val|)
    theta_m <- beta_m theta_m^0 + (1 - beta_m) theta_m,  theta_m^0: the encoder's initial weights
    In between, joint training: L = loss(f(Omega(h_1 .. h_M)), y)
Deviations
    * When: after every `period` of the epochs, `times` times (published E = 20 of 90 epochs, 3
      times).
    * Public code leaves the optimizer's momentum as it is, which pulls the weights back; here it
      starts anew for what was reset. It also leaves BatchNorm's running statistics: here they are
      drawn back with the weights by the same beta; `reset_statistics: false` is what the code does.
    * Features are pooled to [N, W] first. Where the fusion runs the encoders' later stages (MMTM),
      they are the maps that the fusion begins with; all of the encoder is reset.
    * Regression, which the paper does not treat: the classes are `bins` equal shares of the
      training targets.
    * Public code diagnoses on a held-out part of train; here on the validation split, never on
      test. `fraction` of the samples is enough where k-means would take long (309 classes of
      VGGSound).
Shapes
    Features [B, T, W] or [B, W] (or maps), any number of modalities; logits [B, C]; state: the
    initial encoders.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from tune_mm.config import Section
from tune_mm.core.method import Start
from tune_mm.core.net import Net
from tune_mm.core.probe import Probe
from tune_mm.core.support import Support
from tune_mm.core.types import Clock, EpochEnd, Task, Tensors
from tune_mm.methods.joint import Joint

INITIAL = "initial/"
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SETTLE = 0.05  # of the epochs: how long a metric may take to come back


class RelearnConfig(Section):
    """When encoders are diagnosed, and how far they are reset."""

    name: Literal["relearn"] = "relearn"
    # How fast the share that is reset grows with the gap.
    lam: float = Field(3.0, ge=0)
    # Between resets, as a fraction of the epochs.
    period: float = Field(0.22, gt=0, le=1)
    # How many resets there are at most (0: none, which is joint training).
    times: int = Field(3, ge=0)
    # Share of the samples that a diagnosis looks at.
    fraction: float = Field(1.0, gt=0, le=1)
    # Classes into which targets of a regression are sorted.
    bins: int = Field(5, ge=2)
    # Whether BatchNorm's running statistics are reset as well.
    reset_statistics: bool = True


def purity(clusters: Tensor, labels: Tensor) -> Tensor:
    """Share of samples that belong to the commonest label of their cluster (0-dim, float64).
    clusters, labels: [N].
    """
    rows = int(clusters.max()) + 1
    columns = int(labels.max()) + 1
    counts = torch.zeros(rows, columns, dtype=torch.float64, device=labels.device)
    one = torch.ones((), dtype=torch.float64, device=labels.device)
    counts.index_put_((clusters, labels), one, accumulate=True)
    return counts.amax(1).sum() / len(labels)


def scaled(features: Tensor) -> Tensor:
    """[N, W] with every column in [0, 1]; a constant one is 0."""
    low = features.amin(0)
    high = features.amax(0)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    return (features - low) / span


def cluster(features: Tensor, count: int, seed: int) -> Tensor:
    """Cluster [N] of each row of [N, W] by k-means, scaled first. count: of clusters, at most N."""
    found = KMeans(min(count, len(features)), n_init=1, random_state=seed)
    with warnings.catch_warnings():
        # Fewer distinct rows than clusters: an encoder that died.
        warnings.simplefilter("ignore", ConvergenceWarning)
        chosen = found.fit_predict(scaled(features).double().cpu().numpy())
    return torch.as_tensor(chosen, dtype=torch.int64, device=features.device)


def labels_of(task: Task, target: Tensor, train: Tensor, bins: int) -> Tensor:
    """Classes [N]; of regression, the share of the sorted training targets into which each target
    falls.
    """
    if task.kind == "classification":
        return target
    inner = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=train.device)[1:-1]
    return torch.bucketize(target.double(), torch.quantile(train.double(), inner))


class Relearn(Joint):
    """Diagnosing and Re-learning: see the module docstring."""

    Config = RelearnConfig
    config: RelearnConfig
    neutral: ClassVar[Mapping[str, Any] | None] = {"times": 0}
    support = Support(cost="k-means on a forward pass over train and val, a few times a run")

    def init(self, net: Net, start: Start) -> Tensors:
        found = {}
        for name, p in net.group("encoders").items():
            found[INITIAL + name] = p.detach().clone()
        return found

    def resets(self, epochs: int) -> tuple[int, ...]:
        """After which epochs (from 1) encoders are reset; never after the last."""
        every = self.value("period") * epochs
        found = set()
        for k in range(self.config.times):
            found.add(max(1, round((k + 1) * every)))
        return tuple(sorted(e for e in found if e < epochs))

    def dips(self, epochs: int) -> tuple[tuple[int, int], ...]:
        """The epoch that a reset ends, whose metrics are taken after it, and a twentieth of the
        epochs after it.
        """
        length = max(1, round(SETTLE * epochs))
        return tuple((epoch, min(epochs, epoch + length)) for epoch in self.resets(epochs))

    def epoch_end(self, probe: Probe, hp: Tensors, state: Tensors, clock: Clock) -> EpochEnd:
        """Where it is due, diagnose every modality and reset its encoder by as much."""
        if clock.epoch + 1 not in self.resets(clock.epochs):
            return EpochEnd(state)
        train, train_target = probe.features("train", self.value("fraction"))
        val, val_target = probe.features("val", self.value("fraction"))
        task = probe.net.task
        bins = self.config.bins
        if task.kind == "classification":
            count = task.outputs
        else:
            count = bins
        train_labels = labels_of(task, train_target, train_target, bins)
        val_labels = labels_of(task, val_target, train_target, bins)
        logs: Tensors = {}
        new: Tensors = {}
        for m in probe.net.modalities:
            train_purity = purity(cluster(train[m], count, probe.seed), train_labels)
            val_purity = purity(cluster(val[m], count, probe.seed), val_labels)
            gap = (train_purity - val_purity).abs()
            beta = torch.tanh(hp["lam"].double() * gap)
            logs[f"balance/{m}"] = beta
            logs[f"purity_train/{m}"] = train_purity
            logs[f"purity_val/{m}"] = val_purity
            for name, p in probe.net.group(f"encoders.{m}").items():
                new[name] = torch.lerp(p.detach(), state[INITIAL + name], beta.to(p.dtype))
            if self.config.reset_statistics:
                new |= _statistics(probe.net, m, beta)
        return EpochEnd(state, logs, new, len(train_target))


def _statistics(net: Net, modality: str, beta: Tensor) -> Tensors:
    """BatchNorm's running statistics of an encoder drawn towards those it began with, mean 0 and
    variance 1.
    """
    out: Tensors = {}
    for name, module in net.model.get_submodule(f"encoders.{modality}").named_modules():
        if isinstance(module, NORMS) and module.track_running_stats:
            for buffer, initial in (
                ("running_mean", torch.zeros_like),
                ("running_var", torch.ones_like),
            ):
                key = ".".join(filter(None, (f"encoders.{modality}", name, buffer)))
                now = net.buffers[key]
                out[key] = torch.lerp(now, initial(now), beta.to(now.dtype))
    return out


plugin = Relearn
