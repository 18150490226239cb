"""The stages of a search, each one Ray Tune run over one study: `search`, `baseline`, `final`."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pickle import UnpicklingError
from typing import Any

from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from ray import tune
from ray.tune import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import TrialScheduler

from tune_mm.config import Config, flatten, to_dict, with_overrides
from tune_mm.track.tags import Stage
from tune_mm.tune.execute.callback import StopSwitch, Tracking, TrialCallback, keep_files
from tune_mm.tune.execute.factory import Build, built
from tune_mm.tune.execute.resources import Resources
from tune_mm.tune.execute.trainable import RunTrainable, TrialJob
from tune_mm.tune.output.display import Board, TrialRow
from tune_mm.tune.output.ranking import ranked, value_of, values_of
from tune_mm.tune.plan.plan import Plan
from tune_mm.tune.propose.ledger import Ledger, Point
from tune_mm.tune.propose.samplers import make_sampler
from tune_mm.tune.propose.searcher import AskTell
from tune_mm.tune.space.domains import Values
from tune_mm.tune.space.drawing import draw, grid
from tune_mm.tune.space.space import Space
from tune_mm.tune.stop import protected, schedulers
from tune_mm.tune.stop.protected import ProtectedEpochs

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
SECTIONS = ("data", "model", "method", "optim", "schedule")  # of a config: all that a setting is
MAX_FAILURES = 2  # deaths of its worker that a trial survives
# Of tracking, that a power cut may take with it; a kill takes milliseconds.
BUFFERED = timedelta(seconds=120)


@dataclass(frozen=True)
class StagePlan:
    """One stage."""

    stage: Stage
    space: Space
    base: Config  # before a trial's values
    target: int  # trials in all
    points: tuple[Point, ...]  # settings decided beforehand, by number

    @property
    def epochs(self) -> int:
        """Of a trial's full budget."""
        return self.base.train.epochs


@dataclass(frozen=True)
class SearchContext:
    """What all stages of a search share."""

    plan: Plan
    storage: JournalStorage
    tracking: Tracking
    board: Board
    stop: StopSwitch
    resources: Resources
    build: Build  # what a trial runs
    # When the last trial of a driver ended that did not close the search; None: none was left open.
    last_end: datetime | None = None


def tuning(plan: Plan, stage: Stage) -> StagePlan:
    """`search`, or `baseline`: its own space under the same scheduler, epochs and resources."""
    if stage == "search":
        space = plan.space
        target = plan.trials
    else:
        assert plan.baseline is not None
        space = plan.baseline
        target = plan.baseline_trials
    base = plan.config(space, plan.epochs)
    settings: Sequence[Values] = space.defaults
    if space.spec.searcher.name == "grid":
        settings = grid(space.domains, flatten(base))
    points = tuple(Point(dict(values)) for values in settings)
    return StagePlan(stage, space, base, target, points)


def every_point(plan: Plan) -> dict[str, Values]:
    """All points of an exhaustive space's grid, by source ("grid/0")."""
    points = grid(plan.space.domains, flatten(plan.space.base))
    found = {}
    for number, values in enumerate(points):
        found[f"grid/{number}"] = values
    return found


def finals(plan: Plan, chosen: Mapping[str, Values], have: Sequence[FrozenTrial]) -> StagePlan:
    """Each chosen setting over all seeds, to the full budget; those of `have` are not repeated.

    chosen: settings by source ("search/7", "baseline/2", "grid/0").
    """
    points = [Point({}, trial.user_attrs) for trial in have]
    there = set()
    for point in points:
        there.add((point.attrs["source"], point.attrs["values"]["seed"]))
    for source, own in chosen.items():
        role = _role(source)
        space = plan.space
        if role == "baseline":
            assert plan.baseline is not None
            space = plan.baseline
        for seed in plan.final_seeds:
            if (source, seed) in there:
                continue
            # Also what the space fixes: a final run is decided by its record alone.
            values = {**_sections(space), **own, "seed": seed}
            points.append(Point({}, {"values": values, "source": source, "role": role}))
    base = plan.config(plan.space, plan.final_epochs)
    return StagePlan("final", plan.space, base, len(points), tuple(points))


def _role(source: str) -> str:
    stage = source.partition("/")[0]
    if stage == "search":
        return "tuned"
    return stage


