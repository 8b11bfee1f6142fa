"""All that was observed about two models, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dwr_rewrite.equivalence.comparison import Comparison
from dwr_rewrite.equivalence.evidence import Culprits, Probe, Proof, Tap, Training
from dwr_rewrite.equivalence.statistics import Picture, rms
from dwr_rewrite.equivalence.tolerance import FACTOR, FACTOR_NEEDS, UNIT_ROUNDOFF, Rounding

Verdict = Literal["equivalent", "not equivalent", "not checked"]

DOUBLE = "float64"
"""Engine of the cases in which both models are evaluated in float64: the algebra alone."""


@dataclass(frozen=True, slots=True)
class Case:
    """Both models on one input.

    Attributes:
        name: kind of the input, or its file.
        engine: what ran the two models.
        comparisons: one for each output; empty when the case could not be compared.
        skipped: why it could not be compared.
        shapes: of the inputs, by name.
    """

    name: str
    engine: str
    comparisons: tuple[Comparison, ...] = ()
    skipped: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])


@dataclass(frozen=True, slots=True)
class Ratio:
    """The candidate's error over the reference's, for one output over all inputs.

    Attributes:
        output: its name.
        inputs: how many.
        reference: root mean square over the inputs of the largest error in units of the movement,
            so that no badly conditioned input drowns the others; each at least the rounding of a
            stored result.
        candidate: the same of the candidate.
        allowed: what :attr:`value` may be; None below ``FACTOR_NEEDS`` inputs.
    """

    output: str
    inputs: int
    reference: float
    candidate: float
    allowed: float | None

    @property
    def value(self) -> float:
        """The ratio."""
        return self.candidate / self.reference

    @property
    def passed(self) -> bool:
        """Not above what is allowed."""
        return self.allowed is None or self.value <= self.allowed


@dataclass(frozen=True, slots=True)
class Verification:
    """All that was observed.

    Attributes:
        cases: one for each input and engine.
        versions: the libraries that ran.
        warnings: lines that onnxruntime wrote as warnings or errors while it ran.
        seconds: wall time of the check.
        notes: anything a reader has to know: operators evaluated in float32, a check left out.
        rounding: of the operators, as the tolerance assumes it.
        longest: the convolution with the most products in a sum, and how many.
        taps: errors at every site, from the input on.
        tapped: name of the input on which they were taken.
        probes: the sites by themselves.
        proof: the models compared without running them; None where it was not tried.
        culprits: of a failure.
        training: gradients and a training run; None where it was not asked for.
        picture: the output nearest to its tolerance, in detail.
        outputs: names of the outputs that have to be told apart.
    """

    cases: tuple[Case, ...]
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    warnings: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    rounding: Rounding = field(default_factory=Rounding)
    longest: tuple[str, int] | None = None
    taps: tuple[Tap, ...] = ()
    tapped: str = ""
    probes: tuple[Probe, ...] = ()
    proof: Proof | None = None
    culprits: Culprits | None = None
    training: Training | None = None
    picture: Picture | None = None
    outputs: tuple[str, ...] = ()

    @property
    def compared(self) -> list[tuple[Case, Comparison]]:
        """Every comparison with its case."""
        return [(case, comparison) for case in self.cases for comparison in case.comparisons]

    @property
    def failures(self) -> list[str]:
        """Why the models are not equivalent, one sentence each, the most particular first."""
        return list(self._failures())

    def _failures(self) -> Iterator[str]:
        for lemma in self.proof.lemmas if self.proof else ():
            if lemma.status == "refuted":
                yield f"site {lemma.site!r}: {lemma.detail}"
        for probe in self.probes:
            if probe.leaking:
                source, target = probe.leaks[0]
                more = f", and {probe.leaking - 1} more" if probe.leaking > 1 else ""
                yield (
                    f"site {probe.site!r}: channel {source} leaks into output channel "
                    f"{target}{more}"
                )
        yield from (_comparison_failure(*pair) for pair in self.compared if not pair[1].passed)
        for ratio in self.ratios:
            if not ratio.passed:
                yield (
                    f"output {ratio.output!r}: its error is {ratio.value:.3g} times the "
                    f"reference's own over {ratio.inputs} inputs, allowed {ratio.allowed:g}"
                )
        yield from self.training.failures if self.training else ()

    @property
    def verdict(self) -> Verdict:
        """Equivalent only when nothing failed, and each output was told apart once."""
        if self.failures:
            return "not equivalent"
        return "equivalent" if self.compared and not self.untold else "not checked"

    @property
    def untold(self) -> list[str]:
        """Outputs of which no input could have shown that they are wrong."""
        told = {c.output for _, c in self.compared if c.telling}
        compared = (c.output for _, c in self.compared)
        return [name for name in dict.fromkeys((*self.outputs, *compared)) if name not in told]

    @property
    def worst(self) -> tuple[Case, Comparison] | None:
        """The comparison that used most of its tolerance."""
        return max(self.compared, key=lambda pair: pair[1].used, default=None)

    @property
    def ratios(self) -> list[Ratio]:
        """The candidate's error over the reference's for every output that has errors.

        Inputs on which the tolerance is as large as the output do not count.
        """
        found: dict[str, list[Comparison]] = {}
        for case, c in self.compared:
            judged = c.by == "error" and c.movement > 0 and c.tolerance < c.scale
            if case.engine != DOUBLE and judged and c.dtype in UNIT_ROUNDOFF:
                found.setdefault(c.output, []).append(c)
        return [_ratio(output, comparisons) for output, comparisons in found.items()]


def _comparison_failure(case: Case, found: Comparison) -> str:
    what = found.reason or (
        f"its {found.by} is {found.measured:.3g}, allowed {found.tolerance:.3g}"
    )
    output = f"output {found.output!r}: " if found.output else ""
    return f"{output}{what} (input {case.name!r}, {case.engine})"


def _ratio(output: str, comparisons: list[Comparison]) -> Ratio:
    floor = UNIT_ROUNDOFF[comparisons[0].dtype]
    in_movements = np.array(
        [
            (max(c.reference.largest, floor * c.scale) / c.movement,
             c.candidate.largest / c.movement)
            for c in comparisons if c.reference and c.candidate
        ]
    )  # fmt: skip
    reference, candidate = map(rms, in_movements.T)
    allowed = FACTOR if len(comparisons) >= FACTOR_NEEDS else None
    return Ratio(output, len(comparisons), reference, candidate, allowed)
