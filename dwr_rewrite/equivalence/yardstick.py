"""The float64 evaluation of the reference, and how far rounding moves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dwr_rewrite.equivalence.plan import Plan
from dwr_rewrite.equivalence.sample import Sample, first_line, tensors
from dwr_rewrite.equivalence.subject import Evaluation, Observe, Pair, Subject
from dwr_rewrite.equivalence.tolerance import FINITE_MAX, UNIT_ROUNDOFF, movement


class Yardstick:
    """Gives samples their truth.

    Args:
        pair: the models.
        plan: makes the inputs.
        note: told what a reader has to know.

    Attributes:
        blind: whether nothing evaluates the reference in float64.
    """

    def __init__(self, pair: Pair, plan: Plan, note: Callable[[str], None]) -> None:
        """Evaluates nothing yet."""
        self.pair, self.plan, self.note = pair, plan, note
        self.blind = False

    def truth(self, sample: Sample, observe: Observe | None = None) -> Evaluation | None:
        """The reference in float64; None once that has failed."""
        if self.blind:
            return None
        result = self._evaluate(self.pair.reference, sample, "", observe)
        self.blind = result is None
        return result

    def lay(self, sample: Sample, truth: Evaluation | None) -> None:
        """Fills in what the sample's outputs are held against.

        Without a truth that is the reference itself, with one first-order bound for every site,
        added up.
        """
        if truth is None:
            rounding = self.pair.rounding
            sample.exact = sample.before
            sample.slack = sum(
                rounding.gamma(site.terms) + rounding.store for site in self.pair.sites
            )
            return
        sample.exact = tensors(truth.outputs)
        sample.moved = self._movements(sample)

    def algebra(self, sample: Sample, truth: Evaluation) -> Sample | None:
        """The sample with both models in float64: the algebra alone.

        Rounding in float64 is smaller than in the model's own type by the ratio of the unit
        roundoffs; every operator may in addition round what has moved differently.
        """
        found = self._evaluate(self.pair.candidate, sample, " of the candidate")
        if found is None:
            return None
        double, rounding = UNIT_ROUNDOFF["float64"], self.pair.rounding
        ratio = double / (rounding.accumulate + rounding.multiply)
        mixed = truth.single_precision or found.single_precision
        return replace(
            sample, before=sample.exact, after=tensors(found.outputs),
            moved={name: value * ratio for name, value in sample.moved.items()},
            slack=self.pair.operators * (UNIT_ROUNDOFF["float32"] if mixed else double),
        )  # fmt: skip

    def overflow(self, truth: Evaluation) -> str:
        """Says so where the input drives an activation of the reference past its type's range."""
        types = {site.value: site.dtype for site in self.pair.sites}
        for value, peak in truth.peak.items():
            if value in types and not peak <= FINITE_MAX[types[value]]:
                return f"its activations overflow {types[value]} before {value!r}"
        return ""

    def _evaluate(
        self, subject: Subject, sample: Sample, whose: str, observe: Observe | None = None
    ) -> Evaluation | None:
        try:
            result = subject.exact(self.plan.feeds(sample), observe=observe)
        except Exception as error:  # noqa: BLE001  an operator that nothing evaluates in float64
            self.note(f"no float64 evaluation{whose}: {first_line(error)}")
            return None
        if result.single_precision:
            operators = ", ".join(result.single_precision)
            self.note(f"evaluated in float32 for want of a float64 kernel: {operators}")
        return result

    def _movements(self, sample: Sample) -> dict[str, float]:
        """How far rounding moves each output; a second run where an output is small."""
        signs, feeds = self.plan.rng(sample, 1), self.plan.feeds(sample)
        runs = 1 if all(array.size >= 64 for array in sample.exact.values()) else 2
        moved = [self.pair.reference.exact(feeds, perturb=signs).outputs for _ in range(runs)]
        return {
            name: movement(array, [np.asarray(outputs[name]) for outputs in moved])
            for name, array in sample.exact.items()
        }
