"""What besides the outputs speaks for or against two models being the same function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dwr_rewrite.equivalence.statistics import Errors


@dataclass(frozen=True, slots=True)
class Tap:
    """The value that one convolution computes, in both models; errors are from the float64 truth.

    Attributes:
        site: its name.
        value: name of the value.
        depth: position among the sites, from the input on.
        shape: of the value.
        scale: largest magnitude of the truth.
        reference: errors of the reference.
        candidate: errors of the candidate.
    """

    site: str
    value: str
    depth: int
    shape: tuple[int, ...]
    scale: float
    reference: Errors
    candidate: Errors


@dataclass(frozen=True, slots=True)
class Reach:
    """Output channels that one non-finite input channel reaches.

    Attributes:
        value: ``Inf`` or ``NaN``.
        channel: the input channel that it stood in.
        reference: how many output channels became non-finite in the reference.
        candidate: in the candidate.
    """

    value: Literal["Inf", "NaN"]
    channel: int
    reference: int
    candidate: int


@dataclass(frozen=True, slots=True)
class Probe:
    """One convolution by itself, on one-hot and on non-finite channels.

    Attributes:
        site: its name.
        form: of the candidate: ``keep``, ``dense`` or ``blocks:b``.
        channels: input channels.
        outputs: output channels.
        probed: input channels that stood alone once.
        leaks: pairs (input channel, output channel) where the candidate gives something and the
            reference gives zero; at most ten are kept.
        leaking: how many such pairs there are.
        reach: of Inf and NaN in one channel.
    """

    site: str
    form: str
    channels: int
    outputs: int
    probed: int
    leaks: tuple[tuple[int, int], ...]
    leaking: int
    reach: tuple[Reach, ...]


@dataclass(frozen=True, slots=True)
class Lemma:
    """One rewritten convolution, held against the lemma of the diagonal embedding.

    Attributes:
        site: its name.
        form: its form in the candidate.
        weights: ``precomputed`` or ``linked``.
        status: proved; refuted where the weight is another one; unproved where it cannot be told.
        detail: what was found, for a person; says what is wrong where it is not proved.
    """

    site: str
    form: str
    weights: str
    status: Literal["proved", "refuted", "unproved"]
    detail: str


@dataclass(frozen=True, slots=True)
class Proof:
    """The two models, compared node by node, without running them.

    Attributes:
        lemmas: the rewritten convolutions.
        identical: operators (or modules) that are the same in both.
        helpers: operators that only build weights for the lemmas.
        differences: everything else that is not the same, one sentence each.
    """

    lemmas: tuple[Lemma, ...]
    identical: int
    helpers: int = 0
    differences: tuple[str, ...] = ()

    @property
    def status(self) -> Literal["proved", "refuted", "partial"]:
        """Proved when every difference is a proved lemma; refuted when one lemma is."""
        if any(lemma.status == "refuted" for lemma in self.lemmas):
            return "refuted"
        done = all(lemma.status == "proved" for lemma in self.lemmas) and not self.differences
        return "proved" if done else "partial"


@dataclass(frozen=True, slots=True)
class Culprits:
    """The smallest set of changed sites that still makes the check fail.

    Attributes:
        sites: their names.
        tried: models that were put together and run to find them.
        model: file of the reference with only these sites changed; None when none was written.
    """

    sites: tuple[str, ...]
    tried: int
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Gradient:
    """One gradient of one site or parameter; errors are from the float64 truth.

    Attributes:
        name: of the site, parameter or input.
        direction: ``grad_input`` or ``grad_weight`` of a site; ``parameter`` or ``input``.
        scale: largest magnitude of the truth.
        reference: errors of the reference.
        candidate: errors of the candidate.
        tolerance: what the candidate's largest error may be.
    """

    name: str
    direction: Literal["grad_input", "grad_weight", "parameter", "input"]
    scale: float
    reference: Errors
    candidate: Errors
    tolerance: float

    @property
    def passed(self) -> bool:
        """Within a finite tolerance; never with a NaN."""
        return self.candidate.largest <= self.tolerance < float("inf")


@dataclass(frozen=True, slots=True)
class Training:
    """Gradients of one step, and a short training run.

    Attributes:
        gradients: per site and direction, per parameter and per input.
        truth: loss after each step, trained in float64 from the reference.
        reference: loss after each step.
        candidate: loss after each step.
        tolerance: what the candidate's loss may be off after each step.
        notes: anything a reader has to know.
    """

    gradients: tuple[Gradient, ...]
    truth: tuple[float, ...] = ()
    reference: tuple[float, ...] = ()
    candidate: tuple[float, ...] = ()
    tolerance: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> list[str]:
        """What is further off than its tolerance, one sentence each."""
        found = [
            f"{gradient.direction} of {gradient.name!r}: its error is "
            f"{gradient.candidate.largest:.3g}, allowed {gradient.tolerance:.3g}"
            for gradient in self.gradients
            if not gradient.passed
        ]
        curves = zip(self.candidate, self.truth, self.tolerance, strict=True)
        for step, (loss, exact, allowed) in enumerate(curves, start=1):
            if not abs(loss - exact) <= allowed < float("inf"):
                found.append(
                    f"the training loss is {abs(loss - exact):.3g} off after step {step}, "
                    f"allowed {allowed:.3g}"
                )
                break
        return found

    @property
    def passed(self) -> bool:
        """Nothing failed."""
        return not self.failures
