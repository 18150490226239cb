"""Steps that need less memory: a batch in parts whose gradients are added up, with the whole
batch's effect.

A loss that is a mean over samples has as its gradient the mean of the parts' gradients, weighted by
their samples. What looks at all samples of a pass at once is not the same in parts: BatchNorm's
statistics, and a method's own figures of a batch (`Method.separable` says which methods have none).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tune_mm.core.method import Method
from tune_mm.core.net import Net
from tune_mm.core.types import Batch, Clock, Tensors, Update

CPU_WORDS = "can't allocate memory"  # of torch's CPU allocator, which has no exception of its own


def out_of_memory(error: BaseException) -> bool:
    """Whether torch could not get memory, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and CPU_WORDS in str(error)
    )


class Parts:
    """In how many parts batches are computed: 1 until memory runs out, then twice as many each
    time.

    notes: what a user should know of it, to be taken by whoever tells them.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.notes: list[str] = []

    def update(
        self, method: Method, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> Update:
        """What the method makes of the batch.

        Raises RuntimeError when memory runs out and the batch cannot be split (further).
        """
        while True:
            try:
                return update(method, net, batch, hp, state, clock, self.count)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                problem = str(error).splitlines()[0]
            # Not in the handler: the error's traceback holds on to what the failed attempt has
            # allocated.
            self._double(method, batch, clock, problem)

    def _double(self, method: Method, batch: Batch, clock: Clock, problem: str) -> None:
        size = len(batch.target)
        if not method.separable or self.count >= size:
            if method.separable:
                why = "cannot be split further"
            else:
                why = f"'{method.config.name}' cannot compute in parts"
            advice = "give a smaller train.batch_size, or the trial more of the device"
            raise RuntimeError(
                f"out of memory with a batch of {size}, which {why}: {advice} ({problem})"
            )
        if batch.target.is_cuda:
            torch.cuda.empty_cache()
        self.count *= 2
        part = -(-size // self.count)
        self.notes = [  # the last counts
            f"out of memory with a batch of {size}: from epoch {clock.epoch + 1} on it is computed in {self.count} "
            f"parts, whose gradients are added up (BatchNorm sees {part} samples at a time)"
        ]


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in up to `parts` parts of (nearly) the same size, in order."""
    pieces = torch.tensor_split(torch.arange(len(batch.target), device=batch.target.device), parts)
    found = []
    for at in pieces:
        if len(at):
            found.append(
                Batch(
                    {m: x.take(at) for m, x in batch.inputs.items()},
                    batch.target[at],
                    batch.index[at],
                )
            )
    return found


def update(
    method: Method, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock, parts: int
) -> Update:
    """`method.grads` of the batch, computed in `parts` parts (1: at once); loss and logs are means
    over samples.
    """
    if parts == 1:
        return method.grads(net, batch, hp, state, clock)
    total: tuple[Tensors, Tensor, Tensors] | None = None
    for piece in split(batch, parts):
        share = len(piece.target) / len(batch.target)
        found, loss, logs = method.gradient(net, piece, hp, state, clock)
        part = (_scaled(found, share), loss * share, _scaled(logs, share))
        if total is not None:
            part = (_sum(total[0], part[0]), total[1] + part[1], _sum(total[2], part[2]))
        total = part
    assert total is not None
    return method.edit(net, batch, hp, state, clock, Update(*total, state))


def _scaled(tensors: Tensors, factor: float) -> Tensors:
    found = {}
    for name, value in tensors.items():
        found[name] = value * factor
    return found


def _sum(left: Tensors, right: Tensors) -> Tensors:
    found = {}
    for name, value in left.items():
        found[name] = value + right[name]
    return found
