"""Is the rewritten model as close to the truth as the original? Numbers only, no framework.

The yardstick is a float64 evaluation of the original, with which both models are compared. The
rewritten one may be off by

    tolerance = 2 * (error of the original + movement)

where *movement* is how far the float64 outputs move when every operator's result is moved by a
bound on its own rounding error, with random signs (see :class:`Rounding`). So the tolerance follows
from the element type, the reduction lengths and the condition of this network on this input; the
factor 2 stands for two independent roundings of the same operators, the original's and the
rewritten model's. Where the original is much further from the yardstick than rounding explains
(``TRUSTED`` times), the yardstick is not used: then the two models may differ by 4 * movement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
"""Half the distance from 1 to the next number, by element type (IEEE 754; bfloat16: 8 bits)."""

FINITE_MAX = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float32": 3.4028234663852886e38,
    "float64": 1.7976931348623157e308,
}
"""Largest finite value by element type: beyond it an activation is Inf, and Inf * 0 is NaN."""

INFINITE = float("inf")

KINDS = ("normal", "uniform", "large", "tiny")
"""The seeded inputs that every check runs."""


TRUSTED = 8.0
"""Error of the original, in movements, up to which the float64 evaluation is the truth."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the operators of a model round: the standard model of floating-point arithmetic.

    Attributes:
        accumulate: unit roundoff u of a sum of products (float32's for the 16-bit types).
        store: unit roundoff of a stored result.
    """

    accumulate: float = UNIT_ROUNDOFF["float32"]
    store: float = UNIT_ROUNDOFF["float32"]

    @classmethod
    def of(cls, dtypes: Iterable[str]) -> Rounding:
        """The coarsest rounding of models with these element types."""
        units = [UNIT_ROUNDOFF[dtype] for dtype in dtypes] or [UNIT_ROUNDOFF["float32"]]
        return cls(max(min(u, UNIT_ROUNDOFF["float32"]) for u in units), max(units))

    def gamma(self, terms: int) -> float:
        """Bound on the error of a sum of ``terms`` products, relative to the sum of magnitudes.

        The deterministic bound grows with n, the one that holds with high probability with its
        root: min(n, 2 sqrt(n)) u (Higham and Mary 2019, A new approach to probabilistic rounding
        error analysis, theorem 2.4 with lambda = 2). Exact zeros round nothing and do not count.
        """
        return min(terms, 2 * terms**0.5) * self.accumulate


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of one run. Errors are largest absolute differences from the float64 truth.

    Attributes:
        output: the output's name.
        original: error of the original.
        rewritten: error of the rewritten model.
        difference: largest difference between the two.
        tolerance: what :attr:`measured` may be.
        scale: largest magnitude of the truth, to read the errors against.
        by: whether the error of the rewritten model is measured, or the difference.
        reason: why it failed for another cause than its error; empty otherwise.
    """

    output: str
    original: float
    rewritten: float
    difference: float
    tolerance: float
    scale: float
    by: Literal["error", "difference"] = "error"
    reason: str = ""

    @property
    def measured(self) -> float:
        """What is held against the tolerance; the tolerance that would have been needed."""
        return self.rewritten if self.by == "error" else self.difference

    @property
    def passed(self) -> bool:
        """Within a finite tolerance; never with a NaN."""
        return not self.reason and self.measured <= self.tolerance < float("inf")

    @property
    def telling(self) -> bool:
        """Whether a wrong result would have failed: an output of zeros must not pass."""
        return self.difference == 0 or self.tolerance < self.scale


@dataclass(frozen=True, slots=True)
class Case:
    """Both models on one input.

    Attributes:
        name: kind of the input, or its file.
        engine: what ran the two models.
        comparisons: one for each output; empty when the case could not be compared.
        skipped: why it could not be compared.
    """

    name: str
    engine: str
    comparisons: tuple[Comparison, ...] = ()
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """All that was observed.

    Attributes:
        cases: one for each input and engine.
        versions: the libraries that ran.
        warnings: lines that onnxruntime wrote as warnings or errors while it ran.
        seconds: wall time of the check.
        notes: anything a reader has to know: operators evaluated in float32, a check left out.
    """

    cases: tuple[Case, ...]
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    warnings: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def compared(self) -> list[tuple[Case, Comparison]]:
        """Every comparison with its case."""
        return [(case, comparison) for case in self.cases for comparison in case.comparisons]

    @property
    def verdict(self) -> Literal["passed", "failed", "not compared"]:
        """Passed only when all that was compared passed, and each output was told apart once."""
        if not all(c.passed for _, c in self.compared):
            return "failed"
        told = {c.output for _, c in self.compared if c.telling}
        return "passed" if told and told == {c.output for _, c in self.compared} else "not compared"

    @property
    def worst(self) -> tuple[Case, Comparison] | None:
        """The comparison that used most of its tolerance."""
        return max(self.compared, key=lambda pair: _used(pair[1]), default=None)


def _used(comparison: Comparison) -> float:
    if not comparison.passed:
        return float("inf")
    return comparison.measured / comparison.tolerance if comparison.tolerance else 0.0


def compare(
    output: str,
    original: Array,
    rewritten: Array,
    truth: Array,
    movement: float,
    slack: float = 0.0,
) -> Comparison:
    """Compares one output of both models with the float64 evaluation of the original.

    Args:
        output: its name.
        original: what the original gave, any dtype.
        rewritten: what the rewritten model gave; shape and dtype must be the same.
        truth: the float64 evaluation of the original.
        movement: how far the truth moves under the sites' rounding, see :func:`movement`.
        slack: error relative to the largest truth that is allowed besides.

    Elements that are not finite in the original are not compared, but where the original is
    finite the rewritten model has to be.
    """
    if original.shape != rewritten.shape or original.dtype != rewritten.dtype:
        reason = f"{_describe(original)} became {_describe(rewritten)}"
        return Comparison(output, 0.0, INFINITE, INFINITE, 0.0, 0.0, reason=reason)
    before, after, exact = (np.asarray(a, np.float64) for a in (original, rewritten, truth))
    finite = np.isfinite(before) & np.isfinite(exact)
    before, after, exact = before[finite], after[finite], exact[finite]
    spread = int((~np.isfinite(after)).sum())
    if spread:
        reason = f"{spread} of {finite.sum()} finite values became Inf or NaN"
        return Comparison(output, 0.0, INFINITE, INFINITE, 0.0, 0.0, reason=reason)
    scale, error = _largest(exact), _largest(before - exact)
    rounding = movement + slack * scale
    trusted = error <= TRUSTED * rounding
    return Comparison(
        output,
        error,
        _largest(after - exact),
        _largest(after - before),
        2 * (error + rounding) if trusted else 4 * rounding,
        scale,
        "error" if trusted else "difference",
    )


def movement(truth: Array, moved: Sequence[Array]) -> float:
    """Distance from the truth to its perturbed evaluations: the largest, or 3 root mean squares.

    An output of one or two elements may move little by chance; its mean square is steadier than
    its largest.
    """
    distances = np.array([np.asarray(m, np.float64) - truth for m in moved])
    rms = float(np.sqrt(np.mean(distances**2))) if distances.size else 0.0
    return max(_largest(distances), 3 * rms)


def _largest(values: Array) -> float:
    """Largest magnitude; inf where one is not a number, 0 for none."""
    largest = float(np.abs(values).max(initial=0.0))
    return float("inf") if np.isnan(largest) else largest


def _describe(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"


def make_input(kind: str, dtype: str, shape: Sequence[int], rng: np.random.Generator) -> Array:
    """A seeded input.

    Args:
        kind: one of :data:`KINDS`.
        dtype: a numpy dtype name; integers are drawn from {0, 1}, which suits ids, masks and
            lengths alike.
        shape: its shape.
        rng: where the randomness comes from.
    """
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if np.issubdtype(np.dtype(dtype), np.integer):
        return rng.integers(0, 2, shape).astype(dtype)
    values = rng.random(shape) if kind == "uniform" else rng.standard_normal(shape)
    magnitude = 4 if dtype == "float16" else 10
    exponent = {"large": magnitude, "tiny": -magnitude}.get(kind, 0)
    return (values * 2.0**exponent).astype(dtype)
