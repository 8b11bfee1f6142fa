"""The clocks: CUDA graphs between events, or the processor's time where there is no GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import torch

from benchmarks._layers_calls import Call
from dwr_rewrite.passes.fx.tune.clock import between_events
from dwr_rewrite.timing import DECISIVE
from dwr_rewrite.timing.measure import turns
from dwr_rewrite.timing.statistics import PER_ROUND

Sampler = Callable[[], float]
"""Microseconds per call, over one replay."""


@dataclass(frozen=True)
class Effort:
    """How long a group is measured.

    Attributes:
        rounds: fewest and most rounds; a round takes two samples of every way, and with fewer than
            twelve nothing is decided (`dwr_rewrite.timing`).
        seconds: what all rounds may take together, if the fewest allow it.
        replay: seconds that one sample should take at least and at most.
        warm: most replays before the first sample.
        slowest: seconds; a call that takes longer is not timed.
        operands: most sets of operands in a rotation.
    """

    rounds: tuple[int, int] = (DECISIVE, 25)
    seconds: float = 2.0
    replay: tuple[float, float] = (0.5e-3, 5e-3)
    warm: int = 30
    slowest: float = 0.1
    operands: int = 512

    def calls(self, seconds: float, rotation: int) -> int:
        """Calls of a replay: the rotation of the operands, unless that is too short or long."""
        fewest, most = (max(1, ceil(limit / seconds)) for limit in self.replay)
        return min(max(rotation, fewest), most)

    def count(self, replays: Sequence[float]) -> int:
        """Rounds, from the seconds that one replay of each way takes."""
        of_a_round = max(PER_ROUND * sum(replays), 1e-9)
        return min(max(int(self.seconds / of_a_round), self.rounds[0]), self.rounds[1])


QUICK = Effort((3, 3), 0.2, (1e-6, 1e-4), warm=6, slowest=5.0, operands=8)


class Clock(Protocol):
    """``replayed``: what the samples are of; ``gaps`` samples calls with their launches."""

    replayed: str

    def start(self) -> None:
        """Begins a group; nothing that was sampled before is sampled again."""
        ...

    def once(self, call: Call) -> float:
        """Seconds of one call, launch included."""
        ...

    def sampler(self, call: Call, calls: int) -> Sampler: ...

    def gaps(self, call: Call, calls: int) -> Sampler | None: ...


class ProcessorClock:
    """Wall time on a CPU, which is not the target."""

    replayed = "calls in turn by perf_counter, on a CPU: not the target"

    def start(self) -> None:
        pass

    def once(self, call: Call) -> float:
        start = time.perf_counter()
        call(0)
        return time.perf_counter() - start

    def sampler(self, call: Call, calls: int) -> Sampler:
        def sample() -> float:
            start = time.perf_counter()
            for i in range(calls):
                call(i)
            return (time.perf_counter() - start) / calls * 1e6

        return sample

    def gaps(self, call: Call, calls: int) -> Sampler | None:
        return None  # nothing is launched


class GraphClock:
    """Events around one replay of a CUDA graph, so that launches leave no gaps.

    All work of the study runs on one stream, which is the one that is captured.
    """

    replayed = "replays of a CUDA graph between CUDA events"

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        torch.cuda.set_stream(self.stream)
        self.start()

    def start(self) -> None:
        torch.cuda.empty_cache()
        self.pool = torch.cuda.graph_pool_handle()  # one for all graphs: none reads another's

    def once(self, call: Call) -> float:
        return between_events(lambda: call(0))

    def sampler(self, call: Call, calls: int) -> Sampler:
        for i in range(calls):  # every algorithm is chosen before the capture
            call(i)
        torch.cuda.synchronize()
        graph = self._captured(call, calls)
        return lambda: between_events(graph.replay) / calls * 1e6

    def _captured(self, call: Call, calls: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                results = [call(i) for i in range(calls)]  # alive: each has memory of its own
            del results
        except RuntimeError:
            del graph
            self.start()  # a pool that a failed capture began is not used again
            raise
        return graph

    def gaps(self, call: Call, calls: int) -> Sampler | None:
        few = min(calls, 10)

        def run() -> None:
            for i in range(few):
                call(i)

        return lambda: between_events(run) / few * 1e6


def clock_of(device: torch.device) -> Clock:
    return GraphClock() if device.type == "cuda" else ProcessorClock()


def warm(sample: Sampler, most: int) -> tuple[int, bool]:
    """Replays until the medians of the last three and of the three before agree within 2 %.

    Returns:
        How many replays, and whether they became stable.
    """
    recent: list[float] = []
    while len(recent) < most:
        recent.append(sample())
        if len(recent) >= 6:
            before, now = statistics.median(recent[-6:-3]), statistics.median(recent[-3:])
            if abs(now - before) <= 0.02 * before:
                return len(recent), True
    return len(recent), False


def interleave(samplers: Sequence[Sampler], rounds: int) -> list[list[float]]:
    """Rounds of ABCCBA: what changes with time meets all alike. One list for each sampler."""
    samples: list[list[float]] = [[] for _ in samplers]
    for _ in range(rounds):
        for index in turns(len(samplers)):
            samples[index].append(samplers[index]())
    return samples
