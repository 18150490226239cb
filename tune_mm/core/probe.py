"""What a method may ask of its data between epochs: features, losses, and a trial training of a
copy.

Everything here leaves the run as it was: the model's mode, its buffers, its random stream, its
optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy

import torch
from torch import Tensor

from tune_mm.core import batches, grads, step
from tune_mm.core.features import pooled
from tune_mm.core.net import Net
from tune_mm.core.types import Batch, Split, Tensors

Objective = Callable[[Net, Batch], Tensor]
STREAM = 7_919  # sets the order of a copy's training apart from that of the run


class Probe:
    """net: the run's; splits: train and val (never test); batch_size, eval_batch_size, seed: the
    run's; rule, hp: its optimizer and the settings now (lr scheduled); overrides: settings by
    owner; autocast: around the gradients of a copy. samples: training samples that copies have
    seen, which count as the run's.
    """

    def __init__(
        self,
        net: Net,
        splits: Mapping[str, Split],
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        rule: str,
        hp: Tensors,
        overrides: Mapping[str, Tensors],
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.net = net
        self.splits = splits
        self.seed = seed
        self._sizes = (batch_size, eval_batch_size)
        self._rule = rule
        self._hp = hp
        self._overrides = overrides
        self._autocast = autocast
        self.samples = 0

    @torch.no_grad()
    def features(self, name: str, fraction: float = 1.0) -> tuple[Tensors, Tensor]:
        """Pooled features [N, W] per modality and targets [N] of a split in evaluation mode.

        fraction: of the samples, evenly spread, at least one.
        """
        split = self.splits[name]
        count = max(1, round(fraction * len(split)))
        chosen = torch.linspace(0, len(split) - 1, count).round().long()
        rows: dict[str, list[Tensor]] = {m: [] for m in self.net.modalities}
        with self.net.evaluating():
            for index in torch.split(chosen, self._sizes[1]):
                for m, found in self.net.encode(split.batch(index).inputs).items():
                    rows[m].append(pooled(found))
        return {m: torch.cat(found) for m, found in rows.items()}, split.target[
            chosen.to(split.target.device)
        ]

    @torch.no_grad()
    def loss(self, name: str, objective: Objective, net: Net | None = None) -> Tensor:
        """Mean over the samples of a split of `objective` (one or several means over a batch), in
        evaluation mode.
        """
        split = self.splits[name]
        net = net or self.net
        total = torch.zeros((), dtype=torch.float64, device=split.target.device)
        with net.evaluating():
            for index in torch.split(torch.arange(len(split)), self._sizes[1]):
                total = total + objective(net, split.batch(index)).double() * len(index)
        return total / len(split)

    def train(
        self, objective: Objective, prefixes: tuple[str, ...], epochs: int, key: int = 0
    ) -> Net:
        """A copy of the run's net whose parameters under `prefixes` were trained on `objective` for
        some epochs.

        With the run's optimizer from a fresh state and its present settings; a batch is computed at
        once, also where the run computes it in parts (`micro`). key: sets its batches apart.
        """
        split = self.splits["train"]
        net = Net(deepcopy(self.net.model).train(), self.net.task)
        state = step.init(self._rule, {n: p.detach() for n, p in net.params.items()})
        with torch.random.fork_rng([split.target.device] if split.target.is_cuda else []):
            for epoch in range(epochs):
                stream = batches.key(self.seed * STREAM + key, epoch)
                torch.manual_seed(stream % 2**63)  # dropout
                for batch in batches.read(
                    split, batches.order(len(split), self._sizes[0], stream), stream
                ):
                    state = self._step(net, state, objective, batch, prefixes)
        self.samples += epochs * len(split)
        return net

    def _step(
        self,
        net: Net,
        state: step.OptState,
        objective: Objective,
        batch: Batch,
        prefixes: tuple[str, ...],
    ) -> step.OptState:
        def losses(bound: Net) -> tuple[Tensor, Tensors]:
            return objective(bound, batch)[None], {}

        with self._autocast():
            (found,), _, _ = grads.gradients(losses, net, prefixes)
        with torch.no_grad():
            params = {n: net.params[n] for n in found}
            overrides = {}
            for owner, own in self._overrides.items():
                if owner in grads.groups(found):
                    overrides[owner] = own
            return step.descend(
                self._rule, params, found, state, self._hp, overrides, in_place=True
            )[1]
