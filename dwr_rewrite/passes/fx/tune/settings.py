"""Settings of torch that make the original faster for nothing, measured before any rewrite."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.passes.fx.tune.flags import allows_tf32, flag, precision
from dwr_rewrite.passes.fx.tune.whole import Run, Setting, Timer
from dwr_rewrite.timing import FreeSetting, Paired, Speedup

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The other layout of images and of volumes, by the number of axes."""


@dataclass(frozen=True)
class Free:
    """A setting that can be tried.

    Attributes:
        name: short.
        how: code that the user writes.
        rounds_alike: it leaves the precision of every product as it was.
        setting: flags for a run.
        layout: in which the model and its inputs are laid out anew; None for as they are.
    """

    name: str
    how: str
    rounds_alike: bool = True
    setting: Setting = nullcontext
    layout: torch.memory_format | None = None

    def of(self, run: Run) -> Run:
        """The same run under this setting, on a copy where the model has to change."""
        setting = partial(_both, run.setting, self.setting)
        if self.layout is None:
            return replace(run, setting=setting)
        model: Any = copy.deepcopy(run.model)
        model.to(memory_format=self.layout)
        return Run(model, run.work.laid_out(self.layout), setting)


AS_GIVEN = Free("", "")
"""No setting."""


def try_settings(
    run: Run, device: torch.device, timer: Timer, seconds: float
) -> tuple[list[FreeSetting], Free]:
    """Measures what is free.

    Args:
        run: the original as it was given.
        device: that it is on.
        timer: times runs side by side.
        seconds: for all of them together.

    Returns:
        Every setting that was tried, and the fastest that rounds alike: :data:`AS_GIVEN` if none is
        faster beyond doubt.
    """
    tried: list[tuple[Free, Run | None, str]] = []
    for free in possible(run, device):
        try:
            changed = free.of(run)
            changed()
        except Exception as error:  # noqa: BLE001  whatever it is, this setting is not to be had
            tried.append((free, None, first_line(error)))
        else:
            tried.append((free, changed, ""))
    ran = [(free, changed) for free, changed, _ in tried if changed is not None]
    if not ran:
        return [_told(free, None, failure) for free, _, failure in tried], AS_GIVEN
    reference, *timings = timer([run, *(changed for _, changed in ran)], seconds)
    pairs = {f.name: Paired(reference, t) for (f, _), t in zip(ran, timings, strict=True)}
    told = [_told(free, pairs.get(free.name), failure) for free, _, failure in tried]
    alike = [free for free, _ in ran if free.rounds_alike and pairs[free.name].is_faster()]
    return told, min(alike, key=lambda free: pairs[free.name].ratio, default=AS_GIVEN)


def possible(run: Run, device: torch.device) -> Iterator[Free]:
    """The settings that a model does not have yet, and that the device knows.

    With ``torch.compile`` only those that round alike: each of the others compiles it once more.
    """
    for free in _gpu(run) if device.type == "cuda" else _cpu(run):
        if free.rounds_alike or not run.work.compiled:
            yield free


def _cpu(run: Run) -> Iterator[Free]:
    yield from laid_out(run)
    yield _autocast("cpu", "bfloat16")


def _gpu(run: Run) -> Iterator[Free]:
    cudnn = torch.backends.cudnn
    layouts = [*laid_out(run)]
    yield from layouts
    if not cudnn.benchmark:
        search = Free(
            "cudnn.benchmark", "torch.backends.cudnn.benchmark = True",
            setting=partial(flag, cudnn, "benchmark", value=True),
        )  # fmt: skip
        yield search
        for layout in layouts:
            names = f"{layout.name}, {search.name}"
            yield replace(
                layout, name=names, how=f"{layout.how}; {search.how}", setting=search.setting
            )
    if getattr(cudnn, "depthwise_kernel", "cudnn") == "auto":
        yield Free(
            "cudnn.depthwise_kernel", "torch.backends.cudnn.depthwise_kernel = 'cudnn'",
            setting=partial(flag, cudnn, "depthwise_kernel", value="cudnn"),
        )  # fmt: skip
    if not (allows_tf32() and torch.backends.cuda.matmul.fp32_precision == "tf32"):
        yield Free(
            "TF32", "torch.backends.cudnn.conv.fp32_precision = 'tf32'; "
            "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
            rounds_alike=False, setting=partial(precision, tf32=True, products=True),
        )  # fmt: skip
    yield _autocast("cuda", "float16")
    yield _autocast("cuda", "bfloat16")


def laid_out(run: Run) -> Iterator[Free]:
    """channels_last, for a model that convolves images or volumes in another layout.

    ``Module.to`` lays out all weights of four and five axes alike, so none for a model with both.
    """
    weights = [p for p in run.model.parameters() if p.dim() in LAST]
    ranks = {p.dim() for p in weights}
    if len(ranks) != 1:
        return
    layout = LAST[ranks.pop()]
    values = [*tree_leaves((run.work.inputs, run.work.named)), *weights]
    if not any(_lies(value, layout) for value in values):
        convert = f"memory_format={layout}"
        how = f"model.to({convert}); inputs.to({convert})"
        yield Free(str(layout).removeprefix("torch."), how, layout=layout)


def _lies(value: Any, layout: torch.memory_format) -> bool:
    """Whether a tensor is laid out so, and in no other way."""
    if not isinstance(value, Tensor) or LAST.get(value.dim()) is not layout:
        return False
    return value.is_contiguous(memory_format=layout) and not value.is_contiguous()


def _autocast(kind: str, dtype: str) -> Free:
    return Free(
        f"autocast {dtype}", f"with torch.autocast('{kind}', torch.{dtype}): ...",
        rounds_alike=False, setting=partial(torch.autocast, kind, getattr(torch, dtype)),
    )  # fmt: skip


@contextmanager
def _both(one: Setting, other: Setting) -> Generator[None]:
    with one(), other():
        yield


def _told(free: Free, pair: Paired | None, failure: str) -> FreeSetting:
    speedup = None if pair is None else Speedup.of(pair)
    return FreeSetting(free.name, free.how, free.rounds_alike, speedup, failure)
