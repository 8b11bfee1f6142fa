"""The policy ``auto``: every site takes the form that its device runs fastest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf

from dwr_rewrite.cost import Model
from dwr_rewrite.errors import Rejection
from dwr_rewrite.lowerings import KERNEL, candidates, lower
from dwr_rewrite.planner.choice import Choice, Predict, by_measurement, by_model
from dwr_rewrite.planner.plan import Basis, Plan
from dwr_rewrite.timing import Clock
from dwr_rewrite.tuning import Bench, Question
from dwr_rewrite.tuning.database import Database
from dwr_rewrite.tuning.tune import Progress, silent, tune
from dwr_rewrite.workload import Workload

Kernels = Callable[[Workload], tuple[str, ...]]
"""Names of the kernel forms that are worth a measurement for a convolution."""

NO_DEVICE = "no form is known to be faster: there is no GPU here, and no target names one"


def no_kernels(_: Workload) -> tuple[str, ...]:
    """The :data:`Kernels` of an engine that cannot call ours."""
    return ()


@dataclass(frozen=True)
class Sites:
    """What there is to choose for.

    Attributes:
        workloads: of every site, by its name; one for each direction that counts.
        left: why a site cannot be weighed, by its name: its size is not known.
        max_growth: bytes that a packed weight may have more than its compact one.
        kernels: which kernels of our own are asked about.
    """

    workloads: Mapping[str, tuple[Workload, ...]]
    left: Mapping[str, Rejection] = field(default_factory=dict[str, Rejection])
    max_growth: int = 256 << 20
    kernels: Kernels = no_kernels

    @property
    def questions(self) -> list[Question]:
        """What is asked about them, each once; what takes most of the model's time comes first."""
        counts = Counter(w for workloads in self.workloads.values() for w in workloads)
        return [
            Question(workload, self._forms(workload))
            for workload in sorted(counts, key=lambda w: -counts[w] * w.elements * w.itemsize)
        ]

    def _forms(self, workload: Workload) -> tuple[str, ...]:
        fitting = (
            form
            for form, recipe in candidates(workload.spec).items()
            if recipe.packing.growth * workload.itemsize <= self.max_growth
        )
        return *fitting, *self.kernels(workload)


def measured(
    sites: Sites,
    bench: Bench,
    database: Database | None,
    *,
    budget: float,
    min_speedup: float,
    model: Model | None = None,
    progress: Progress = silent,
    clock: Clock = time.monotonic,
) -> Plan:
    """A plan that rests on times of a device; what the budget does not reach is kept.

    Args:
        sites: what to choose for.
        bench: the device.
        database: what it answered before, and where its answers go; None for neither.
        budget: seconds for what the database does not hold; infinite for a bench that only reads.
        min_speedup: how many times faster than ``keep`` a form has to be.
        model: its expectations are shown beside the times; None for none.
        progress: told what is going on.
        clock: what the budget is measured by.
    """
    questions = sites.questions
    answers = tune(questions, bench, database, budget=budget, progress=progress, clock=clock)
    predict = None if model is None else expectation(model)
    found = {w: by_measurement(answer, min_speedup, predict) for w, answer in answers.items()}
    missed = len(questions) - len(found)
    sentence, why = f"measured on {bench.device}", "its size was not measured there"
    if budget < inf:
        why = "the time for measuring was used up before it"
    if missed:
        limit = f" within {budget:g} s" if budget < inf else ""
        sentence += f"; {missed} of {len(questions)} sizes were not reached{limit}"
    return _plan(sites, found, Basis("measured", sentence), why)


def modelled(sites: Sites, model: Model) -> Plan:
    """A plan that rests on what a cost model expects of a device that is not here.

    A kernel of our own is weighed only where the model was fitted to times of such: a roofline
    alone would take it for faster than any library's.
    """
    predict = expectation(model)
    if sites.kernels is not no_kernels and not model.efficiency.covers(KERNEL):
        sites = replace(sites, kernels=no_kernels)
    found = {q.workload: by_model(q, predict, model.margin) for q in sites.questions}
    return _plan(sites, found, Basis("modelled", model.sentence))


def nothing(sentence: str = NO_DEVICE) -> Plan:
    """The plan that keeps everything, and why."""
    return Plan(Basis("nothing", sentence))


def expectation(model: Model) -> Predict:
    """What the model expects of a form, in seconds."""

    def predict(workload: Workload, form: str) -> float:
        recipe = lower(workload.spec, form)
        assert not isinstance(recipe, Rejection)  # it was asked about
        return model.seconds(workload, recipe)

    return predict


def _plan(sites: Sites, found: Mapping[Workload, Choice], basis: Basis, why: str = "") -> Plan:
    """The choices by site; one that lacks an answer in any direction is left, and why."""
    choices, left = dict[str, tuple[Choice, ...]](), {**sites.left}
    for name, workloads in sites.workloads.items():
        if all(workload in found for workload in workloads):
            choices[name] = tuple(found[workload] for workload in workloads)
        else:
            left[name] = Rejection("not-measured", why)
    return Plan(basis, choices, left)
