"""An engine whose times are made up, and models for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import ModelProto, helper

from dwr_rewrite.errors import DwrError
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.passes.onnx.provider import CUDA, Provider
from dwr_rewrite.passes.onnx.runtime import RuntimeResult
from dwr_rewrite.timing import FreeSetting, Paired
from dwr_rewrite.tuning import Answer, Device, Question
from dwr_rewrite.workload import Workload
from models.handmade import chain
from tests.tuning.fakes import samples

NAME = "Abacus 9"
Seconds = Callable[[Workload, str], float]


def slower(workload: Workload, form: str) -> float:
    """Every form but the convolution as it is takes twice as long."""
    return 1e-3 if form == KEEP else 2e-3


def faster(workload: Workload, form: str) -> float:
    """Every form takes half as long."""
    return 1e-3 if form == KEEP else 0.5e-3


def two_sites() -> ModelProto:
    """Two convolutions of different sizes: ``n9`` on 16x16 elements, ``n19`` on the same, but in
    steps of two."""
    model = chain(20, channels=16)
    model.graph.node[19].attribute.append(helper.make_attribute("strides", [2, 2]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@dataclass
class AbacusBench:
    engine: Abacus
    provider: Provider

    @property
    def device(self) -> Device:
        options = {f"option {key}": value for key, value in self.provider.options.items()}
        return Device(self.engine.name, self.provider.name, options, self.engine.target)

    def measure(self, questions: Sequence[Question]) -> Iterator[Answer]:
        for question in questions:
            self.engine.asked.append(question.workload)
            if len(self.engine.asked) > self.engine.patience:
                raise KeyboardInterrupt
            seconds = {form: self.engine.form(question.workload, form) for form in question.forms}
            yield Answer(question.workload, {f: samples(s) for f, s in seconds.items()})


@dataclass
class Abacus:
    """Forms take the seconds of ``form``; a model takes those of its nodes by ``node``.

    ``needs`` names a provider option without which a rewritten model is slower.
    """

    form: Seconds = slower
    node: Mapping[str, float] = field(default_factory=dict)
    name: str = NAME
    target: bool = True
    settings: tuple[FreeSetting, ...] = ()
    needs: str = ""
    patience: int = 1 << 30
    refusal: str = ""
    asked: list[Workload] = field(default_factory=list)
    timed: list[tuple[Provider, tuple[str, ...]]] = field(default_factory=list)

    def bench(self, provider, options) -> AbacusBench:
        return AbacusBench(self, Provider(CUDA if provider is None else provider, options))

    def free(self, model, settings, provider, progress) -> tuple[FreeSetting, ...]:
        if self.refusal:
            raise DwrError(self.refusal)
        return self.settings

    def time(self, models, settings, provider, progress) -> RuntimeResult:
        """A rewritten node takes what ``node`` says, half a millisecond by default; any other
        convolution one millisecond."""
        changed = [rewritten_nodes(path) for path in models]
        self.timed.append((provider, changed[1]))
        gains = [self._gain(names) for names in changed]
        if self.needs and self.needs not in provider.options:
            gains[1] = -gains[1]
        pair = Paired(*(samples(1e-2 + gain) for gain in gains))
        return RuntimeResult(pair, Device(self.name, provider.name, {}), provider, {"x": (2, 3)})

    def _gain(self, names: Sequence[str]) -> float:
        return sum(self.node.get(name, 0.5e-3) - 1e-3 for name in names)


def rewritten_nodes(path: Path) -> tuple[str, ...]:
    """Names of the convolutions whose weight has more than one input channel in a group."""
    model = onnx.load(path)
    width = {tensor.name: tensor.dims[1] for tensor in model.graph.initializer if tensor.dims[1:]}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return tuple(node.name for node in convolutions if width.get(node.input[1], 2) > 1)
