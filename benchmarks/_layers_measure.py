"""One group: every way is checked first, then all that are right are timed together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from benchmarks._layers_calls import Call, call_of, runs_by
from benchmarks._layers_check import Reference, WrongError, poison, reference
from benchmarks._layers_clock import Clock, Effort, Sampler, interleave, warm
from benchmarks._layers_cudnn import (
    SameError,
    UnsupportedError,
    backend,
    forced_by,
    settings,
)
from benchmarks._layers_operands import TORCH_DTYPES, Operands, operands
from benchmarks._layers_rates import cache_bytes
from benchmarks._layers_work import Group, Way, ways
from benchmarks._run import TimeIsUpError, refusal, still_there
from dwr_rewrite.errors import DwrError
from dwr_rewrite.workload import Layout

Entry = dict[str, Any]
GAPS = 7
"""Rounds in which calls are also timed with their launches."""


class TooSlowError(Exception):
    """A call takes longer than a study can wait."""


@dataclass(frozen=True)
class Bench:
    """What a group is measured with.

    Attributes:
        device: where.
        clock: by what.
        effort: how long.
        rates: the ceilings of :func:`benchmarks._layers_rates.calibrate`.
        deadline: of ``time.monotonic()``.
    """

    device: torch.device
    clock: Clock
    effort: Effort
    rates: dict[str, float]
    deadline: float


@dataclass
class Timed:
    """A way that is right, ready to be sampled."""

    way: Way
    call: Call
    entry: Entry
    sampler: Sampler
    gaps: Sampler | None


@torch.no_grad()
def measure(group: Group, bench: Bench) -> list[Entry]:
    """An entry for every way: its samples, or the reason why there are none.

    Raises:
        TimeIsUpError: the deadline passed.
        DeviceLostError: the device failed for good.
    """
    bench.clock.start()
    if group.compiled:
        torch.compiler.reset()  # so that the limit on recompilations is never met
    session = _Session(group, bench)
    for way, other in ways(group).items():
        session.prepare(way, other)
    try:
        session.sample()
    except RuntimeError as error:
        session.take_back(error)
    return session.entries


class _Session:
    def __init__(self, group: Group, bench: Bench) -> None:
        self.group, self.bench = group, bench
        self.entries: list[Entry] = []
        self.timed: list[Timed] = []
        self.given: dict[Layout, Operands] = {}
        self.reference: Reference | None = None
        self.rotation = _rotation(group, bench)

    def prepare(self, way: Way, other: Way | None) -> None:
        self._in_time()
        entry = _entry(way)
        self.entries.append(entry)
        if other is not None:
            entry.update(status="same", same_as=other.name)
            return
        try:
            with settings(self.group.dtype, way.setting):
                timed = self._checked(way, entry)
            self.timed.append(timed)
        except (*_FAILURES, *_STATUS) as error:
            entry.update(_refusal(error, way))
            del error
            still_there(self.bench.device, self.entries)

    def _in_time(self) -> None:
        if time.monotonic() > self.bench.deadline:
            raise TimeIsUpError

    def _checked(self, way: Way, entry: Entry) -> Timed:
        self._possible(way)
        given, clock = self._operands(way.layout), self.bench.clock
        entry["backend"] = self._backend(way, given)
        if way.setting == "cudnn":
            entry["how"] = forced_by(self.group, given)
        call = call_of(self.group, way, given, self._stored(way))
        entry["first_s"] = float(f"{clock.once(call):.3g}")  # with what is compiled or chosen once
        self._check(call, given, entry)
        seconds = min(clock.once(call) for _ in range(2))
        if seconds > self.bench.effort.slowest:
            raise TooSlowError(f"one call took {seconds:.3g} s; {self._limit}")
        entry["calls"] = self.bench.effort.calls(seconds, self.rotation)
        sampler = clock.sampler(call, entry["calls"])
        return Timed(way, call, entry, sampler, clock.gaps(call, entry["calls"]))

    def _backend(self, way: Way, given: Operands) -> str:
        if way.is_kernel:
            return runs_by(self.bench.device)
        return backend(self.group, way.width, given)

    def _possible(self, way: Way) -> None:
        group = self.group
        if group.dtype == "tf32" and self.bench.device.type != "cuda":
            raise UnsupportedError("TF32 is a mode of CUDA devices")
        if way.layout == "channels_last" and len(group.layer.spatial) == 1:
            raise UnsupportedError("torch has no channels_last for one spatial axis")
        rate = self.bench.rates.get(group.dtype)
        least = group.layer.flops(group.batch, way.width) / rate if rate else 0.0
        if least > self.bench.effort.slowest:
            raise TooSlowError(
                f"at least {least:.3g} s a call at the measured matrix rate; {self._limit}"
            )

    @property
    def _limit(self) -> str:
        return f"{self.bench.effort.slowest:g} s is the limit"

    def _operands(self, layout: Layout) -> Operands:
        if layout not in self.given:
            self.given[layout] = operands(self.group, layout, self.rotation, self.bench.device)
        return self.given[layout]

    def _stored(self, way: Way) -> int:
        """Copies of a precomputed weight, so that the cache does not serve it either."""
        if not way.precomputed:
            return 1
        elements = self.group.layer.spec.taps * self.group.layer.spec.out_channels * way.width
        size = elements * TORCH_DTYPES[self.group.dtype].itemsize
        return min(ceil(2 * cache_bytes(self.bench.device) / size), self.rotation)

    def _check(self, call: Call, given: Operands, entry: Entry) -> None:
        if self.reference is None:
            self.reference = reference(self.group, given)
        poison(self.reference.result.to(given.weight.dtype))
        found = call(0)
        entry["error"] = float(f"{self.reference.check(found):.3g}")

    def sample(self) -> None:
        """Fills the entries of all ways that are right."""
        effort, samplers = self.bench.effort, [each.sampler for each in self.timed]
        for each in self.timed:
            self._in_time()
            each.entry["warm"], each.entry["stable"] = warm(each.sampler, effort.warm)
        replays = [each.sampler() * each.entry["calls"] / 1e6 for each in self.timed]
        samples = interleave(samplers, effort.count(replays))
        for each, found in zip(self.timed, samples, strict=True):
            each.entry.update(status="timed", us=[float(f"{value:.5g}") for value in found])
        self._sample_gaps()

    def take_back(self, error: RuntimeError) -> None:
        """No sample of a group is kept in which one failed: they are paired."""
        for each in self.timed:
            each.entry.update(_refusal(error, each.way))
            for name in ("us", "eager_us"):
                each.entry.pop(name, None)
        still_there(self.bench.device, self.entries)

    def _sample_gaps(self) -> None:
        launched = [each for each in self.timed if each.gaps is not None]
        for _ in range(min(GAPS, self.bench.effort.rounds[0])):
            for each in launched:
                assert each.gaps is not None
                with settings(self.group.dtype, each.way.setting):
                    value = float(f"{each.gaps():.5g}")
                each.entry.setdefault("eager_us", []).append(value)


def _rotation(group: Group, bench: Bench) -> int:
    """Sets of operands that together with their results are twice the cache."""
    size = TORCH_DTYPES[group.dtype].itemsize
    bytes_moved = group.layer.elements(group.batch) * size
    return min(ceil(2 * cache_bytes(bench.device) / bytes_moved), bench.effort.operands)


def _entry(way: Way) -> Entry:
    return {"way": way.name, "layout": way.layout, "form": way.form, "width": way.width,
            "setting": way.setting, "precomputed": way.precomputed}  # fmt: skip


try:
    from triton.errors import TritonError
except ImportError:
    _OF_TRITON = ()
else:
    _OF_TRITON = (TritonError,)  # what does not compile, or asks for more than a device has

_FAILURES = (RuntimeError, NotImplementedError, ValueError, DwrError, *_OF_TRITON)
"""What a way may raise that does not run here; the other ways go on."""

_STATUS = {
    SameError: "same", UnsupportedError: "unsupported", WrongError: "wrong",
    TooSlowError: "too slow", torch.OutOfMemoryError: "out of memory",
}  # fmt: skip


def _refusal(error: Exception, way: Way) -> Entry:
    found = refusal(error, _STATUS)
    if found["status"] == "same":
        return {"status": "same", "same_as": Way(way.layout, setting="benchmark").name}
    return found
