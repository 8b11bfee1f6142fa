"""The only clock: how long two calls take, side by side, and how sure that is."""

from __future__ import annotations

from dwr_rewrite.timing.measure import Call, Clock, measure_pair
from dwr_rewrite.timing.runtime import Measurement, Runtime, Time
from dwr_rewrite.timing.statistics import DECISIVE, Interval, Paired, Timing

__all__ = [
    "DECISIVE", "Call", "Clock", "Interval", "Measurement", "Paired", "Runtime", "Time", "Timing",
    "measure_pair",
]  # fmt: skip
