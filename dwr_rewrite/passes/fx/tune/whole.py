"""Runs and times whole models: an inference or a training step, as the user says."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map_only

from dwr_rewrite import nvidia
from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.tune.clock import between_events, measure
from dwr_rewrite.passes.fx.tune.device import index_of
from dwr_rewrite.passes.fx.verify.sites import as_module
from dwr_rewrite.planner import format_bytes
from dwr_rewrite.timing import Energy, Repeated, Sampler, Timing

Model = nn.Module | ExportedProgram

Step = Callable[[nn.Module], object]
"""Runs a model once, as the user does: an inference, or a whole training step."""

Timer = Callable[[Sequence["Run"], float], tuple[Timing, ...]]
"""Times runs side by side, for so many seconds; the first is the reference."""

Setting = Callable[[], AbstractContextManager[Any]]
"""torch's flags for a run."""

ENERGY_SECONDS = 2.0
"""How long a model runs for its energy; the counter is updated about every 100 ms."""

COMPILED_VARIANTS = 256
"""How often one forward may be compiled: every trial compiles another model with the same code."""


@dataclass(frozen=True)
class Work:
    """What is run of a model.

    Attributes:
        inputs: positional arguments.
        named: keyword arguments.
        step: runs the model in place of the arguments; None for one that is made here.
        training: a step made here is forward, the mean squares of the outputs as the loss,
            backward, and SGD with a learning rate of 0, which changes no weight.
        compiled: the model is compiled by ``torch.compile`` first.
    """

    inputs: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict[str, Any])
    step: Step | None = None
    training: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        """For a person: ``training step, compiled``."""
        own = "training step" if self.training else "inference"
        return ("step" if self.step else own) + (", compiled" if self.compiled else "")

    def laid_out(self, layout: torch.memory_format) -> Work:
        """The same with inputs in another layout."""
        rank = 5 if layout is torch.channels_last_3d else 4

        def convert(tensor: Tensor) -> Tensor:
            return tensor.to(memory_format=layout) if tensor.dim() == rank else tensor

        inputs, named = tree_map_only(Tensor, convert, (self.inputs, self.named))
        return Work(inputs, named, self.step, self.training, self.compiled)


@dataclass(frozen=True)
class Run:
    """A model that runs, which may change it: it is a copy.

    Attributes:
        model: the module.
        work: what is run.
        setting: under which flags.
    """

    model: nn.Module
    work: Work
    setting: Setting = nullcontext

    def __call__(self) -> None:
        """Runs it once; a device that works on its own may not be done then."""
        with self.setting(), _recorded(self.work):
            self._step()

    def check(self) -> None:
        """Runs it once.

        Raises:
            DwrError: it does not run.
        """
        try:
            self()
        except DwrError:
            raise
        except Exception as error:
            what = "its step" if self.work.step is not None else "the example inputs"
            raise DwrError(f"{type(self.model).__name__} does not run on {what}: "
                           f"{first_line(error)}") from error  # fmt: skip

    @cached_property
    def _step(self) -> Callable[[], object]:
        work, model = self.work, self.model
        runs: Any = torch.compile(model) if work.compiled else model
        if work.step is not None:
            step = work.step
            return lambda: step(runs)
        if not work.training:
            return lambda: runs(*work.inputs, **work.named)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.0)
        return lambda: _train(runs, work, optimizer)


def _train(model: Any, work: Work, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    outputs = filter(_learns, tree_leaves(model(*work.inputs, **work.named)))
    losses = [y.float().square().mean() for y in outputs]
    if not losses:
        raise DwrError("no output of the model takes a gradient: give the training step as step=")
    torch.stack(losses).sum().backward()
    optimizer.step()


def _learns(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and value.is_floating_point()


@contextmanager
def _recorded(work: Work) -> Generator[None]:
    """Gradients are recorded in training, and as it pleases a step of the user."""
    if work.step is not None:
        yield
        return
    with torch.set_grad_enabled(work.training):
        yield


def runnable(model: Model) -> nn.Module:
    """What can be called."""
    return model if isinstance(model, nn.Module) else as_module(model)


def copied(model: Model) -> Any:
    """A copy, which may be run and changed.

    Raises:
        DwrError: the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # the old weight_norm keeps a tensor that torch does not copy
        raise DwrError(f"the model cannot be copied, which its trials need: {error}; name a form "
                       f"as the policy ('blocks:32'), with inplace=True") from error  # fmt: skip


def time_runs(runs: Sequence[Run], seconds: float) -> tuple[Timing, ...]:
    """Times runs side by side on the device that they are on: a :data:`Timer`.

    Args:
        runs: the first is the reference.
        seconds: for warm-up and rounds; more, if the rounds that a decision needs take more.
    """
    with _compiling():
        for run in runs:
            run()
        return measure([_sampler(run) for run in runs], seconds)


def _sampler(run: Run) -> Sampler:
    """Seconds from the first launch to the end of the last kernel."""
    tensors = (*run.model.parameters(), *run.model.buffers(), *tree_leaves(run.work.inputs))
    on_gpu = any(isinstance(t, Tensor) and t.device.type == "cuda" for t in tensors)
    return (lambda: between_events(run)) if on_gpu else Repeated(run)


@contextmanager
def _compiling() -> Generator[None]:
    """Lets ``torch.compile`` compile one code for many models, in place of giving up."""
    from torch._dynamo import config

    limit = {"recompile_limit": COMPILED_VARIANTS}
    with config.patch(limit | {"accumulated_recompile_limit": COMPILED_VARIANTS}):
        yield


def peak_memory(run: Run, device: torch.device) -> str:
    """What a run takes besides what is there before it; empty where the device does not tell."""
    if device.type != "cuda":
        return ""
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return format_bytes(torch.cuda.max_memory_allocated(device) - before)


def energy(reference: Run, candidate: Run, device: torch.device) -> Energy | None:
    """Joules of a run of each; None where the device does not count them."""
    if device.type != "cuda":
        return None
    found = [_joules(run, device) for run in (reference, candidate)]
    if found[0] is None or found[1] is None:
        return None
    return Energy(found[0], found[1], nvidia.ENERGY_METHOD)


def _joules(run: Run, device: torch.device) -> float | None:
    torch.cuda.synchronize(device)
    before, began, count = nvidia.joules(index_of(device)), time.perf_counter(), 0
    while time.perf_counter() - began < ENERGY_SECONDS:
        run()
        torch.cuda.synchronize(device)
        count += 1
    after = nvidia.joules(index_of(device))
    return None if before is None or after is None else (after - before) / count
