"""What only a GPU runs, on a stand-in for torch.cuda with a clock of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dwr_rewrite import nvidia
from dwr_rewrite.passes.fx.tune import device as devices
from dwr_rewrite.passes.fx.tune import whole
from dwr_rewrite.passes.fx.tune.clock import GpuWatch, with_launches
from dwr_rewrite.passes.fx.tune.flags import precision
from dwr_rewrite.passes.fx.tune.places import is_here
from dwr_rewrite.passes.fx.tune.settings import possible
from dwr_rewrite.passes.fx.tune.whole import Run, Work
from tests.passes.fx.tuning import image

GPU = torch.device("cuda", 0)
KERNEL, LAUNCH = 10e-6, 90e-6


class Cuda:
    """Kernels take 10 us; launched one by one, 90 us pass before each."""

    def __init__(self) -> None:
        self.now, self.captured = 0.0, None
        self.refuses: set[int] = set()
        self.broken = False

    def launch(self, kernel: int) -> None:
        if self.captured is None:
            self.now += LAUNCH + KERNEL
            return
        if kernel in self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured.append(kernel)

    def put_in_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = cuda.now

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                return 1e3 * (end.at - self.at)

        class CUDAGraph:
            def __init__(self) -> None:
                self.kernels: list[int] = []

            def replay(self) -> None:
                cuda.now += KERNEL * len(self.kernels)

        @contextmanager
        def graph(into: CUDAGraph, pool: Any, stream: Any) -> Iterator[None]:
            cuda.captured = into.kernels
            try:
                yield
            finally:
                cuda.captured = None

        def synchronize(_: Any = None) -> None:
            if cuda.broken:
                raise torch.AcceleratorError("CUDA error: unspecified launch failure")

        stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)
        for name, value in {
            "Event": Event, "CUDAGraph": CUDAGraph, "graph": graph, "synchronize": synchronize,
            "Stream": lambda _: stream, "stream": lambda _: nullcontext(),
            "device": lambda _: nullcontext(), "default_stream": lambda _: None,
            "graph_pool_handle": lambda: (0, 1), "empty_cache": lambda: None,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    found = Cuda()
    found.put_in_place(monkeypatch)
    return found


def test_a_graph_has_no_gaps(cuda: Cuda) -> None:
    watch = GpuWatch(GPU)
    with watch.running():
        one, two = watch.samplers([cuda.launch, lambda i: (cuda.launch(i), cuda.launch(i))], 3)
        assert [one(), two()] == pytest.approx([KERNEL, 2 * KERNEL])
        assert watch.once(lambda: cuda.launch(0)) == pytest.approx(LAUNCH + KERNEL)
        assert with_launches(lambda: cuda.launch(0))() == pytest.approx(LAUNCH + KERNEL)


@pytest.mark.parametrize(("sets", "calls"), [(3, 5), (20, 20), (512, 500)])
def test_a_replay_turns_over_all_operands_within_its_time(
    cuda: Cuda, sets: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []
    made = torch.cuda.CUDAGraph
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(made()) or graphs[-1])
    GpuWatch(GPU).samplers([cuda.launch], sets)
    assert graphs[0].kernels == [*range(calls)]


def test_where_one_is_not_captured_all_are_timed_alike(cuda: Cuda) -> None:
    cuda.refuses = {107}
    samplers = GpuWatch(GPU).samplers([cuda.launch, lambda i: cuda.launch(i + 100)], 10)
    assert [sampler() for sampler in samplers] == pytest.approx([LAUNCH + KERNEL] * 2)


def test_a_broken_device_is_no_capture_that_failed(cuda: Cuda) -> None:
    cuda.refuses, cuda.broken = {0}, True
    with pytest.raises(torch.AcceleratorError, match="unspecified launch failure"):
        GpuWatch(GPU).samplers([cuda.launch], 2)


def test_energy_is_that_of_one_run(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    power = {"runs": 0}

    class Burns(nn.Module):
        def __init__(self, joules: int) -> None:
            super().__init__()
            self.joules = joules

        def forward(self) -> None:
            power["runs"] += self.joules

    monkeypatch.setattr(whole, "ENERGY_SECONDS", 0.01)
    monkeypatch.setattr(nvidia, "joules", lambda index: float(power["runs"]))
    found = whole.energy(Run(Burns(3), Work()), Run(Burns(2), Work()), GPU)
    assert (found.reference, found.candidate) == (3.0, 2.0)
    monkeypatch.setattr(nvidia, "joules", lambda index: None)
    assert whole.energy(Run(Burns(3), Work()), Run(Burns(2), Work()), GPU) is None


def test_peak_memory_is_above_what_was_there(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1 << 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 << 20)
    assert whole.peak_memory(Run(nn.Identity(), Work((0,))), GPU) == "2.0 MiB"
    assert whole.peak_memory(Run(nn.Identity(), Work((0,))), torch.device("cpu")) == ""


def test_facts_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, L2_cache_size=50 << 20
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: properties.name)
    monkeypatch.setattr(nvidia, "driver_version", lambda: "580.82.07")
    device = devices.describe(GPU)
    assert str(device) == "NVIDIA H200 (torch)"
    assert (device.facts["capability"], device.facts["driver"]) == ("9.0", "580.82.07")
    assert devices.cache_bytes(GPU) == 50 << 20
    monkeypatch.setattr(nvidia, "state", lambda index: {"SM clock": f"{index} MHz"})
    assert devices.state(GPU) == {"SM clock": "0 MHz"}
    assert all(is_here(GPU, name) for name in ("H200", "nvidia-h200", "cuda", "gpu"))
    assert not any(is_here(GPU, name) for name in ("H100", "cpu"))


def test_free_settings_of_a_gpu() -> None:
    run = Run(nn.Sequential(nn.Conv2d(4, 4, 3)).eval(), Work((image(4),)))
    found = {free.name: free for free in possible(run, GPU)}
    assert list(found) == [
        "channels_last", "cudnn.benchmark", "channels_last, cudnn.benchmark",
        "cudnn.depthwise_kernel", "TF32", "autocast float16", "autocast bfloat16",
    ]  # fmt: skip
    alike = [name for name, free in found.items() if free.rounds_alike]
    assert alike == [*found][:4]
    before = torch.backends.cudnn.benchmark
    with found["channels_last, cudnn.benchmark"].of(run).setting():
        assert torch.backends.cudnn.benchmark
        assert "cudnn.benchmark" not in [free.name for free in possible(run, GPU)]
    assert torch.backends.cudnn.benchmark is before
    with found["cudnn.depthwise_kernel"].setting():
        assert torch.backends.cudnn.depthwise_kernel == "cudnn"
    with precision(tf32=True, products=True):
        assert "TF32" not in [free.name for free in possible(run, GPU)]
    both = found["channels_last, cudnn.benchmark"].of(run)
    assert both.work.inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert both.model is not run.model
    assert "model.to(" in found["channels_last, cudnn.benchmark"].how
