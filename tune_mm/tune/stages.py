"""The stages of a search, each one Ray Tune run over one study: `search`, `baseline`, `final`."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pickle import UnpicklingError
from typing import Any

from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from ray import tune
from ray.tune import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

from tune_mm.config import Config, flatten, to_dict, with_overrides
from tune_mm.track.tags import Stage
from tune_mm.tune.execute.callback import Halt, Tracking, Watch, keep_files
from tune_mm.tune.execute.factory import Build, built
from tune_mm.tune.execute.resources import Site
from tune_mm.tune.execute.trainable import Job, RunTrainable
from tune_mm.tune.output.display import Board, Row
from tune_mm.tune.output.ranking import ranked, value_of, values_of
from tune_mm.tune.plan.plan import Plan
from tune_mm.tune.propose.ledger import Ledger, Point
from tune_mm.tune.propose.samplers import make_sampler
from tune_mm.tune.propose.searcher import AskTell
from tune_mm.tune.space.domains import SearcherName, Values
from tune_mm.tune.space.drawing import draw, grid
from tune_mm.tune.space.space import Space
from tune_mm.tune.stop import protected, schedulers
from tune_mm.tune.stop.protected import ProtectedEpochs

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
MAX_FAILURES = 2  # deaths of its worker that a trial survives
BUFFERED = 120.0  # seconds of tracking that a power cut may take with it; a kill takes milliseconds


@dataclass(frozen=True)
class StagePlan:
    """One stage. base: the config before a trial's values; points: settings decided beforehand, by
    number.
    """

    stage: Stage
    space: Space
    base: Config
    target: int
    points: tuple[Point, ...]

    @property
    def epochs(self) -> int:
        return self.base.train.epochs


@dataclass(frozen=True)
class Context:
    """What all stages share. build: what a trial runs; died: when an earlier driver of this search
    wrote its last record without closing it (None: there is none).
    """

    plan: Plan
    storage: JournalStorage
    tracking: Tracking
    board: Board
    halt: Halt
    site: Site
    build: Build
    died: float | None = None


def tuning(plan: Plan, stage: Stage) -> StagePlan:
    """`search`, or `baseline`: the baseline's own space under the same scheduler, epochs and
    resources.
    """
    space, target = (
        (plan.space, plan.trials) if stage == "search" else (plan.baseline, plan.baseline_trials)
    )
    assert space is not None
    base = plan.config(space, plan.epochs)
    if space.spec.searcher.name == "grid":
        points = grid(space.domains, flatten(base))
    else:
        points = [dict(d) for d in space.defaults]
    return StagePlan(stage, space, base, target, tuple(Point(p) for p in points))


def every_point(plan: Plan) -> dict[str, Values]:
    """All points of an exhaustive space's grid, by source ("grid/0")."""
    points = grid(plan.space.domains, flatten(plan.space.base))
    return {f"grid/{number}": values for number, values in enumerate(points)}


def finals(plan: Plan, chosen: Mapping[str, Values], have: list[FrozenTrial]) -> StagePlan:
    """Each chosen setting over all seeds, to the full budget; those that `have` are there are not
    repeated.

    chosen: settings by source ("search/7", "baseline/2", "grid/0").
    """
    points = [Point({}, t.user_attrs) for t in have]
    there = {(p.attrs["source"], p.attrs["values"]["seed"]) for p in points}
    for source, own in chosen.items():
        space = plan.baseline if source.startswith("baseline/") else plan.space
        assert space is not None
        for seed in plan.final_seeds:
            if (source, seed) not in there:
                # Also what the space fixes: a final run is decided by its record alone.
                values = {**_method(space), **own, "seed": seed}
                role = (
                    "grid"
                    if source.startswith("grid/")
                    else "tuned"
                    if space is plan.space
                    else "baseline"
                )
                points.append(Point({}, {"values": values, "source": source, "role": role}))
    base = plan.config(plan.space, plan.final_epochs)
    return StagePlan("final", plan.space, base, len(points), tuple(points))


def _method(space: Space) -> Values:
    """Everything but the seed and the epochs, as one replacement: sections whole, so that plug-ins
    are switched.
    """
    config = to_dict(space.base)
    return {k: config[k] for k in ("data", "model", "method", "optim", "schedule")}


def ledger(context: Context, stage: StagePlan) -> Ledger:
    """The study of a stage, `<search>/<stage>`."""
    space, seed = stage.space, context.plan.seed
    flat, searcher = flatten(stage.base), stage.space.spec.searcher

    def suggest(trial: Trial) -> Values:
        return draw(space.domains, flat, trial)

    sampler = partial(_sampler, searcher.name, seed, searcher.startup, space.conditional)
    name = f"{context.plan.name}/{stage.stage}"
    return Ledger(
        context.storage, name, space.mode, suggest, sampler, partial(_point, stage.points)
    )


def _sampler(name: SearcherName, seed: int, startup: int, conditional: bool, number: int) -> Any:
    return make_sampler(name, seed, number, startup, conditional)


def _point(points: tuple[Point, ...], number: int) -> Point | None:
    return points[number] if number < len(points) else None


