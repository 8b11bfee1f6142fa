"""The child process of a timing: ``python -m dwr_rewrite.passes.onnx.runtime_worker FOLDER``."""

from __future__ import annotations

import time

from dwr_rewrite import nvidia
from dwr_rewrite.passes.onnx.child import serve, tell
from dwr_rewrite.passes.onnx.device import describe, state_of
from dwr_rewrite.passes.onnx.loading import Loader
from dwr_rewrite.passes.onnx.provider import Provider
from dwr_rewrite.passes.onnx.providers import choose
from dwr_rewrite.passes.onnx.runtime import RuntimeJob, RuntimeResult
from dwr_rewrite.timing import Call, Energy, measure_pair

ENERGY_SECONDS = 2.0
"""That each model runs for its energy: the counter of NVML moves about every 0.1 s."""


def measure(job: RuntimeJob) -> RuntimeResult:
    """The times of a job.

    Raises:
        DwrError: there are none, for the reason it says.
    """
    tell("choosing the device")
    provider = choose(job.provider, job.options)
    loader = Loader(provider, job.settings)
    reference, feeds = loader.first(job.reference)
    tell(f"loading the candidate on {provider.name}")
    candidate = loader.load("candidate", job.candidate, feeds)
    tell("timing both models")
    pair = measure_pair(reference, candidate, budget=job.budget)
    return RuntimeResult(
        pair, describe(provider, job.provider is not None), provider,
        {name: array.shape for name, array in feeds.items()}, state_of(provider),
        _energy(provider, reference, candidate),
    )  # fmt: skip


def _energy(provider: Provider, reference: Call, candidate: Call) -> Energy | None:
    """What a run of each takes, where the device counts it."""
    if provider.memory != "cuda" or nvidia.joules(provider.device_id) is None:
        return None
    tell("measuring the energy of both models")
    taken, candidates = (joules_of(call, provider.device_id) for call in (reference, candidate))
    return Energy(taken, candidates, nvidia.ENERGY_METHOD)


def joules_of(call: Call, device_id: int) -> float:
    """Joules of one run."""
    began, before, runs = time.perf_counter(), nvidia.joules(device_id) or 0.0, 0
    while time.perf_counter() - began < ENERGY_SECONDS:
        call()
        runs += 1
    return ((nvidia.joules(device_id) or 0.0) - before) / runs


if __name__ == "__main__":
    serve(measure)
