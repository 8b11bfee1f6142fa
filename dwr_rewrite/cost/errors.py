"""How far a cost model is from what was measured, and what its choices would have cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dwr_rewrite.cost.efficiency import kind_of
from dwr_rewrite.errors import DwrError
from dwr_rewrite.recipe import Recipe
from dwr_rewrite.workload import Workload

SURE = 0.9
"""The quantile of every error that is reported beside the median."""


@dataclass(frozen=True)
class Case:
    """One convolution, measured in every form.

    Attributes:
        layer: what it was taken from; batches, types, layouts and directions of a layer are alike.
        workload: the convolution.
        times: seconds of each form; ``keep`` is among them.
    """

    layer: str
    workload: Workload
    times: Mapping[Recipe, float]

    @property
    def kept(self) -> Recipe:
        """The depthwise form."""
        return next(recipe for recipe in self.times if kind_of(recipe) == "keep")


def distinct(cases: Sequence[Case]) -> list[tuple[Case, Recipe]]:
    """Every time of the cases once.

    A depthwise forward, of torch's or ours, stands in two cases: beside forms whose weight is
    stored, and beside the same ones packed in every call.
    """
    found: dict[tuple[str, Workload, Recipe], tuple[Case, Recipe]] = {}
    for case in cases:
        for recipe in case.times:
            alike = recipe.packing.width == 1 and case.workload.direction == "forward"
            workload = replace(case.workload, stored=True) if alike else case.workload
            found.setdefault((case.layer, workload, recipe), (case, recipe))
    return list(found.values())


Expect = Callable[[Case, Recipe], float]
"""Seconds that a model expects of a form of a case."""


@dataclass(frozen=True)
class Choices:
    """What becomes of the cases if the model chooses.

    Attributes:
        best: share of them in which it takes the form that was measured to be fastest.
        regret_median: time of the form that it takes over that of the fastest.
        regret_p90: likewise.
        rewritten: share of them in which it takes another form than the depthwise one.
        slower: share of these in which that is slower than the depthwise one.
    """

    best: float
    regret_median: float
    regret_p90: float
    rewritten: float
    slower: float


@dataclass(frozen=True)
class Errors:
    """A model against measurements.

    Attributes:
        observations: times that were compared.
        layers: that they are of.
        cases: convolutions with a choice of forms.
        median: of max(expected / measured, measured / expected).
        p90: likewise, the 90th percentile.
        margin: see :func:`margin_of`.
        plain: what the forms that are expected to be fastest would cost.
        careful: likewise, taking a form only where it is expected to be ``margin`` times as fast.
    """

    observations: int
    layers: int
    cases: int
    median: float
    p90: float
    margin: float
    plain: Choices
    careful: Choices

    def to_dict(self) -> dict[str, float]:
        """Flat, for JSON."""
        flat: dict[str, float] = {}
        for name, value in vars(self).items():
            if isinstance(value, Choices):
                flat |= {f"{name}_{each}": number for each, number in vars(value).items()}
            else:
                flat[name] = value
        return flat


def errors(cases: Sequence[Case], expect: Expect) -> Errors:
    """Compares a model with every time of the cases.

    Raises:
        DwrError: no case has a choice of forms.
    """
    ratios = [expect(case, recipe) / case.times[recipe] for case, recipe in distinct(cases)]
    off = np.exp(np.abs(np.log(ratios)))
    chosen = [(c, {r: expect(c, r) for r in c.times}) for c in cases if len(c.times) > 1]
    if not chosen:
        raise DwrError("no convolution was measured in more than one form; there is no choice to "
                       "judge")  # fmt: skip
    margin = margin_of(chosen)
    return Errors(
        len(ratios), len({case.layer for case in cases}), len(chosen), float(np.median(off)),
        float(np.quantile(off, SURE)), margin, _choices(chosen, 1.0), _choices(chosen, margin),
    )  # fmt: skip


Pair = tuple[Case, Mapping[Recipe, float]]
"""A case and the seconds that are expected of its forms."""


def margin_of(pairs: Sequence[Pair]) -> float:
    """How many times faster a form has to be expected, so that nine times of ten it is faster.

    For every case the rewritten form that is expected to be fastest is the one that would be taken;
    its expected speed-up over the depthwise one is divided by the measured one. In nine cases of
    ten that quotient is no more than its 90th percentile: a form whose expected speed-up is larger
    than the percentile then has a real one above 1. Errors that both forms share cancel in it, and
    that the luckiest of several expectations is taken is in it. Never below 1.
    """
    overstated: list[float] = []
    for case, expected in pairs:
        kept = case.kept
        best = min((each for each in expected if each != kept), key=lambda each: expected[each])
        promised, real = expected[kept] / expected[best], case.times[kept] / case.times[best]
        overstated.append(promised / real)
    return max(1.0, float(np.quantile(overstated, SURE)))


def _choices(pairs: Sequence[Pair], margin: float) -> Choices:
    regrets: list[float] = []
    against_kept: list[float] = []
    for case, expected in pairs:
        taken = min(expected, key=lambda each: expected[each])
        if expected[case.kept] <= margin * expected[taken]:
            taken = case.kept
        regrets.append(case.times[taken] / min(case.times.values()))
        if taken != case.kept:
            against_kept.append(case.times[taken] / case.times[case.kept])
    return Choices(
        float(np.mean(np.array(regrets) == 1.0)),
        float(np.median(regrets)),
        float(np.quantile(regrets, SURE)),
        len(against_kept) / len(pairs),
        float(np.mean(np.array(against_kept) > 1.0)) if against_kept else 0.0,
    )
