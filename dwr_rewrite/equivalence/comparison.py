"""One output of both models, held against the float64 truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dwr_rewrite.equivalence.statistics import (
    Agreement,
    Array,
    Errors,
    Worst,
    agreement,
    errors,
    largest,
)
from dwr_rewrite.equivalence.tolerance import TRUSTED

INFINITE = float("inf")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of one run.

    Attributes:
        output: the output's name.
        dtype: its element type.
        shape: its shape.
        scale: largest magnitude of the truth, to read the errors against.
        movement: how far rounding moves the truth.
        tolerance: what :attr:`measured` may be.
        by: whether the error of the candidate is measured, or its difference from the reference.
        reason: why it failed for another cause than its error; empty otherwise.
        reference: errors of the reference; None where it could not be compared.
        candidate: errors of the candidate.
        difference: the candidate from the reference.
        worst: where the candidate is furthest off; None where no element was compared.
        agreement: of the ranking, where the output looks like scores.
    """

    output: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    scale: float = 0.0
    movement: float = 0.0
    tolerance: float = 0.0
    by: Literal["error", "difference"] = "error"
    reason: str = ""
    reference: Errors | None = None
    candidate: Errors | None = None
    difference: Errors | None = None
    worst: Worst | None = None
    agreement: Agreement | None = None

    @property
    def measured(self) -> float:
        """What is held against the tolerance; the tolerance that would have been needed."""
        found = self.candidate if self.by == "error" else self.difference
        return INFINITE if found is None else found.largest

    @property
    def passed(self) -> bool:
        """Within a finite tolerance; never with a NaN."""
        return not self.reason and self.measured <= self.tolerance < INFINITE

    @property
    def telling(self) -> bool:
        """Whether a wrong result would have failed: an output of zeros must not pass.

        An output without a finite element, or without any, tells nothing.
        """
        equal = self.difference is not None and self.difference.largest == 0
        return self.worst is not None and (equal or self.tolerance < self.scale)

    @property
    def used(self) -> float:
        """Part of the tolerance that was needed."""
        if not self.passed:
            return INFINITE
        return self.measured / self.tolerance if self.tolerance else 0.0


def compare(
    output: str,
    reference: Array,
    candidate: Array,
    truth: Array,
    movement: float,
    slack: float = 0.0,
) -> Comparison:
    """Compares one output of both models with the float64 evaluation of the reference.

    Args:
        output: its name.
        reference: what the reference gave, any dtype.
        candidate: what the candidate gave; shape and dtype must be the same.
        truth: the float64 evaluation of the reference; ``reference`` itself where there is none or
            where both models were evaluated in float64, and then the difference is measured.
        movement: how far the truth moves under the operators' rounding, see
            :func:`~dwr_rewrite.equivalence.tolerance.movement`.
        slack: error relative to the largest truth that is allowed besides.

    Elements that are not finite in the reference or in its float64 evaluation are not compared. But
    where the reference is finite the candidate has to be, and an Inf or NaN that is the same in
    both evaluations of the reference is part of the function: the candidate must give it too.
    """
    kind = reference.dtype.name
    if reason := _mismatch(reference, candidate, truth):
        return Comparison(output, kind, reference.shape, reason=reason)
    before, after, exact = (np.asarray(a, np.float64) for a in (reference, candidate, truth))
    if reason := _not_finite(before, after, exact):
        return Comparison(output, kind, reference.shape, reason=reason)
    finite = np.isfinite(before) & np.isfinite(exact)
    worst, ranks = _worst(before, after, exact, finite), None
    if finite.all():
        ranks = agreement(before, after) if kind.startswith(("float", "bfloat")) else None
    else:
        before, after, exact = before[finite], after[finite], exact[finite]
    scale, error = largest(np.abs(exact)), errors(before, exact, kind)
    rounding = movement + slack * scale
    trusted = truth is not reference and error.largest <= TRUSTED * rounding
    return Comparison(
        output, kind, reference.shape, scale, rounding,
        2 * (error.largest + rounding) if trusted else 4 * rounding,
        "error" if trusted else "difference", "",
        error, errors(after, exact, kind), errors(after, before, kind), worst, ranks,
    )  # fmt: skip


def _mismatch(reference: Array, candidate: Array, truth: Array) -> str:
    """How the arrays' shapes or element types differ; empty where they can be compared."""
    if reference.shape != candidate.shape or reference.dtype != candidate.dtype:
        return f"{describe(reference)} became {describe(candidate)}"
    if reference.shape != truth.shape:
        return f"{describe(reference)} is {describe(truth)} in float64"
    return ""


def _not_finite(reference: Array, candidate: Array, truth: Array) -> str:
    """What became of finite values and of Inf and NaN; empty where all is well."""
    finite = np.isfinite(reference)
    if spread := int((finite & ~np.isfinite(candidate)).sum()):
        return f"{spread} of {finite.sum()} finite values became Inf or NaN"
    if finite.all():
        return ""
    due = ~finite & _same(reference, truth)
    if lost := int((due & ~_same(reference, candidate)).sum()):
        return f"{lost} of {due.sum()} values that are Inf or NaN became something else"
    return ""


def _same(one: Array, two: Array) -> Array:
    return (one == two) | (np.isnan(one) & np.isnan(two))


def identical(output: str, array: Array) -> Comparison:
    """An output that both models compute bit for bit alike: it needs no yardstick."""
    kind, values = array.dtype.name, np.asarray(array, np.float64)
    finite = np.isfinite(values)
    return Comparison(
        output, kind, array.shape, largest(np.abs(values[finite])), by="difference",
        difference=errors(values[finite], values[finite], kind),
        worst=_worst(values, values, values, finite),
    )  # fmt: skip


def _worst(reference: Array, candidate: Array, truth: Array, finite: Array) -> Worst | None:
    if not finite.any():
        return None
    distance = np.full(truth.shape, -1.0)
    with np.errstate(over="ignore"):
        distance[finite] = np.abs(candidate[finite] - truth[finite])
    index = np.unravel_index(int(np.argmax(distance)), truth.shape)
    values = (float(array[index]) for array in (truth, reference, candidate))
    return Worst(tuple(int(i) for i in index), *values)


def describe(array: Array) -> str:
    """Element type and shape of an array, for a sentence."""
    return f"{array.dtype} {list(array.shape)}"
