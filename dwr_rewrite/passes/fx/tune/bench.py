"""Asks a torch device how long the forms of a convolution take."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import ceil, prod

import torch
from torch import Tensor

from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.lowerings import KEEP, is_kernel, lower
from dwr_rewrite.passes.fx.geometry import Form, entry
from dwr_rewrite.passes.fx.tune import device as devices
from dwr_rewrite.passes.fx.tune.check import Gate, poison
from dwr_rewrite.passes.fx.tune.clock import (
    PROBES,
    GpuWatch,
    Stopwatch,
    Turn,
    measure,
    stopwatch,
    with_launches,
)
from dwr_rewrite.passes.fx.tune.flags import precision
from dwr_rewrite.passes.fx.tune.forms import call_of
from dwr_rewrite.passes.fx.tune.operands import COLD, Operands, operands, sets_of
from dwr_rewrite.timing import Sampler, Timing
from dwr_rewrite.tuning import Answer, Device, Question
from dwr_rewrite.workload import Workload

SLOWEST = 2.0
"""Seconds that a single call may take; a form that takes longer is not measured."""

HOPELESS = 3.0
"""Times that a form may take as long as ``keep`` in its first samples; else it is not measured."""

LONG = 0.05
"""Seconds from which on a single call tells that: nobody's launches take as long."""

Build = Callable[[Workload, Form, Operands, int], Turn]
"""Makes the call of a form: workload, form, operands, copies of a stored weight."""


class TorchBench:
    """A :class:`~dwr_rewrite.tuning.Bench` of one torch device.

    A form is measured as the rewritten model runs it, after its result was compared with that of
    the depthwise convolution.

    Args:
        device: a CPU, or a CUDA device.
        seconds: for measuring one question; more, if the rounds of a decision take more.
        build: makes the calls.

    Attributes:
        device: what it is, with the flags that torch had when this was made.
    """

    def __init__(
        self, device: torch.device, *, seconds: float = 1.0, build: Build = call_of
    ) -> None:
        """Reads the facts of the device."""
        self.device: Device = devices.describe(device)
        self._where, self._seconds, self._build = device, seconds, build

    def measure(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Answers one by one."""
        for question in questions:
            yield self._answer(question)

    def _answer(self, question: Question) -> Answer:
        """All forms of one convolution.

        Raises:
            DwrError: the device itself failed.
        """
        watch, before = stopwatch(self._where), devices.state(self._where)
        with _alone(self._where, question.workload), watch.running():
            measurement = _Measurement(question, self._where, watch, self._build)
            timings = measurement.timings(self._seconds)
            return Answer(
                question.workload, timings, measurement.failures, before | measurement.launches()
            )


class _Measurement:
    """One question: forms drop out of it, for a reason, until those are left that are timed."""

    def __init__(
        self, question: Question, device: torch.device, watch: Stopwatch, build: Build
    ) -> None:
        self.question, self.device, self.watch, self.build = question, device, watch, build
        self.failures: dict[str, str] = {}
        self.turns: dict[str, Turn] = {}
        self.alone = 0.0
        self.sets = sets_of(question.workload, devices.cache_bytes(device))

    def timings(self, seconds: float) -> Mapping[str, Timing]:
        """Of the forms that are left at the end; none where ``keep`` is not among them."""
        with self._refusing(KEEP):
            given = operands(self.question.workload, self.sets, self.device)
            gate = Gate.of(self.question.workload, given)
            for form in self.question.forms:
                with self._refusing(form):
                    self.turns[form] = self._checked(form, given, gate)
        if KEEP in self.failures:
            return {}
        found: list[Sampler] = []
        with self._refusing(KEEP):
            found = self.watch.samplers([*self.turns.values()], self.sets)
        if KEEP in self.failures:
            return {}
        samplers = self._likely(dict(zip(self.turns, found, strict=True)))
        return dict(zip(samplers, measure([*samplers.values()], seconds), strict=True))

    def launches(self) -> dict[str, str]:
        """How long ``keep`` takes where it is launched call by call; on a GPU only."""
        if KEEP in self.failures or not isinstance(self.watch, GpuWatch):
            return {}
        sample = with_launches(lambda: self.turns[KEEP](0))
        return {"keep with its launches": f"{1e3 * min(sample() for _ in range(PROBES)):.4f} ms"}

    def _call(self, form: str, given: Operands) -> Turn:
        workload = self.question.workload
        recipe = lower(workload.spec, form, workload.direction)
        if isinstance(recipe, Rejection):
            raise ValueError(recipe.reason)  # noqa: TRY004  it fails as it would on the device
        size = prod(recipe.packing.packed) * workload.itemsize
        cold = ceil(COLD * devices.cache_bytes(self.device) / size)
        return self.build(workload, entry(recipe), given, min(self.sets, cold))

    def _checked(self, form: str, given: Operands, gate: Gate) -> Turn:
        turn = self._call(form, given)
        poison(gate.result, given.weight.dtype)
        result = turn(0)
        assert isinstance(result, Tensor)
        gate.check(result)
        seconds = self.watch.once(lambda: turn(1))
        if form == KEEP:
            self.alone = seconds
        if seconds > SLOWEST or seconds > max(LONG, HOPELESS * self.alone):
            raise _SlowError(f"one call takes {seconds:.2f} s, where keep takes {self.alone:.2f} s "
                             f"and {SLOWEST:g} s are the limit")  # fmt: skip
        return turn

    def _likely(self, samplers: Mapping[str, Sampler]) -> dict[str, Sampler]:
        """Without those that are far slower than ``keep``, which would take most of the time."""
        first = {form: min(sample() for _ in range(PROBES)) for form, sample in samplers.items()}
        found = dict(samplers)
        for form, seconds in first.items():
            times = seconds / first[KEEP]
            if times > HOPELESS:
                del found[form]
                self._refuse(form, _SlowError(f"its first samples took {times:.1f} times as long "
                                              f"as those of keep"))  # fmt: skip
        return found

    def _refuse(self, form: str, error: Exception) -> None:
        self.turns.pop(form, None)
        self.failures[form] = (str(error).splitlines() or [type(error).__name__])[0]

    @contextmanager
    def _refusing(self, form: str) -> Generator[None]:
        """What goes wrong in it is noted as the failure of a form.

        Raises:
            DwrError: the device itself failed: nothing that runs on it later can be believed.
        """
        try:
            yield
        except torch.AcceleratorError as error:
            raise DwrError(f"{form} of {self.question.workload.spec} broke the device: {error}; "
                           f"start the program again, without this form") from error  # fmt: skip
        except Exception as error:
            # What Triton raises where a kernel does not compile has no base of its own.
            if not (isinstance(error, RuntimeError | ValueError) or is_kernel(form)):
                raise
            self._refuse(form, error)


class _SlowError(RuntimeError):
    """A form takes too long to be measured."""


@contextmanager
def _alone(device: torch.device, workload: Workload) -> Generator[None]:
    """As in the rewritten model: no gradient is recorded here, and no autocast rounds again."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(precision(workload.tf32))
        yield
