"""Clocks that give :func:`~dwr_rewrite.timing.measure_all` its samples: of a GPU, of a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count, cycle
from math import ceil
from typing import Any, Protocol

import torch

from dwr_rewrite.timing import DECISIVE, Repeated, Sampler, Timing, measure_all
from dwr_rewrite.timing.statistics import PER_ROUND

Turn = Callable[[int], object]
"""Runs something on the operands of this turn; a turn past the last set begins again."""

REPLAY = (0.5e-3, 50e-3)
"""Seconds that the calls of a replay take at least and at most, launched one by one. CUDA events
resolve 0.5 us (cudaEventElapsedTime). As many sets of operands as there are at most, launched in
100 us each, just go into the longest."""

LAUNCHES = 10
"""Calls between two events where launches are to be seen."""

PROBES = 3
"""Samples of each that tell how long a round takes."""


WITH_WARM_UP = 2.5
"""Time of a measurement, in times of its rounds: the warm-up takes half of it at most, and a
quarter more than the rounds is for samples that take longer than the first ones."""


class Stopwatch(Protocol):
    """What times calls on a device."""

    def running(self) -> AbstractContextManager[None]:
        """A context in which everything that is timed is made and run."""
        ...

    def once(self, run: Callable[[], object]) -> float:
        """Seconds of one run, from its first launch to its end."""
        ...

    def samplers(self, turns: Sequence[Turn], sets: int) -> list[Sampler]:
        """Samplers that all time alike, over turns 0 to ``sets`` - 1 and again.

        Raises:
            RuntimeError: one of them does not run.
        """
        ...


class ProcessorWatch:
    """``perf_counter`` around calls, repeated until they last long enough."""

    @contextmanager
    def running(self) -> Generator[None]:
        """Needs nothing."""
        yield

    def once(self, run: Callable[[], object]) -> float:
        """Seconds of one run."""
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def samplers(self, turns: Sequence[Turn], sets: int) -> list[Sampler]:
        """One for each."""
        return [Repeated(_in_turn(turn, sets)) for turn in turns]


class GpuWatch:
    """CUDA events around one replay of a graph, in which launches leave no gaps.

    Where something cannot be captured, all are timed as calls with their launches.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        """Makes the stream on which everything runs, and which is captured."""
        self.device = device
        self.stream = torch.cuda.Stream(device)

    @contextmanager
    def running(self) -> Generator[None]:
        """The stream is the current one; at the end it has nothing left to do."""
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            self.stream.wait_stream(torch.cuda.default_stream(self.device))
            try:
                yield
            finally:
                self.stream.synchronize()
                torch.cuda.empty_cache()  # the memory of graphs that are gone

    def once(self, run: Callable[[], object]) -> float:
        """Seconds of one run, between events."""
        return between_events(run)

    def samplers(self, turns: Sequence[Turn], sets: int) -> list[Sampler]:
        """One for each; all of them replay a graph, or none does."""
        counts = [_calls(turn, sets) for turn in turns]
        pool = torch.cuda.graph_pool_handle()  # one for all: no graph reads what another wrote
        try:
            graphs = [
                self._captured(turn, calls, pool) for turn, calls in zip(turns, counts, strict=True)
            ]
        except RuntimeError:
            torch.cuda.synchronize(self.device)  # raises if the device, and not the capture, failed
            return [with_launches(_in_turn(turn, sets)) for turn in turns]
        return [_replayed(graph, calls) for graph, calls in zip(graphs, counts, strict=True)]

    def _captured(self, turn: Turn, calls: int, pool: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self.stream):
            results = [turn(i) for i in range(calls)]  # alive: each has memory of its own
        del results
        return graph


def stopwatch(device: torch.device) -> Stopwatch:
    """The one for a device."""
    return GpuWatch(device) if device.type == "cuda" else ProcessorWatch()


def between_events(run: Callable[[], object]) -> float:
    """Seconds between CUDA events before and after a run, on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def with_launches(run: Callable[[], object]) -> Sampler:
    """Samples calls as they are launched one by one, with the gaps that launching leaves."""

    def several() -> None:
        for _ in range(LAUNCHES):
            run()

    return lambda: between_events(several) / LAUNCHES


def measure(samplers: Sequence[Sampler], seconds: float) -> tuple[Timing, ...]:
    """:func:`~dwr_rewrite.timing.measure_all`, for as long as a decision takes.

    Args:
        samplers: what is timed; the first is the reference.
        seconds: for warm-up and rounds; more, if the rounds that a decision needs take more.
    """
    began = time.perf_counter()
    for sampler in (*samplers, *samplers):
        sampler()
    budget = max(seconds, WITH_WARM_UP * DECISIVE * (time.perf_counter() - began))
    while True:
        timings = measure_all(samplers, budget=budget)
        if len(timings[0].samples) >= PER_ROUND * DECISIVE:
            return timings
        budget *= 2  # something else was running


def _in_turn(turn: Turn, sets: int) -> Callable[[], object]:
    turns = cycle(range(sets))
    return lambda: turn(next(turns))


def _replayed(graph: torch.cuda.CUDAGraph, calls: int) -> Sampler:
    return lambda: between_events(graph.replay) / calls


def _calls(turn: Turn, sets: int) -> int:
    """Calls of a replay: one for each set of operands, unless that is too short or too long.

    Run on its way, every call has chosen its algorithms before it is captured.
    """
    index = count()
    seconds = min(between_events(lambda: turn(next(index))) for _ in range(PROBES))
    fewest, most = (max(1, ceil(limit / seconds)) for limit in REPLAY)
    return min(max(sets, fewest), most)