def _sections(space: Space) -> Values:
    """Everything but the seed and the epochs, as whole sections, so that plug-ins are switched."""
    config = to_dict(space.base)
    return {name: config[name] for name in SECTIONS}


def ledger_of(context: SearchContext, stage: StagePlan) -> Ledger:
    """The study of a stage, `<search>/<stage>`."""
    space = stage.space
    searcher = space.spec.searcher
    configured = flatten(stage.base)

    def suggest(trial: Trial) -> Values:
        return draw(space.domains, configured, trial)

    def sampler(number: int) -> BaseSampler:
        seed = context.plan.seed
        return make_sampler(searcher.name, seed, number, searcher.startup, space.conditional)

    def point(number: int) -> Point | None:
        if number < len(stage.points):
            return stage.points[number]
        return None

    name = f"{context.plan.name}/{stage.stage}"
    return Ledger(context.storage, name, space.mode, suggest, sampler, point)


def run(context: SearchContext, stage: StagePlan) -> Ledger:
    """Run what is left of a stage; returns its ledger. A stopped search leaves it unfinished."""
    ledger = ledger_of(context, stage)
    _catch_up(context, stage, ledger)
    left = stage.target - ledger.handed_out() + len(ledger.unfinished())
    if left <= 0 or context.stop.stop_all():
        return ledger
    scheduler_name = _scheduler_name(context, stage)
    searcher = AskTell(ledger, stage.target, _capacity(context, stage, scheduler_name))
    had_trials = bool(ledger.trials(*ENDED) or ledger.unfinished())
    if had_trials and scheduler_name in schedulers.FORGETFUL:
        lost = schedulers.FORGETFUL[scheduler_name]
        context.board.say(f"{stage.stage}: resumed without the scheduler's memory: {lost}")
    scheduler = _scheduler(context, stage, scheduler_name, searcher)
    best = _best(ledger)
    context.board.begin(stage.stage, stage.target - left, stage.target, best, stage.epochs)
    callback = TrialCallback(
        stage=stage.stage,
        searcher=searcher,
        config_of=partial(with_overrides, stage.base),
        tracking=context.tracking,
        board=context.board,
        stop=context.stop,
        scheme=_scheme(context.plan.storage),
        mutates=scheduler_name == "pbt",
    )
    reasons = _fit(_tuner(context, stage, searcher, scheduler, callback))
    _tell_lost(reasons, searcher)
    if context.stop.reason:
        callback.cut_off(context.stop.reason)
    elif not ledger.unfinished():
        context.tracking.flush()  # final checkpoints among it
        _remove(_folder(context.plan, stage.stage))
    return ledger


def _scheduler_name(context: SearchContext, stage: StagePlan) -> str:
    """The baseline is stopped as the search is; finals run to their end."""
    if stage.stage == "final":
        return "none"
    return context.plan.space.spec.scheduler.name


def _capacity(context: SearchContext, stage: StagePlan, scheduler_name: str) -> Callable[[], int]:
    """How many trials may be alive.

    Population-based training holds trials back until others have come as far.
    """
    if scheduler_name == "pbt":
        return lambda: stage.target
    resources = context.resources
    return lambda: resources.slots + resources.joined


def _scheduler(
    context: SearchContext, stage: StagePlan, name: str, searcher: AskTell
) -> TrialScheduler:
    spec = context.plan.space.spec.scheduler
    schedule = None
    grace = spec.grace
    if name != "pbt":
        if spec.after_drop:
            schedule = stage.base.schedule
        grace = schedulers.first_stop(spec.grace, stage.epochs, schedule)
    always = (
        *schedulers.until_drop(stage.epochs, schedule),
        *protected.shared(stage.space, stage.base),
    )
    return schedulers.make(
        name,
        stage.space.mode,
        stage.epochs,
        grace,
        spec.reduction,
        stage.space.domains,
        searcher.ledger.past(*ENDED),
        searcher.resumed,
        ProtectedEpochs(stage.base, always),
    )


def _scheme(storage: str) -> str:
    """`s3://` of a URI; "" of a folder."""
    scheme, separator, _ = storage.partition("://")
    if separator:
        return scheme + separator
    return ""


