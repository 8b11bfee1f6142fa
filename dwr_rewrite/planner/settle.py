"""Never slower: a plan is taken back, site by site, until the whole model is faster with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dwr_rewrite.planner.plan import Plan
from dwr_rewrite.timing import Paired

Trial = Callable[[Plan], Paired]
"""Times the whole model: the original as the reference, the model with this plan as the other."""


@dataclass(frozen=True)
class Attempt:
    """One trial of the whole model.

    Attributes:
        sites: how many were rewritten.
        pair: the times.
        faster: whether that is faster by the margin, beyond doubt.
    """

    sites: int
    pair: Paired
    faster: bool


@dataclass(frozen=True)
class Settled:
    """What remained of a plan.

    Attributes:
        plan: the last that was tried; with no site in it if none was faster.
        attempts: all trials, in order.
    """

    plan: Plan
    attempts: tuple[Attempt, ...]


def settle(plan: Plan, trial: Trial, min_speedup: float) -> Settled:
    """Drops the least useful half of the sites until the whole model is faster, or none is left.

    A site that is faster alone may be slower in its model: an operator after it is no longer
    fused, a layout changes, the cache holds something else. Those that save most go last.

    Args:
        plan: what was chosen for the sites alone.
        trial: times the whole model with a plan.
        min_speedup: how many times faster it has to be.
    """
    attempts = list[Attempt]()
    while gains := plan.gains:
        pair = trial(plan)
        attempts.append(Attempt(len(gains), pair, pair.is_faster(min_speedup)))
        if attempts[-1].faster:
            break
        by_use = sorted(gains, key=lambda name: gains[name])
        plan = plan.without(by_use[: (len(by_use) + 1) // 2])
    return Settled(plan, tuple(attempts))
