"""A bench and a timer that answer by a rule, so that what follows from times can be tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

import dwr_rewrite as dwr
from dwr_rewrite.passes.fx import api
from dwr_rewrite.passes.fx.decide import options
from dwr_rewrite.passes.fx.graph import UNDO as CALL
from dwr_rewrite.passes.fx.linked import UNDO
from dwr_rewrite.passes.fx.tune.auto import Instruments
from dwr_rewrite.passes.fx.tune.request import Wish
from dwr_rewrite.passes.fx.tune.whole import Run
from dwr_rewrite.timing import DECISIVE, Timing
from dwr_rewrite.tuning import Answer, Device, Question
from dwr_rewrite.workload import Workload

Rule = Callable[[Workload, str], float]
"""Seconds of a form."""


def timing(seconds: float) -> Timing:
    return Timing((seconds,) * 2 * DECISIVE)


def forms_faster(**faster: str) -> Rule:
    """The named form of each direction takes half of what all others take."""
    return lambda workload, form: 0.5 if faster.get(workload.direction) == form else 1.0


@dataclass
class FakeBench:
    rule: Rule
    device: Device = field(default_factory=lambda: Device("FAKE", "torch", {"device": "FAKE"}))
    asked: list[Question] = field(default_factory=list)

    def measure(self, questions: Sequence[Question]) -> Iterator[Answer]:
        for question in questions:
            self.asked.append(question)
            yield Answer(
                question.workload,
                {form: timing(self.rule(question.workload, form)) for form in question.forms},
            )


def rewritten_sites(model: nn.Module) -> list[str]:
    """Of a model or a copy of it."""
    names = [name for name, module in model.named_modules() if UNDO in vars(module)]
    for _, module in model.named_modules():
        if isinstance(module, GraphModule):
            names += [node.name for node in module.graph.nodes if CALL in node.meta]
    return names


@dataclass
class FakeTimer:
    """Seconds by the sites that are rewritten in a run's model.

    It runs every model once, so that what cannot run is found.
    """

    rule: Callable[[list[str]], float]
    timed: list[list[list[str]]] = field(default_factory=list)

    def __call__(self, runs: Sequence[Run], seconds: float) -> tuple[Timing, ...]:
        for run in runs:
            run()
        sites = [rewritten_sites(run.model) for run in runs]
        self.timed.append(sites)
        return tuple(timing(self.rule(names)) for names in sites)


def per_site(share: float) -> Callable[[list[str]], float]:
    """Every rewritten site changes the whole by a share."""
    return lambda names: 1 + share * len(names)


def auto(
    model: Any, inputs: Any, bench: FakeBench, timer: Any, linked: bool = False,
    inplace: bool = False, **wish: Any,
) -> Any:  # fmt: skip
    """``fx_rewrite`` on the CPU as the target, measured by these."""
    instruments = Instruments(lambda _: bench, timer)
    chosen = options("auto", linked, (), (), 256 << 20)
    wished = Wish(**{"target": "cpu", **wish})
    return api.perform(model, inputs, chosen, wished, inplace, instruments)


def forms(model: Any) -> dict[str, str]:
    return {site.name: site.form for site in dwr.record(model) if site.changed}


def codes(model: Any) -> dict[str, str]:
    return {site.name: site.reason.code for site in dwr.record(model) if site.reason}


def image(channels: int = 16, size: int = 10, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, size, size, generator=generator)