def _catch_up(context: SearchContext, stage: StagePlan, ledger: Ledger) -> None:
    """Track once more what ended shortly before a driver was killed: the journal hears of it first.

    Tracking skips the steps and parameters that it has.
    """
    if context.last_end is None:
        return
    since = context.last_end - BUFFERED
    tracking = context.tracking
    for trial in ledger.trials(*ENDED, TrialState.FAIL):
        ended = trial.datetime_complete
        if ended is None or ended < since:
            continue
        number = trial.number
        attrs = trial.user_attrs
        facts: dict[str, Any] = {}
        for key in ("role", "source"):
            if key in attrs:
                facts[key] = attrs[key]
        config = with_overrides(stage.base, values_of(trial))
        tracking.start(stage.stage, number, config, facts)
        for epoch, value in sorted(trial.intermediate_values.items()):
            tracking.log(stage.stage, number, {"objective": value}, epoch)
        if stage.stage == "final" and "checkpoint" in attrs:
            with contextlib.suppress(OSError):
                kept = Checkpoint(attrs["checkpoint"]["path"])
                keep_files(tracking, stage.stage, number, kept)
        tracking.finish(stage.stage, trial)


def _tuner(
    context: SearchContext,
    stage: StagePlan,
    searcher: AskTell,
    scheduler: TrialScheduler,
    callback: TrialCallback,
) -> Tuner:
    plan = context.plan
    resources = context.resources
    job = TrialJob(
        build=partial(built, base=stage.base, build=context.build),
        epochs=stage.epochs,
        cpus=plan.cpus,
        save_every=plan.options.save_every,
        test=stage.stage == "final",
        storage="" if "://" in plan.storage else plan.storage,
        gpus=resources.gpus,
        environment=resources.environment,
    )
    needs = {"cpu": plan.cpus, "gpu": resources.gpus}
    trainable = tune.with_resources(tune.with_parameters(RunTrainable, job=job), needs)

    def folder_name(trial: Any) -> str:
        return f"{trial.config['number']:05d}-{trial.trial_id}"

    def name(trial: Any) -> str:
        return f"{stage.stage}-{folder_name(trial)}"

    return Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=name,
            trial_dirname_creator=folder_name,
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex[:8],  # a fresh folder per driver: nothing is overwritten
            storage_path=_folder(plan, stage.stage),
            stop=context.stop,
            callbacks=[callback],
            verbose=0,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(
                num_to_keep=4 if callback.mutates else 2, checkpoint_at_end=False
            ),
        ),
    )


def _fit(tuner: Tuner) -> dict[int, str]:
    """Run it to its end; why trials ended with an error, by number, as far as that can be read."""
    reasons: dict[int, str] = {}
    try:
        grid = tuner.fit()
        for result in map(grid.__getitem__, range(len(grid))):
            if result.error is not None and result.config is not None:
                reasons[result.config["number"]] = f"{type(result.error).__name__}: the worker died"
    except (EOFError, UnpicklingError):
        pass  # after its end: a full disk cut off what Ray wrote of an error
    return reasons


def _tell_lost(reasons: Mapping[int, str], searcher: AskTell) -> None:
    """Fail the trials that the callback did not hear of: fit() returns as if nothing had happened."""
    for trial_id in list(searcher.lost):
        number = searcher.numbers.get(trial_id)
        searcher.tell_lost(trial_id, reasons.get(number, "lost") if number is not None else "lost")


def _best(ledger: Ledger) -> TrialRow | None:
    found = ranked(ledger)
    if not found:
        return None
    best = found[0]
    return TrialRow(best.number, values_of(best), "completed", 0, value_of(best))


def _folder(plan: Plan, stage: Stage) -> str:
    """Where Ray keeps a stage."""
    return f"{plan.storage}/{stage}"


def deadline(plan: Plan, stage: Stage, budget: float | None) -> float | None:
    """When a tuning stage must stop (time.monotonic()).

    Search and baseline share what is left of the budget by their numbers of trials.
    """
    if budget is None:
        return None
    share = 1.0
    if stage != "baseline":
        share = plan.trials / (plan.trials + plan.baseline_trials)
    return time.monotonic() + budget * share


def _remove(where: str) -> None:
    """Remove the checkpoints of a finished stage; what finals keep is in the tracking store."""
    with contextlib.suppress(OSError):
        place = Checkpoint(where)
        system: Any = place.filesystem
        system.delete_dir(place.path)
