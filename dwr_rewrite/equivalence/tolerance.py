"""How far off a right result may be.

The yardstick is a float64 evaluation of the reference, with which both models are compared. The
candidate may be off by

    tolerance = 2 * (error of the reference + movement)

where *movement* is how far the float64 outputs move when every operator's result is moved by a
bound on its own rounding error, with random signs (see :class:`Rounding`). So the tolerance follows
from the element type, the reduction lengths and the condition of this network on this input; the
factor 2 stands for two independent roundings of the same operators, the reference's and the
candidate's. Where the reference is much further from the yardstick than rounding explains
(``TRUSTED`` times), the yardstick is not used: then the two models may differ by 4 * movement.

A bound on every rounding is loose, often a hundred times the error. So the candidate's error, taken
over all inputs, must also stay within ``FACTOR`` times the reference's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dwr_rewrite.equivalence.statistics import Array, largest, rms

UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
"""Half the distance from 1 to the next number, by element type (IEEE 754; bfloat16: 8 bits)."""

FINITE_MAX = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float32": 3.4028234663852886e38,
    "float64": 1.7976931348623157e308,
}
"""Largest finite value by element type: beyond it an activation is Inf, and Inf * 0 is NaN."""

SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126,
                   "float64": 2.0**-1022}  # fmt: skip
"""Below it a type rounds by absolute steps, and some kernels flush to zero."""

TF32 = 2.0**-11
"""Unit roundoff of a TF32 operand: 10 stored bits of mantissa."""

WINOGRAD = 5.61
"""How much more Winograd's F(4, 3) rounds than a sum of three products, along each axis.

Root mean square over independent data, at the worst of the four outputs of a tile, with the
transforms of Lavin and Gray 2016 (points 0, 1, -1, 2, -2, infinity):
max over rows r of sqrt(sum_i A_ri^2 |G_i|^2 |B_i|^2 / 3).
"""

TRUSTED = 8.0
"""Error of the reference, in movements, up to which the float64 evaluation is the truth."""

FACTOR = 8.0
"""What the candidate's error may be of the reference's, both root mean squares over all inputs.

Two roundings of one function differ by luck. For n inputs with independent errors the squared ratio
follows F(n, n): of honest pairs one in 1,400 has a ratio above 8 at n = 4, one in 530,000 at n = 8.
"""

FACTOR_NEEDS = 4
"""Inputs below which the ratio is reported and decides nothing."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the operators of a model round: the standard model of floating-point arithmetic.

    Attributes:
        accumulate: unit roundoff u of a sum of products (float32's for the 16-bit types).
        store: unit roundoff of a stored result.
        multiply: unit roundoff of the operands of a product: :data:`TF32` where that is on.
        winograd: whether 3x3 convolutions of stride 1 may be computed by Winograd's algorithm.
        underflow: what a stored result may lose besides, in absolute terms.
    """

    accumulate: float = UNIT_ROUNDOFF["float32"]
    store: float = UNIT_ROUNDOFF["float32"]
    multiply: float = 0.0
    winograd: bool = False
    underflow: float = SMALLEST_NORMAL["float32"]

    @classmethod
    def of(cls, dtypes: Iterable[str]) -> Rounding:
        """The coarsest rounding of models with these element types."""
        names = sorted(dtypes) or ["float32"]
        units = [UNIT_ROUNDOFF[name] for name in names]
        return cls(
            max(min(unit, UNIT_ROUNDOFF["float32"]) for unit in units),
            max(units),
            underflow=max(SMALLEST_NORMAL[name] for name in names),
        )

    def coarser(self, other: Rounding) -> Rounding:
        """What covers both."""
        return Rounding(
            max(self.accumulate, other.accumulate), max(self.store, other.store),
            max(self.multiply, other.multiply), self.winograd or other.winograd,
            max(self.underflow, other.underflow),
        )  # fmt: skip

    def on_gpu(self, *, tf32: bool) -> Rounding:
        """The same models where cuDNN chooses the algorithm."""
        return replace(self, multiply=TF32 if tf32 else 0.0, winograd=True)

    def gamma(self, terms: int) -> float:
        """Bound on the error of a sum of ``terms`` products, relative to the sum of magnitudes.

        The deterministic bound grows with n, the one that holds with high probability with its
        root: min(n, 2 sqrt(n)) u (Higham and Mary 2019, A new approach to probabilistic rounding
        error analysis, theorem 2.4 with lambda = 2). Exact zeros round nothing and do not count.
        """
        return min(terms, 2 * terms**0.5) * self.accumulate + 2 * self.multiply

    def convolution(
        self, terms: int, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
    ) -> float:
        """:meth:`gamma` of a convolution, which Winograd's algorithm may compute."""
        plain = set(kernel) == {3} and {*stride, *dilation} == {1}
        gain = WINOGRAD ** len(kernel) if self.winograd and plain else 1.0
        return self.gamma(terms) * gain

    def of_sum(self, magnitude: Array, terms: int, relative: float | None = None) -> Array:
        """Bound on the rounding error of sums of products.

        Args:
            magnitude: sums of the products' magnitudes.
            terms: how many products.
            relative: error relative to the magnitude; :meth:`gamma` by default.

        A product that underflows is lost as a whole, and no more than that.
        """
        lost = terms * min(self.underflow, SMALLEST_NORMAL["float32"])
        bound = (self.gamma(terms) if relative is None else relative) * magnitude
        return np.maximum(bound, np.minimum(magnitude, lost))

    def of_result(self, result: Array) -> Array:
        """Bound on the rounding error of stored results; one that underflows may become zero."""
        magnitude = np.abs(result)
        return np.maximum(self.store * magnitude, np.minimum(magnitude, self.underflow))


def movement(truth: Array, moved: Sequence[Array]) -> float:
    """Distance from the truth to its perturbed evaluations: the largest, or 3 root mean squares.

    An output of one or two elements may move little by chance; its mean square is steadier than
    its largest.

    Args:
        truth: the float64 evaluation; elements that are not finite do not count.
        moved: perturbed evaluations.

    Returns:
        Infinity where rounding makes a finite value Inf or NaN, or changes the shape.
    """
    exact = np.asarray(truth, np.float64)
    if any(np.shape(array) != exact.shape for array in moved):
        return float("inf")
    finite = np.isfinite(exact)
    distances = [np.abs(np.asarray(array, np.float64)[finite] - exact[finite]) for array in moved]
    return max([3 * rms(np.array([*map(rms, distances)])), *map(largest, distances)])
