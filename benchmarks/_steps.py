"""Whole models as they are run and trained, and what samples them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._layers_cudnn import settings
from benchmarks._layers_work import DType
from dwr_rewrite.passes.fx.tune.clock import between_events
from dwr_rewrite.timing import Call, Repeated, Sampler
from dwr_rewrite.workload import Layout

CAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types that autocast computes convolutions in; float32 runs without it."""

FORMATS: dict[Layout, torch.memory_format] = {
    "nchw": torch.contiguous_format, "channels_last": torch.channels_last,
}  # fmt: skip


def sampler(call: Call, device: torch.device) -> Sampler:
    """Seconds of one call with its launches: between CUDA events, or by perf_counter on a CPU."""
    return partial(between_events, call) if device.type == "cuda" else Repeated(call)


def clock_name(device: torch.device) -> str:
    if device.type == "cuda":
        return "calls with their launches between CUDA events"
    return "calls by perf_counter, on a CPU: not the target"


def cast(dtype: DType, device: torch.device) -> torch.autocast:
    """Autocast to 16-bit types; nothing for float32."""
    return torch.autocast(device.type, CAST.get(dtype), dtype in CAST)


@contextlib.contextmanager
def numbers(dtype: DType, setting: str, device: torch.device) -> Generator[None]:
    """torch's switches and autocast, as a way has them."""
    with settings(dtype, setting), cast(dtype, device):
        yield


def laid_out(value: Any, layout: Layout) -> Any:
    """A module or tensor in a layout; only what has four axes changes."""
    if isinstance(value, nn.Module):
        return value.to(memory_format=FORMATS[layout])
    return value.contiguous(memory_format=FORMATS[layout]) if value.dim() == 4 else value


class Training:
    """Steps of SGD (momentum 0.9, rate 0.01) on one batch that stays on the device.

    The loss is the cross entropy. Switches hold for the whole step, autocast for the forward and
    the loss. float16 runs with a GradScaler, as it is trained.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, labels: Tensor, dtype: DType, setting: str
    ) -> None:
        self.model, self.x, self.labels = model, x, labels
        self.flags = partial(settings, dtype, setting)
        self.cast = partial(cast, dtype, x.device)
        wanted = [each for each in model.parameters() if each.requires_grad]
        self.optimizer = torch.optim.SGD(wanted, 0.01, 0.9)
        self.scaler = torch.amp.GradScaler(x.device.type, enabled=dtype == "fp16")

    def __call__(self) -> Tensor:
        with self.flags():
            self.optimizer.zero_grad(set_to_none=True)
            with self.cast():
                loss = F.cross_entropy(self.model(self.x), self.labels)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return loss.detach()

    def on(self, model: nn.Module) -> Tensor:
        """A step of this training, for what times models; the model is always its own."""
        assert model is self.model
        return self()

    @property
    def state_bytes(self) -> int:
        """Parameters, buffers and the optimizer's own tensors; gradients are made in each step."""
        moments = [value for each in self.optimizer.state.values() for value in each.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *moments]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def peak_bytes(step: Training, device: torch.device) -> int | None:
    """State, and the most that a step allocates beside it; None where torch does not count."""
    if device.type != "cuda":
        return None
    step.optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    found = torch.cuda.max_memory_allocated() - before
    step.optimizer.zero_grad(set_to_none=True)
    return step.state_bytes + found
