"""Trials of the whole model: the original beside what a plan makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from dwr_rewrite.passes.fx.tune.device import state
from dwr_rewrite.passes.fx.tune.settings import AS_GIVEN, Free
from dwr_rewrite.passes.fx.tune.whole import Run, Timer, energy, peak_memory
from dwr_rewrite.planner import Attempt, Plan
from dwr_rewrite.timing import (
    Energy,
    FreeSetting,
    Measurement,
    Paired,
    Runtime,
    Speedup,
    TrialResult,
)
from dwr_rewrite.tuning import Device


class Trial:
    """A :data:`~dwr_rewrite.planner.settle.Trial`: both models under the best free setting.

    What is faster there has to be faster as the model was given too: nobody has to follow advice
    for his model not to become slower.

    Args:
        original: as it was given; it is run.
        reference: the same under the setting.
        best: the free setting.
        ground: the setting of the rewritten model, which may have another layout besides.
        rewritten: makes the model of a plan, as users get it.
        timer: times runs side by side.
        seconds: for one timing.
    """

    def __init__(
        self, original: Run, reference: Run, best: Free, ground: Free,
        rewritten: Callable[[Plan], nn.Module], timer: Timer, seconds: float,
    ) -> None:  # fmt: skip
        """Nothing is timed yet."""
        self.original, self.reference = original, reference
        self.best, self.ground = best, ground
        self.rewritten, self.timer, self.seconds = rewritten, timer, seconds
        self.pairs: dict[str, Paired] = {}
        self.candidate = original

    def __call__(self, plan: Plan) -> Paired:
        """Times a plan; gives the pair that speaks against it, if one does."""
        given = Run(self.rewritten(plan), self.original.work)
        self.candidate = self.ground.of(given)
        pair = Paired(*self.timer([self.reference, self.candidate], self.seconds))
        self.pairs = {self._name: pair}
        if self.ground is AS_GIVEN or not pair.is_faster():
            return pair
        plainly = Paired(*self.timer([self.original, given], self.seconds))
        self.pairs[f"{self.original.work}, as given"] = plainly
        return pair if plainly.is_faster() else plainly

    @property
    def _name(self) -> str:
        return ", ".join(filter(None, (str(self.original.work), self.best.name)))

    def runtime(
        self, bench: Device, settings: Sequence[FreeSetting], attempts: Sequence[Attempt],
        device: torch.device,
    ) -> Runtime:  # fmt: skip
        """All that was timed.

        Args:
            bench: what the device is.
            settings: that were tried on the original.
            attempts: trials, in order; the last is the outcome.
            device: on which energy and memory are read.
        """
        accepted = bool(attempts) and attempts[-1].faster
        facts = {**bench.facts, **state(device)}
        return Runtime(
            str(bench),
            tuple(Measurement.of(name, pair) for name, pair in self.pairs.items()),
            self.best.name,
            tuple(settings),
            tuple(TrialResult(a.sites, Speedup.of(a.pair), a.faster) for a in attempts),
            self._energy(device) if accepted else None,
            facts | (self._memory(device) if accepted else {}),
        )

    def _energy(self, device: torch.device) -> Energy | None:
        return energy(self.reference, self.candidate, device)

    def _memory(self, device: torch.device) -> dict[str, str]:
        """What a run takes besides weights and inputs."""
        sides = {"original": self.reference, "rewritten": self.candidate}
        found = {side: peak_memory(run, device) for side, run in sides.items()}
        return {f"peak memory of a run, {side}": told for side, told in found.items() if told}