def run(context: Context, stage: StagePlan) -> Ledger:
    """Run what is left of a stage; returns its ledger. With `halt` set it may be unfinished."""
    book = ledger(context, stage)
    _catch_up(context, stage, book)
    left = stage.target - book.handed_out() + len(book.unfinished())
    if left <= 0 or context.halt.stop_all():
        return book
    spec = (
        stage.space.spec.scheduler if stage.stage == "search" else context.plan.space.spec.scheduler
    )
    name = "none" if stage.stage == "final" else spec.name
    pauses = name == "pbt"  # it holds trials back until others have come as far
    searcher = AskTell(
        book,
        stage.target,
        lambda: stage.target if pauses else context.site.slots + context.site.joined,
    )
    ended = book.trials(*ENDED)
    if name in schedulers.FORGETFUL and (ended or book.unfinished()):
        context.board.say(
            f"{stage.stage}: resumed without the scheduler's memory: {schedulers.FORGETFUL[name]}"
        )
    schedule = stage.base.schedule if spec.after_drop and not pauses else None
    grace = spec.grace if pauses else schedulers.first_stop(spec.grace, stage.epochs, schedule)
    always = (
        *schedulers.until_drop(stage.epochs, schedule),
        *protected.shared(stage.space, stage.base),
    )
    scheduler = schedulers.make(name, stage.space.mode, stage.epochs, grace, spec.reduction, stage.space.domains,
                                book.past(*ENDED), searcher.resumed, ProtectedEpochs(stage.base, always))  # fmt: skip
    context.board.begin(stage.stage, stage.target - left, stage.target, _best(book), stage.epochs)
    where = context.plan.storage
    scheme = where.split("://")[0] + "://" if "://" in where else ""
    watch = Watch(stage.stage, searcher, lambda values: with_overrides(stage.base, values), context.tracking, context.board,
                  context.halt, scheme, mutates=name == "pbt")  # fmt: skip
    _check(_errors(_tuner(context, stage, searcher, scheduler, watch)), searcher)
    if context.halt.reason:
        watch.cut_off(context.halt.reason)
    elif not book.unfinished():
        context.tracking.flush()  # final checkpoints among it
        _clean(_folder(context.plan, stage.stage))
    return book


def _catch_up(context: Context, stage: StagePlan, book: Ledger) -> None:
    """Write to tracking once more what ended shortly before a driver was killed: the journal hears
    of it first.

    Tracking skips the steps and parameters that it has.
    """
    if context.died is None:
        return
    for trial in book.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        ended = trial.datetime_complete
        if ended is None or ended.timestamp() < context.died - BUFFERED:
            continue
        number, attrs = trial.number, trial.user_attrs
        facts: dict[str, Any] = {k: attrs[k] for k in ("role", "source") if k in attrs}
        context.tracking.start(
            stage.stage, number, with_overrides(stage.base, values_of(trial)), facts
        )
        for epoch, value in sorted(trial.intermediate_values.items()):
            context.tracking.log(stage.stage, number, {"objective": value}, epoch)
        if stage.stage == "final" and "checkpoint" in attrs:
            with contextlib.suppress(OSError):
                keep_files(
                    context.tracking, stage.stage, number, Checkpoint(attrs["checkpoint"]["path"])
                )
        context.tracking.finish(stage.stage, trial)


def _tuner(
    context: Context, stage: StagePlan, searcher: AskTell, scheduler: Any, watch: Watch
) -> Tuner:
    plan, final = context.plan, stage.stage == "final"
    build = partial(built, base=stage.base, build=context.build)
    local = "" if "://" in plan.storage else plan.storage
    site, save_every = context.site, plan.options.save_every
    job = Job(build, stage.epochs, plan.cpus, save_every, final, local, site.gpus, site.environment)
    needs = {"cpu": plan.cpus, "gpu": site.gpus}
    trainable = tune.with_resources(tune.with_parameters(RunTrainable, job=job), needs)
    return Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: (
                f"{stage.stage}-{trial.config['number']:05d}-{trial.trial_id}"
            ),
            trial_dirname_creator=lambda trial: f"{trial.config['number']:05d}-{trial.trial_id}",
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex[:8],  # a fresh folder per driver: nothing is overwritten
            storage_path=_folder(plan, stage.stage),
            stop=context.halt,
            callbacks=[watch],
            verbose=0,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(
                num_to_keep=4 if watch.mutates else 2, checkpoint_at_end=False
            ),
        ),
    )


def _errors(tuner: Tuner) -> list[Exception]:
    """Run it to its end; the errors with which trials ended, as far as they can be read."""
    try:
        return list(tuner.fit().errors)
    except (
        EOFError,
        UnpicklingError,
    ):  # after its end: what Ray wrote of an error was cut off by a full disk
        return []


def _check(errors: list[Exception], searcher: AskTell) -> None:
    """fit() returns as if nothing had happened when trials raised: whatever the callback did not
    hear of fails here.
    """
    for trial_id in list(searcher.lost):
        searcher.tell_lost(
            trial_id, f"{type(errors[0]).__name__}: the worker died" if errors else "lost"
        )


def _best(book: Ledger) -> Row | None:
    found = ranked(book)
    return (
        Row(found[0].number, values_of(found[0]), "completed", 0, value_of(found[0]))
        if found
        else None
    )


def _folder(plan: Plan, stage: Stage) -> str:
    """Where Ray keeps a stage."""
    return f"{plan.storage}/{stage}"


def deadline(plan: Plan, stage: Stage, budget: float | None) -> float | None:
    """When a tuning stage must stop (time.monotonic()): search and baseline share what is left by
    number of trials.
    """
    if budget is None:
        return None
    part = 1.0 if stage == "baseline" else plan.trials / (plan.trials + plan.baseline_trials)
    return time.monotonic() + budget * part


def _clean(where: str) -> None:
    """Remove the checkpoints of a finished stage; what finals keep is in the tracking store."""
    with contextlib.suppress(OSError):
        place = Checkpoint(where)
        system: Any = place.filesystem
        system.delete_dir(place.path)
