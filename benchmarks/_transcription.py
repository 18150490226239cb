"""CGGM's step transcribed plainly: attention written out, every layer in full, two backward passes,
reads on the host.

It computes what `tune_mm.methods.cggm` computes (a check in step.py holds the two equal without
dropout) from the same parameters under the same names. Sequences are time-major [T, B, W] as in the
public code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_mm.config import Config
from tune_mm.core.types import Batch
from tune_mm.models._layers import sinusoids

Params = dict[str, nn.Parameter]


@dataclass
class Rates:
    """Dropout probabilities of a transformer."""

    attention: float
    relu: float
    embed: float
    residual: float


def attention(p: Params, name: str, x: Tensor, heads: int, drop: float) -> Tensor:
    """Multi-head self-attention, [T, B, W]."""
    steps, batch, width = x.shape
    q, k, v = F.linear(x, p[f"{name}.qkv.weight"], p[f"{name}.qkv.bias"]).chunk(3, -1)
    q = q * (width // heads) ** -0.5
    q, k, v = (
        t.contiguous().view(steps, batch * heads, width // heads).transpose(0, 1) for t in (q, k, v)
    )
    weights = F.dropout(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), drop)
    mixed = torch.bmm(weights, v).transpose(0, 1).contiguous().view(steps, batch, width)
    return F.linear(mixed, p[f"{name}.out.weight"], p[f"{name}.out.bias"])


def norm(p: Params, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def transformer(p: Params, name: str, x: Tensor, heads: int, layers: int, rates: Rates) -> Tensor:
    """[T, B, W] -> [T, B, W]."""
    x = math.sqrt(x.shape[-1]) * x
    x = F.dropout(x + sinusoids(len(x), x.shape[-1], x)[:, None], rates.embed)
    for i in range(layers):
        at = f"{name}.layers.{i}"
        branch = attention(p, at, norm(p, f"{at}.norm_attention", x), heads, rates.attention)
        x = x + F.dropout(branch, rates.residual)
        inner = F.relu(
            F.linear(norm(p, f"{at}.norm_ffn", x), p[f"{at}.up.weight"], p[f"{at}.up.bias"])
        )
        branch = F.linear(
            F.dropout(inner, rates.relu), p[f"{at}.down.weight"], p[f"{at}.down.bias"]
        )
        x = x + F.dropout(branch, rates.residual)
    return norm(p, f"{name}.norm", x)


@dataclass
class Plain:
    """A training state: parameters by tune_mm's names, two optimizers, the metrics of the step
    before.
    """

    config: Config
    params: Params
    modalities: tuple[str, ...]
    previous: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        optim, method = self.config.optim, self.config.method
        self.own = {n: p for n, p in self.params.items() if not n.startswith("aux.")}
        self.aux = {n: p for n, p in self.params.items() if n.startswith("aux.")}
        self.optimizer = torch.optim.Adam(self.own.values(), lr=optim.lr)
        self.classifier_optimizer = torch.optim.Adam(self.aux.values(), lr=method.classifier_lr)
        self.previous = self.previous or [0.0] * len(self.modalities)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        e, out = self.config.model.encoder, {}
        rates = Rates(e.dropout_attention, e.dropout_relu, e.dropout_embed, e.dropout_residual)
        for m in self.modalities:
            weight, bias = (self.params[f"encoders.{m}.project.{n}"] for n in ("weight", "bias"))
            x = F.linear(batch.inputs[m].value.transpose(0, 1), weight, bias)
            out[m] = transformer(self.params, f"encoders.{m}.body", x, e.heads, e.layers, rates)
        return out

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        f, p = self.config.model.fusion, self.params
        rates = Rates(f.dropout_attention, f.dropout_relu, f.dropout_embed, f.dropout_residual)
        x = transformer(
            p, "fusion.body", torch.cat(list(features.values())), f.heads, f.layers, rates
        )[0]
        inner = F.dropout(
            F.relu(F.linear(x, p["fusion.inner.weight"], p["fusion.inner.bias"])), f.dropout_output
        )
        hidden = x + F.linear(inner, p["fusion.outer.weight"], p["fusion.outer.bias"])
        return F.linear(hidden, p["fusion.head.weight"], p["fusion.head.bias"])

    def classify(self, m: str, feature: Tensor) -> Tensor:
        c = self.config.method
        rates = Rates(*[c.classifier_dropout] * 4)
        x = transformer(
            self.params, f"aux.{m}.body", feature, c.classifier_heads, c.classifier_layers, rates
        )[0]
        return F.linear(x, self.params[f"aux.{m}.head.weight"], self.params[f"aux.{m}.head.bias"])

    def step(self, batch: Batch) -> float:
        """One step of Algorithm 1 with the direction loss of the current step; returns the task
        loss.
        """
        method, y = self.config.method, batch.target
        features = self.encode(batch)
        task = F.cross_entropy(self.fuse(features), y)
        own = [self.classify(m, f.clone().detach()) for m, f in features.items()]
        losses = [F.cross_entropy(z, y) for z in own]
        metrics = [(z.argmax(-1) == y).double().mean().item() for z in own]
        balance = self._balance(
            [now - old for now, old in zip(metrics, self.previous, strict=True)], method.rho
        )
        self.previous = metrics
        direction = torch.zeros(())
        (fused,) = torch.autograd.grad(task, self.params["fusion.head.weight"], create_graph=True)
        for m, loss, b in zip(self.modalities, losses, balance, strict=True):
            (theirs,) = torch.autograd.grad(
                loss, self.params[f"aux.{m}.head.weight"], retain_graph=True
            )
            cosine = torch.cosine_similarity(fused.flatten(), theirs.flatten(), 0)
            direction = direction + (abs(b) - b * cosine) / len(self.modalities)
        self._descend(task + method.lam * direction, balance)
        self.classifier_optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        self.classifier_optimizer.step()
        return task.item()

    def _balance(self, change: list[float], rho: float) -> list[float]:
        total = sum(change)
        if abs(total) < 1e-6:
            return [rho * (len(change) - 1) / len(change)] * len(change)
        return [rho * (total - one) / total for one in change]

    def _descend(self, loss: Tensor, balance: list[float]) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        for m, b in zip(self.modalities, balance, strict=True):
            for name, p in self.own.items():
                if name.startswith(f"encoders.{m}."):
                    assert p.grad is not None
                    p.grad *= b
        nn.utils.clip_grad_norm_(self.own.values(), self.config.optim.clip or math.inf)
        self.optimizer.step()


def plain(config: Config, model: nn.Module, modalities: tuple[str, ...]) -> Plain:
    """A plain training state that starts from the parameters of `model`."""
    params = {n: nn.Parameter(p.detach().clone()) for n, p in model.named_parameters()}
    return Plain(config, params, modalities)
