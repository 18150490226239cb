"""Greedy: balanced learning by conditional learning speed, on MMTM.

Paper
    Wu et al.: Characterizing and Overcoming the Greedy Nature of Learning in Multi-modal Deep
    Neural Networks, ICML 2022, Sec. 4 and 5, Algorithm 1.
Idea
    A branch whose cross-modal gates learn faster than its own layers leans on the other modality.
    For a few steps its gates are held at their running average, so that it must learn from its own
    input.
Equations
    z_m = branch output of modality m, L = sum_m loss(z_m, y), prediction = mean of z_m over m
    mu(theta) = |g|^2 / |theta|^2 at a step, g: the gradient for theta
    s_m = log10(sum_t mu(bypass_m) / sum_t mu(main_m)), over the regular steps                  (conditional speed)
    bypass_m: MMTM's parameters that gate m, the shared squeeze too; main_m: encoder m and its part of the head
    d = s_1 - s_2; where |d| > epsilon, a window of Q steps opens for modality 1 (d > 0) or 2 (d < 0):
    its gates are replaced by their running average over all steps, and no speed is summed
Deviations
    * z_m = 2 W_m h_m + b, with W_m the head's columns for m: the mean over both branches is then
      the fused prediction W [h_1; h_2] + b of this model. Public code has two heads; the factor of
      2 is one on their learning rate.
    * In public code the running average of the second modality's gates is computed from the first
      one's; here each has its own. The average that is used ends with the step before; the code's
      includes the step itself.
    * Public code opens no window in the first epoch; `start` is a fraction of the epochs.
    * `windows: random` is the paper's control: each step holds the first, the second or none, with
      equal chances.
Shapes
    Maps [B, T, C, H, W] of two modalities; logits [B, C]; state: sums of mu [2] (`main`, `bypass`),
    `held` [2], `left`, `steps`, and per stage and modality the mean gate [C]
    (`gate/<stage>/<modality>`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core import grads
from tune_mm.core.method import Method, Start
from tune_mm.core.net import Net
from tune_mm.core.support import Support
from tune_mm.core.types import Batch, Clock, Inputs, Tensors, Update

GATE = "gate/"
EXCHANGES = "fusion.exchanges"
BRANCHES = 2


class GreedyConfig(Section):
    """When gates are held, and for how long."""

    name: Literal["greedy"] = "greedy"
    # Difference of the speeds, in decades, that opens a window.
    epsilon: float = Field(0.01, ge=0)
    # Length Q of a window, in steps.
    window: int = Field(5, ge=1)
    # Fraction of the epochs before which no window opens.
    start: float = Field(0.02, ge=0, le=1)
    # What opens windows: the speeds, or chance.
    windows: Literal["speed", "random"] = "speed"


def speed_difference(main: Tensor, bypass: Tensor) -> Tensor:
    """d = s_1 - s_2 (0-dim) from the sums of mu, [2] each. Finite where sums are 0."""
    tiny = torch.finfo(main.dtype).tiny
    speed = torch.log10(bypass.clamp(min=tiny)) - torch.log10(main.clamp(min=tiny))
    return speed[0] - speed[1]


def next_window(
    left: Tensor, held: Tensor, opens: Tensor, first: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    """Steps left in the window, and held [2], after a step. opens, first: bool, whether one opens,
    and for the first modality; else the present one goes on.
    """
    remaining = torch.where(opens, torch.full_like(left, length), (left - 1).clamp(min=0))
    whose = torch.stack([first, ~first]).to(held.dtype)
    going_on = torch.where(remaining > 0, held, torch.zeros_like(held))
    return remaining, torch.where(opens, whose, going_on)


class Greedy(Method):
    """Balanced learning by conditional learning speed: see the module docstring."""

    Config = GreedyConfig
    config: GreedyConfig
    neutral: ClassVar[Mapping[str, Any] | None] = None
    why_not_neutral: ClassVar[str] = "its branches have a loss each"
    support = Support(
        least=BRANCHES,
        most=BRANCHES,
        fusions=("mmtm",),
        cost="norms of gradients and weights per step",
    )

    def init(self, net: Net, start: Start) -> Tensors:
        like = next(iter(net.params.values()))
        zero = torch.zeros(BRANCHES, dtype=like.dtype, device=like.device)
        state = {"main": zero, "bypass": zero.clone(), "held": zero.clone()}
        state |= {"left": zero[0].clone(), "steps": zero[0].clone()}
        for name, bias in net.group(EXCHANGES).items():
            stage, kind, *rest = name.removeprefix(f"{EXCHANGES}.").split(".")
            if kind == "gates" and rest[-1] == "bias":
                state[f"{GATE}{stage}/{rest[0]}"] = torch.zeros_like(bias)
        return {k: v.detach() for k, v in state.items()}

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        """The loss, with the mean gates [C] of this batch among the logs: `grads` takes them out."""
        seen: Tensors = {}

        def hook(stage: int, modality: str, gate: Tensor) -> Tensor:
            key = f"{GATE}{stage}/{modality}"
            seen[key] = gate.mean(0)
            held = state["held"][net.modalities.index(modality)]
            return torch.where(held > 0, state[key].to(gate.dtype).expand_as(gate), gate)

        features = net.encode(batch.inputs)
        hidden = net.apply(
            "", lambda model: model.fusion.hidden(model.encoders, features, (), hook)
        )
        logs: Tensors = {}
        for m, z in self._branches(net, hidden).items():
            logs[f"train/loss/{m}"] = net.loss(z, batch.target)
        total = torch.stack(list(logs.values())).sum()
        return total, {**logs, **seen}

    def grads(self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock) -> Update:
        def objective(bound: Net) -> tuple[Tensor, Tensors]:
            return self.loss(bound, batch, hp, state, clock)

        found, loss, logs = grads.gradient(objective, net, self.trained(net))
        gates = {}
        for key in list(logs):
            if key.startswith(GATE):
                gates[key] = logs.pop(key)
        new = self._averaged(state, gates)
        main, bypass = self._speeds(net, found)
        regular = state["left"] <= 0
        new["main"] = state["main"] + torch.where(regular, main, torch.zeros_like(main))
        new["bypass"] = state["bypass"] + torch.where(regular, bypass, torch.zeros_like(bypass))
        difference = speed_difference(new["main"], new["bypass"])
        new["left"], new["held"] = self._window(state, difference, regular, hp, clock)
        logs["speed_difference"] = difference
        logs |= {f"balance/{m}": state["held"][i] for i, m in enumerate(net.modalities)}
        return Update(found, loss, logs, new)

    def predict(self, net: Net, inputs: Inputs, state: Tensors) -> Tensors:
        """As any method, and the branches' outputs under `branch/<modality>`."""
        features = net.encode(inputs)
        hidden = net.hidden(features)
        branches = {}
        for m, z in self._branches(net, hidden).items():
            branches[f"branch/{m}"] = z
        return {"joint": net.head(hidden), **net.unimodal(features, self.unimodal_path), **branches}

    def _branches(self, net: Net, hidden: Tensor) -> Tensors:
        """z_m [B, C] of the hidden [B, H]: the head on m's columns alone, twice."""
        out: Tensors = {}
        for m in net.modalities:
            own: Any = torch.zeros_like(hidden[0])
            own[net.block(m)] = BRANCHES
            out[m] = net.head(hidden * own)
        return out

    def _averaged(self, state: Tensors, seen: Tensors) -> Tensors:
        """The mean gates with those of one more step, and the number of steps."""
        steps = state["steps"]
        out = {}
        for key, mean in seen.items():
            out[key] = (state[key] * steps + mean.to(state[key].dtype)) / (steps + 1)
        return {**out, "steps": steps + 1}

    def _speeds(self, net: Net, found: Tensors) -> tuple[Tensor, Tensor]:
        """mu of main_m and of bypass_m at this step, [2] each."""
        shared = []
        gates: dict[str, list[str]] = {m: [] for m in net.modalities}
        for name in net.group(EXCHANGES):
            _, kind, owner, *_ = name.removeprefix(f"{EXCHANGES}.").split(".")
            if kind == "squeeze":
                shared.append(name)
            elif kind == "gates":
                gates[owner].append(name)

        main = []
        bypass = []
        head = "fusion.head.weight"
        for m in net.modalities:
            columns = net.block(m)
            own = [(found[head][:, columns], net.params[head][:, columns])]
            own += [(found[name], p) for name, p in net.group(f"encoders.{m}").items()]
            main.append(_mu(own))
            theirs = [(found[name], net.params[name]) for name in (*gates[m], *shared)]
            bypass.append(_mu(theirs))
        return torch.stack(main), torch.stack(bypass)

    def _window(
        self, state: Tensors, difference: Tensor, regular: Tensor, hp: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensor]:
        started = clock.within(hp["start"], torch.ones_like(hp["start"]))
        if self.config.windows == "random":
            drawn = torch.rand((), device=difference.device) * (BRANCHES + 1)
            opens = started & (drawn >= 1)
            none_left = torch.zeros_like(state["left"])
            return next_window(none_left, state["held"], opens, drawn < BRANCHES, 1)
        opens = regular & started & (difference.abs() > hp["epsilon"])
        return next_window(state["left"], state["held"], opens, difference > 0, self.config.window)


def _mu(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Squared norm of the gradients over that of the parameters; pairs: (gradient, parameter)."""
    above = torch.stack([g.square().sum() for g, _ in pairs]).sum()
    below = torch.stack([p.detach().square().sum() for _, p in pairs]).sum()
    return above / below.clamp(min=torch.finfo(below.dtype).tiny)


plugin = Greedy
