"""The only clock: how long two calls take, side by side, and how sure that is."""

from __future__ import annotations

from dwr_rewrite.timing.measure import Call, Clock, Repeated, Sampler, measure_all, measure_pair
from dwr_rewrite.timing.runtime import (
    Energy,
    FreeSetting,
    Measurement,
    Runtime,
    Speedup,
    Time,
    TrialResult,
)
from dwr_rewrite.timing.statistics import DECISIVE, Interval, Paired, Timing

__all__ = [
    "DECISIVE", "Call", "Clock", "Energy", "FreeSetting", "Interval", "Measurement", "Paired",
    "Repeated", "Runtime", "Sampler", "Speedup", "Time", "Timing", "TrialResult", "measure_all",
    "measure_pair",
]  # fmt: skip
