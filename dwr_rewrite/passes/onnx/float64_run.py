"""What the operators of a model share while it is evaluated in float64."""

from __future__ import annotations

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
