"""The policy ``auto``: single convolutions choose, and the whole model has the last word."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from onnx import ModelProto

from dwr_rewrite.cost import Model
from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx import files
from dwr_rewrite.passes.onnx.device import provider_of
from dwr_rewrite.passes.onnx.match import Match
from dwr_rewrite.passes.onnx.provider import CPU, CUDA, Provider
from dwr_rewrite.passes.onnx.rewrite import Options, find, freeze, overridable, rewrite
from dwr_rewrite.passes.onnx.runtime import RuntimeResult, label_of
from dwr_rewrite.passes.onnx.tune.engine import Engine, ProviderBench
from dwr_rewrite.passes.onnx.tune.free import best
from dwr_rewrite.passes.onnx.tune.ground import Elsewhere, Here, Target, ground
from dwr_rewrite.passes.onnx.tune.survey import first_shapes, sites_at
from dwr_rewrite.passes.onnx.whole import stage
from dwr_rewrite.planner import Attempt, Basis, Plan, settle
from dwr_rewrite.planner.auto import Sites, measured, modelled, nothing
from dwr_rewrite.timing import FreeSetting, Paired, Runtime, Speedup, TrialResult
from dwr_rewrite.tuning import Bench, Device
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.tuning.models import model_of
from dwr_rewrite.tuning.recorded import Recorded
from dwr_rewrite.tuning.tune import Progress, known

NO_GPU = (
    "Kept the original: there is no GPU here to measure on. Run this where the GPU is, name it "
    "with --target, or say --target cpu if the model is to be fast on this CPU."
)
ENGINE = "ExecutionProvider"
"""Ends the engine of every device that onnxruntime measured."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while something was measured.

    Attributes:
        kept: measurements for this model that are in the database.
    """

    def __init__(self, kept: int) -> None:
        """Says what is kept."""
        super().__init__(f"interrupted; nothing was written; {kept} measurements are kept")
        self.kept = kept


@dataclass(frozen=True)
class Chosen:
    """A plan, and how it came about.

    Attributes:
        plan: a form for every site.
        runtime: of the whole model; None where it was not timed.
        notes: for a person.
    """

    plan: Plan
    runtime: Runtime | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Auto:
    """Chooses the forms of a model.

    Attributes:
        options: which sites, and how their weights are written.
        settings: inputs, shapes and time limit.
        target: what it is to be fast on.
        engine: what measures.
        progress: told what is going on.
        measure: otherwise only what is known already is looked at.
    """

    options: Options
    settings: Settings
    target: Target
    engine: Engine
    progress: Progress
    measure: bool = True

    def __call__(self, model: ModelProto, path: Path) -> Chosen:
        """The plan for a model.

        Args:
            model: what is in the file; it is not changed.
            path: the file.

        Raises:
            Interrupted: by Ctrl-C; what was measured is in the database.
            DwrError: the target is not known, what the user named does not load, or the model does
                not run on it.
        """
        if self.target.min_speedup < 1:
            raise DwrError(f"--min-speedup {self.target.min_speedup:g}: the policy auto makes no "
                           f"model slower; 1 or more expected")  # fmt: skip
        if not any(isinstance(result, Match) for result in find(model, self.options)[1]):
            return Chosen(nothing("there is no convolution to choose a form for"))
        self.progress("looking for the device")
        with Database.open() as database:
            where = ground(self.target, self._bench, database.devices)
            if isinstance(where, Here):
                return self._here(model, path, where.bench, database)
            if isinstance(where, Elsewhere):
                return self._elsewhere(model, path, where, database)
            return Chosen(nothing(), notes=(NO_GPU,))

    def _bench(self, provider: str | None) -> ProviderBench:
        return self.engine.bench(provider, self.target.options)

    def _here(
        self, model: ModelProto, path: Path, bench: ProviderBench, database: Database
    ) -> Chosen:
        """Measured; a model that cannot be timed on a GPU that nobody named is kept."""
        try:
            shapes = first_shapes(model, path, self.settings, bench.provider)
            if not self.measure:
                return _dry(sites_at(model, self.options, shapes, bench.provider), bench, database)
            given = bench.provider
            free = self.engine.free(path, self.settings, given, self.progress)
            setting, provider = best(free, given)
            free = (*free, *self._constant(model, path, given))
            if setting:
                bench = self.engine.bench(provider.name, provider.options)
            sites = sites_at(model, self.options, shapes, bench.provider)
            try:
                plan = measured(
                    sites, bench, database, budget=self.target.budget, progress=self.progress,
                    min_speedup=self.target.min_speedup, model=_expectation(bench.device, database),
                )  # fmt: skip
                return self._settled(plan, path, bench, given, free, setting)
            except KeyboardInterrupt:
                raise Interrupted(len(known(sites.questions, bench.device, database))) from None
        except DwrError as error:
            if self.target.provider is not None or self.target.name is not None:
                raise
            why = f"nothing can be measured on {bench.device}, so that every convolution is kept"
            return _told(nothing(f"{why}: {error}"))

    def _settled(
        self, plan: Plan, path: Path, bench: ProviderBench, given: Provider,
        free: tuple[FreeSetting, ...], setting: str,
    ) -> Chosen:  # fmt: skip
        """The plan that makes the whole model faster, under the best free setting.

        It has to make it faster as the provider was given too: nobody has to follow advice for his
        model not to become slower.
        """
        found: list[RuntimeResult] = []

        def trial(plan: Plan) -> Paired:
            self.progress(f"timing the whole model, sites rewritten: {len(plan.gains)}")
            found[:] = [self._time(plan, path, bench.provider)]
            if not setting or not found[0].pair.is_faster(self.target.min_speedup):
                return found[0].pair
            found.append(self._time(plan, path, given))
            return found[0].pair if found[1].pair.is_faster() else found[1].pair

        settled = settle(plan, trial, self.target.min_speedup)
        runtime = _runtime(bench, found, free, setting, settled.attempts)
        chosen = _told(settled.plan, runtime)
        if settled.plan.gains:
            return chosen
        kept = f"Kept the original: no faster form on {bench.device.name}."
        return replace(chosen, notes=(*chosen.notes, kept))

    def _constant(
        self, model: ModelProto, path: Path, provider: Provider
    ) -> tuple[FreeSetting, ...]:
        """What a model whose callers can override its weights gains where they no longer can.

        It is advice only: the rewritten model leaves the inputs as they are, unless asked.
        """
        if self.options.freeze_weights or not overridable(model):
            return ()
        self.progress("timing the original with constant weights")
        found = self._beside(path, freeze, provider)
        how = "dwr-rewrite --freeze-weights (callers can no longer override them)"
        return (FreeSetting("constant weights", how, True, Speedup.of(found.pair)),)

    def _time(self, plan: Plan, path: Path, provider: Provider) -> RuntimeResult:
        """The times of the whole model, as it is and with a plan."""
        return self._beside(path, lambda model: rewrite(model, self.options, plan), provider)

    def _beside(
        self, path: Path, change: Callable[[ModelProto], object], provider: Provider
    ) -> RuntimeResult:
        """The times of a model as it is, and changed."""
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dwr-trial-")))
            model = files.read(path).model
            change(model)
            staged = stage(scratch / "trial.onnx", model, stack, external=False)
            return self.engine.time((path, staged.path), self.settings, provider, self.progress)

    def _elsewhere(
        self, model: ModelProto, path: Path, where: Elsewhere, database: Database
    ) -> Chosen:
        """What was recorded of the device; where there is nothing, what a cost model expects."""
        shapes = first_shapes(model, path, self.settings, Provider(CPU))
        plans = [
            self._recorded(sites_at(model, self.options, shapes, provider_of(device)), device,
                           database)
            for device in where.devices
            if device.engine.endswith(ENGINE)
        ]  # fmt: skip
        plan = max(plans, key=lambda plan: len(plan.choices), default=None)
        if plan is None or not plan.choices:
            provider = Provider(CUDA, self.target.options)
            sites = sites_at(model, self.options, shapes, provider)
            plan = modelled(sites, model_of(where.name, database))
        if not plan.gains:
            kept = f"Kept the original: no form is expected to be faster on {where.name}."
            return Chosen(plan, None, (sentence(plan), kept))
        advice = f"The whole model was not timed: do that on {where.name} with dwr-verify --time."
        return Chosen(plan, None, (sentence(plan), advice))

    def _recorded(self, sites: Sites, device: Device, database: Database) -> Plan:
        bench = Recorded(database, device)
        plan = measured(sites, bench, None, budget=inf, min_speedup=self.target.min_speedup)
        return replace(plan, basis=Basis("measured", f"recorded on {device}, which is not here"))


def _dry(sites: Sites, bench: Bench, database: Database) -> Chosen:
    """What is known already, and what would be measured."""
    plan = measured(sites, Recorded(database, bench.device), None, budget=inf, min_speedup=1.0)
    asked = len(sites.questions)
    there = len(known(sites.questions, bench.device, database))
    text = f"{there} of {asked} sizes are known on {bench.device}; a run measures the others, and "
    return _told(replace(plan, basis=Basis("measured", f"{text}then the whole model")))


def _expectation(device: Device, database: Database) -> Model | None:
    """The cost model of a device, where there is one."""
    try:
        return model_of(device.name, database)
    except DwrError:
        return None


def _runtime(
    bench: ProviderBench,
    last: Sequence[RuntimeResult],
    free: tuple[FreeSetting, ...],
    setting: str,
    attempts: tuple[Attempt, ...],
) -> Runtime | None:
    """What was timed of the whole model; None where that is nothing."""
    trials = tuple(TrialResult(a.sites, Speedup.of(a.pair), a.faster) for a in attempts)
    if last:
        runtime = last[0].runtime
        given = (row for result in last[1:] for row in result.runtime.measurements)
        plainly = (replace(row, name=f"{row.name}, as given") for row in given)
        rows = (*runtime.measurements, *plainly)
        return replace(runtime, measurements=rows, setting=setting, settings=free, trials=trials)
    if not free:
        return None
    label = label_of(bench.device, bench.provider)
    return Runtime(label, (), setting, free, trials, facts=bench.device.facts)


def sentence(plan: Plan) -> str:
    """What a plan rests on, as a sentence."""
    text = plan.basis.sentence
    return f"{text[:1].upper()}{text[1:]}."


def _told(plan: Plan, runtime: Runtime | None = None) -> Chosen:
    return Chosen(plan, runtime, (sentence(plan),))
