"""`Run`: the trainer. It trains a method by epochs, yields results and calls nobody.

It maps one to one on `ray.tune.Trainable` without knowing it: `epoch`, `test`, `state_dict`,
`load_state_dict`. A resumed run continues bit for bit on a CPU of the same kind. On CUDA some
operations add in no fixed order (the gradients of interpolation and of adaptive pooling, among
others): there results agree up to rounding.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tune_mm.config import Config
from tune_mm.core import batches, metrics, micro, rng, schedule, statistics, step, teachers
from tune_mm.core.build import device_of, method_of, net_of, objective_of
from tune_mm.core.method import Start
from tune_mm.core.net import Net
from tune_mm.core.probe import Probe
from tune_mm.core.settings import float_fields
from tune_mm.core.torch_internals import copy_all
from tune_mm.core.types import Batch, Clock, Dataset, Tensors, Update
from tune_mm.filesystem import cache_folder
from tune_mm.stats import direction

FORMAT = 3


@dataclass(frozen=True)
class Result:
    """What one epoch gave."""

    # From 1.
    epoch: int
    metrics: dict[str, float]
    # Whether it is the best so far by the objective.
    best: bool
    # Whether the run has ended.
    done: bool
    # Whether a loss was not finite; the run is then done.
    diverged: bool
    # What a user should know, one line each.
    notes: tuple[str, ...] = ()


class Run:
    """One training run of `config` on `dataset`. Raises ValueError for what `check` would refuse."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.config = config
        self.dataset = dataset
        self.device = device_of(config.train.device)
        self.method = method_of(config)
        self.spec = self.method.spec(dataset.spec)
        self.objective = objective_of(config, self.spec)
        self.mode = direction(self.objective)
        self.splits = {name: split.to(self.device) for name, split in dataset.splits.items()}
        self.hp = self._tensors(float_fields(config.method))
        self.optim_hp = self._tensors(float_fields(config.optim))
        with rng.isolated(self.device):
            torch.manual_seed(config.seed)
            self.net = net_of(config, self.spec, self.method, self.device)
            self._rng = rng.current(self.device)
        self.model = self.net.model
        self.state: Tensors = self.method.init(
            self.net, Start(len(dataset.splits["train"]), self._unimodal)
        )
        self.opt = step.init(config.optim.name, {n: p.detach() for n, p in self.net.params.items()})
        self.plateau = schedule.Plateau()
        self.parts = micro.Parts()
        self.epochs_done = 0
        self.samples = 0  # seen in training, those of copies included
        self.best_epoch = 0
        if self.mode == "max":
            self.best_value = -math.inf
        else:
            self.best_value = math.inf
        self._best: Tensors = {}
        self._best_method: Tensors = {}

    # ---- training

    def epoch(self) -> Result:
        """Train one epoch and evaluate the validation split. Raises RuntimeError after the last
        epoch.
        """
        if self.epochs_done >= self.config.train.epochs:
            raise RuntimeError(f"all {self.config.train.epochs} epochs are done")
        start = time.perf_counter()
        factor = self._factor()
        with rng.isolated(self.device, self._rng):
            logs = self._train()
            self._rng = rng.current(self.device)
        logs.update(self._measure())
        values = {**_read(logs), **self.evaluate("val"), "lr": self.config.optim.lr * factor}
        values["time/epoch"] = time.perf_counter() - start
        values["samples"] = self.samples
        values["passes"] = self.samples / len(self.splits["train"])
        self.epochs_done += 1
        diverged = not (math.isfinite(values["train/loss"]) and math.isfinite(values["val/loss"]))
        best = not diverged and self._select(values)
        self.plateau = schedule.observe(
            self.config.schedule, self.plateau, values["val/loss"], self.config.train.epochs
        )
        done = diverged or self.epochs_done >= self.config.train.epochs
        notes = tuple(self.parts.notes)
        self.parts.notes = []
        return Result(self.epochs_done, values, best, done, diverged, notes)

    def _factor(self, share: float = 0.0) -> float:
        """The schedule's multiplier of the lr when this share of the epoch's steps is done."""
        c = self.config
        return schedule.factor(c.schedule, self.epochs_done, c.train.epochs, self.plateau, share)

    def _train(self) -> Tensors:
        """One pass over the shuffled training split.

        Each log is averaged over the steps that have it, without a read by the host.
        """
        self.model.train()
        split = self.splits["train"]
        stream = batches.key(self.config.seed, self.epochs_done)
        order = batches.order(len(split), self.config.train.batch_size, stream)
        ahead = split.stored and self.device.type == "cuda"
        epochs = self.config.train.epochs
        sums: Tensors = {}
        counts: Counter[str] = Counter()
        for number, batch in enumerate(batches.read(split, order, stream, ahead)):
            factor = self._factor(number / len(order))
            for substep in range(self.method.substeps(self.net.modalities)):
                clock = Clock(self.epochs_done, number, len(order), epochs, substep)
                found = self.step(batch, clock, factor)
                counts.update(found.keys())
                for key, value in found.items():
                    sums[key] = sums[key] + value if key in sums else value
        means = {key: value / counts[key] for key, value in sums.items()}
        clock = Clock(self.epochs_done, len(order), len(order), epochs)
        end = self.method.epoch_end(self._probe(self._factor(1.0)), self.hp, self.state, clock)
        self._replace(end.params)
        self.state = end.state
        self.samples += len(split) + end.samples
        return {**means, **end.logs}

    def _probe(self, factor: float) -> Probe:
        splits = {name: self.splits[name] for name in ("train", "val")}
        hp = {**self.optim_hp, "lr": self.optim_hp["lr"] * factor}
        return Probe(
            self.net,
            splits,
            self.config.train.batch_size,
            self.config.train.eval_batch_size,
            self.config.seed,
            self.config.optim.name,
            hp,
            self.method.optim(self.hp, hp),
            self._autocast,
        )

    def _autocast(self) -> torch.autocast:
        """What training steps compute in; everything else computes in float32."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.train.amp == "bf16"
        )

    @torch.no_grad()
    def _replace(self, params: Tensors) -> None:
        """Set parameters and buffers; the parameters' optimizer memory starts anew."""
        if not params:
            return
        own = {**self.net.params, **self.net.buffers}
        copy_all([own[name] for name in params], list(params.values()))
        slots = {slot: dict(values) for slot, values in self.opt.slots.items()}
        steps = dict(self.opt.steps)
        for name in params.keys() & steps.keys():
            steps[name] = 0
            for values in slots.values():
                values[name] = torch.zeros_like(values[name])
        self.opt = step.OptState(slots, steps)

    def step(self, batch: Batch, clock: Clock, factor: float = 1.0) -> Tensors:
        """One optimizer step on `batch`; logs as 0-dim tensors. factor: the schedule's multiplier
        of the lr.
        """
        with self._autocast():
            update: Update = self.parts.update(
                self.method, self.net, batch, self.hp, self.state, clock
            )
        hp = {**self.optim_hp, "lr": self.optim_hp["lr"] * factor}
        with torch.no_grad():
            params = {name: self.net.params[name] for name in update.grads}
            overrides = step.rated(self.method.optim(self.hp, hp), hp, update.rates)
            rule = self.config.optim.name
            _, self.opt, logs = step.descend(
                rule, params, update.grads, self.opt, hp, overrides, in_place=True
            )
        self.state = update.state
        out = {"train/loss": update.loss, **update.logs}
        if self.config.train.gradient_statistics:
            out |= logs
        return out

    def _measure(self) -> Tensors:
        """Gradient statistics on a fixed batch of training samples."""
        if not (self.config.train.gradient_statistics and self.method.linear):
            return {}
        self.model.eval()
        split = self.splits["train"]
        every = max(len(split) // self.config.train.probe_size, 1)
        index = torch.arange(0, len(split), every)[: self.config.train.probe_size]
        return statistics.probe(self.net, split.batch(index), self.method.unimodal_path)

    def _select(self, values: dict[str, float]) -> bool:
        """Whether this epoch is the best so far by the objective; keeps its tensors if so.

        Raises KeyError when the objective is no metric of this run.
        """
        value = values[self.objective]
        if self.mode == "max":
            better = value > self.best_value
        else:
            better = value < self.best_value
        if better:
            self.best_value = value
            self.best_epoch = self.epochs_done
            self._best = {n: t.detach().clone() for n, t in self.model.state_dict().items()}
            self._best_method = {n: t.clone() for n, t in self.state.items()}
        return better

    # ---- evaluation

    @torch.no_grad()
    def evaluate(
        self, name: str, net: Net | None = None, state: Tensors | None = None
    ) -> dict[str, float]:
        """Metrics of every sample of a split, multimodal and per modality:
        `name/metric[/modality]`.

        Of other logits that the method predicts, `<kind>/<modality>`:
        `name/<kind>_metric/modality`.
        """
        self.model.eval()
        net = self.net if net is None else net
        state = self.state if state is None else state
        split = self.splits[name]
        meters: dict[str, metrics.Meter] = {}
        for index in torch.split(torch.arange(len(split)), self.config.train.eval_batch_size):
            batch = split.batch(index)
            for key, logits in self.method.predict(net, batch.inputs, state).items():
                meters.setdefault(key, metrics.Meter(self.spec.task)).add(logits, batch.target)
        out: Tensors = {}
        for key, meter in meters.items():
            kind, _, modality = key.rpartition("/")
            prefix = f"{kind}_" if kind else ""
            suffix = "" if key == "joint" else f"/{modality}"
            for metric, value in meter.compute().items():
                out[f"{name}/{prefix}{metric}{suffix}"] = value
        return _read(out)

    def test(self) -> dict[str, float]:
        """Metrics of the test split at the best validation epoch. Raises RuntimeError before the
        first good epoch.
        """
        if not self._best:
            raise RuntimeError("no epoch with a finite validation metric: nothing to test")
        return self.evaluate("test", self._best_net(), self._best_method)

    def gradient_vectors(self) -> Tensors:
        """[N, D] by "<modality>/<kind>", on the CPU: `statistics.vectors` of up to
        `train.gradient_vectors` training batches at the best validation epoch ({}: none asked for,
        no such epoch, no linear head).
        """
        wanted = self.config.train.gradient_vectors
        if not (wanted and self._best and self.method.linear):
            return {}
        self.model.eval()
        split = self.splits["train"]
        net = self._best_net()
        stream = batches.key(self.config.seed, 0)
        order = batches.order(len(split), self.config.train.batch_size, stream)
        rows: dict[str, list[Tensor]] = {}
        for index in order[:wanted]:
            found = statistics.vectors(net, split.batch(index), self.method)
            for name, vector in found.items():
                rows.setdefault(name, []).append(vector)
        return {name: torch.stack(vectors).cpu() for name, vectors in rows.items()}

    def _best_net(self) -> Net:
        """The model at the best validation epoch."""
        own = dict(self.model.named_parameters())
        params = {name: t for name, t in self._best.items() if name in own}
        buffers = {}
        for name, t in self._best.items():
            if name not in own:
                buffers[name] = t
        return Net(self.model, self.spec.task, params, buffers)

    def best_state(self) -> Tensors:
        """Parameters and buffers at the best validation epoch, on the CPU (empty before the first)."""
        return {n: t.cpu() for n, t in self._best.items()}

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; holds only tensors, numbers, strings and plain
        containers.
        """
        return {
            "format": FORMAT,
            "model": {n: t.detach().clone() for n, t in self.model.state_dict().items()},
            "slots": {
                slot: {n: t.clone() for n, t in values.items()}
                for slot, values in self.opt.slots.items()
            },
            "steps": dict(self.opt.steps),
            "method": {n: t.clone() for n, t in self.state.items()},
            "plateau": list(self.plateau),
            "rng": {k: v.clone() for k, v in self._rng.items()},
            "epochs_done": self.epochs_done,
            "samples": self.samples,
            "parts": self.parts.count,
            "best": {
                "epoch": self.best_epoch,
                "value": self.best_value,
                "model": self._best,
                "method": self._best_method,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Raises ValueError for another format, RuntimeError (torch) for
        another model.
        """
        if state.get("format") != FORMAT:
            raise ValueError(f"checkpoint format must be {FORMAT}, got {state.get('format')}")
        self.model.load_state_dict(state["model"])
        slots = {}
        for slot, values in state["slots"].items():
            slots[slot] = self._moved(values)
        self.opt = step.OptState(slots, dict(state["steps"]))
        self.state = self._moved(state["method"])
        self.plateau = schedule.restore(state["plateau"])
        self._rng = {k: v.clone() for k, v in state["rng"].items()}
        self.epochs_done = state["epochs_done"]
        self.samples = state["samples"]
        self.parts = micro.Parts(state["parts"])
        best = state["best"]
        self.best_epoch = best["epoch"]
        self.best_value = best["value"]
        self._best = self._moved(best["model"])
        self._best_method = self._moved(best["method"])

    # ---- helpers

    def _unimodal(self, changes: Mapping[str, Any]) -> dict[str, Net]:
        """See `Start.unimodal`."""
        folder = cache_folder() / "unimodal"
        out: dict[str, Net] = {}
        with rng.isolated(self.device):
            for m in self.spec.modalities:
                config = teachers.alone(self.config, m, changes)
                out[m] = teachers.net(config, self.dataset, folder, self._trained, self.device)
        return out

    @torch.enable_grad()
    def _trained(self, config: Config) -> Tensors:
        run = Run(config, self.dataset)
        while not run.epoch().done:
            pass
        return run.best_state()

    def _moved(self, tensors: Tensors) -> Tensors:
        found = {}
        for n, t in tensors.items():
            found[n] = t.to(self.device).clone()
        return found

    def _tensors(self, values: dict[str, float]) -> Tensors:
        found = {}
        for k, v in values.items():
            found[k] = torch.tensor(v, device=self.device)
        return found


def _read(logs: Tensors) -> dict[str, float]:
    """All values with one host read."""
    if not logs:
        return {}
    values = torch.stack([v.to(torch.float64) for v in logs.values()]).tolist()
    return dict(zip(logs, values, strict=True))
