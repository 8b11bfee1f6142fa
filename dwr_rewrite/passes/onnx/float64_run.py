"""What the operators of a model share while it is evaluated in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dwr_rewrite.equivalence.subject import Observe
from dwr_rewrite.equivalence.tolerance import Rounding
from dwr_rewrite.recipe import Array


@dataclass
class Run:
    """What the operators of a model share: sites, sessions, and the figures of the current run."""

    rounding: Rounding
    sites: frozenset[str]
    convolutions: set[str] = field(default_factory=set[str])
    sessions: dict[Any, Any] = field(default_factory=dict[Any, Any])
    perturb: np.random.Generator | None = None
    observe: Observe | None = None
    peak: dict[str, float] = field(default_factory=dict[str, float])
    single_precision: set[str] = field(default_factory=set[str])

    def begin(self, perturb: np.random.Generator | None, observe: Observe | None) -> None:
        """Forgets the figures of the run before."""
        self.perturb, self.observe = perturb, observe
        self.peak.clear()
        self.single_precision.clear()

    def moved(self, y: Array, bound: Array | float) -> Array:
        """``y``; in a perturbed run moved by ``bound`` with random signs."""
        if self.perturb is None:
            return y
        bits = np.frombuffer(self.perturb.bytes(-(-y.size // 8)), np.uint8)
        up = np.unpackbits(bits, count=y.size).reshape(y.shape).astype(bool)
        return np.where(up, y + bound, y - bound)


def magnitudes_of(total: Callable[..., Array], operands: Sequence[Any]) -> Array:
    """Sums of the magnitudes of the products of a convolution, to a few digits.

    In float32, which takes half the time; scaled, so that no product leaves its range.
    """
    x, weight, *added = operands
    scales = [float(np.max(np.abs(v), initial=0)) or 1.0 for v in (x, weight)]
    if not np.isfinite(scales).all():
        return total(*(None if v is None else np.abs(v) for v in operands))
    x, weight = (
        np.abs(v / scale, dtype=np.float32, casting="same_kind")
        for v, scale in zip((x, weight), scales, strict=True)
    )
    magnitude = total(x, weight, None, None).astype(np.float64) * (scales[0] * scales[1])
    bias, summand = added
    if bias is not None:
        magnitude += np.abs(bias).reshape(-1, *(1,) * (x.ndim - 2))
    return magnitude if summand is None else magnitude + np.abs(summand)
