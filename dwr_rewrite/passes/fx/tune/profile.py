"""The convolutions that a rewrite would touch, as they run on the example inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from dwr_rewrite.errors import Rejection
from dwr_rewrite.passes.fx.attributes import value_of
from dwr_rewrite.passes.fx.functional import runs_in
from dwr_rewrite.passes.fx.tune.flags import allows_tf32
from dwr_rewrite.passes.fx.verify.running import qualified, watching
from dwr_rewrite.passes.fx.verify.sites import arguments_of, signature_of
from dwr_rewrite.planner.auto import Sites
from dwr_rewrite.spec import DTYPES, ConvSpec
from dwr_rewrite.workload import DIRECTIONS, Direction, Layout, Workload

NOT_RUN = Rejection("not-run", "it does not run on the example inputs, so that its size is not "
                    "known")  # fmt: skip


@dataclass
class Survey:
    """A :class:`~dwr_rewrite.planner.Chooser` that keeps every site, and notes what it was asked.

    A rewrite with it changes nothing, and tells which sites one would touch, under which names.

    Attributes:
        specs: geometry of every site, by its name; its spatial lengths are not known.
        linked: sites that were asked about in all three directions: their weight is packed as
            they run.
    """

    specs: dict[str, ConvSpec] = field(default_factory=dict[str, ConvSpec])
    linked: set[str] = field(default_factory=set[str])

    def recipe(self, name: str, spec: ConvSpec, direction: Direction) -> Rejection:
        """Keeps it."""
        self.specs[name] = spec
        if direction != "forward":
            self.linked.add(name)
        return Rejection("surveyed", "it was only looked for")


@dataclass(frozen=True)
class Seen:
    """A site as it ran once.

    Attributes:
        shape: of its input [N, C, spatial...].
        dtype: in which it convolves.
        layout: of its input.
        learns: whether gradients of (its input, its weight) are taken.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: Layout
    learns: tuple[bool, bool]

    @classmethod
    def of(cls, x: Tensor, weight: Tensor | None, trained: bool, rank: int) -> Seen:
        """A convolution of ``x`` with a ``weight`` (None where it is computed).

        Args:
            x: [N, C, spatial...] or [C, spatial...].
            weight: compact.
            trained: whether the weight wants a gradient.
            rank: number of spatial axes.
        """
        lengths = [_hint(length) for length in x.shape]
        shape = (*(1,) * (rank + 2 - len(lengths)), *lengths)
        grad = torch.is_grad_enabled()
        return cls(
            shape, runs_in(x), _layout(x, weight), (grad and x.requires_grad, grad and trained)
        )


def survey_run(
    model: nn.Module, survey: Survey, run: Callable[[], object], gpu: bool, max_growth: int
) -> Sites:
    """The sites as they run.

    A site that runs more than once is weighed at its largest input. What ``run`` changes in the
    model stays changed: it should be a copy.

    Args:
        model: whose convolutions run.
        survey: what a rewrite of it would touch.
        run: runs it once, as it is going to be run.
        gpu: the device that is to run it has TF32.
        max_growth: bytes that a packed weight may have more than its compact one.
    """
    weights, seen = _weights(model, survey), dict[str, Seen]()

    def enter(name: str, x: Tensor) -> Tensor:
        weight, trained = weights[name]
        found = Seen.of(x, weight, trained, len(survey.specs[name].kernel))
        if name not in seen or torch.Size(found.shape).numel() > _numel(seen[name]):
            seen[name] = found
        return x

    with watching(model, survey.specs, enter, lambda name, y: None):
        run()
    return sites_of(survey, seen, gpu, max_growth)


def survey_notes(model: GraphModule, survey: Survey, gpu: bool, max_growth: int) -> Sites:
    """The sites as Dynamo noted them in its graph: nothing runs.

    Args:
        model: a graph whose nodes have their values in ``meta``.
        survey: what a rewrite of it would touch.
        gpu: the device that is to run it has TF32.
        max_growth: bytes that a packed weight may have more than its compact one.
    """
    seen: dict[str, Seen] = {}
    for name, node in _nodes(model):
        if name not in survey.specs:
            continue
        arguments = arguments_of(node)
        x, weight = (_noted(arguments[key]) for key in ("input", "weight"))
        if x is not None:
            trained = weight is None or weight.requires_grad
            seen[name] = Seen.of(x, weight, trained, len(survey.specs[name].kernel))
    return sites_of(survey, seen, gpu, max_growth)


def sites_of(survey: Survey, seen: Mapping[str, Seen], gpu: bool, max_growth: int) -> Sites:
    """What is to be weighed, and why some sites cannot be."""
    workloads: dict[str, tuple[Workload, ...]] = {}
    left: dict[str, Rejection] = {}
    for name, spec in survey.specs.items():
        found: tuple[Workload, ...] | Rejection = NOT_RUN
        if name in seen:
            found = _workloads(spec, seen[name], name in survey.linked, gpu)
        if isinstance(found, Rejection):
            left[name] = found
        else:
            workloads[name] = found
    return Sites(workloads, left, max_growth)


def _workloads(
    spec: ConvSpec, seen: Seen, linked: bool, gpu: bool
) -> tuple[Workload, ...] | Rejection:
    dtype = str(seen.dtype).removeprefix("torch.")
    if dtype not in DTYPES or 0 in seen.shape:
        return Rejection("not-weighed", f"its input is {dtype} {list(seen.shape)}, of which no "
                         f"form is weighed")  # fmt: skip
    batch, _, *spatial = seen.shape
    known = replace(spec, dtype=dtype).at(tuple(spatial))
    tf32 = gpu and dtype == "float32" and allows_tf32()
    wanted = (True, *(linked and learns for learns in seen.learns))
    return tuple(
        Workload(known, batch, direction, seen.layout, tf32, stored=not linked)
        for direction, counts in zip(DIRECTIONS, wanted, strict=True)
        if counts
    )


def _weights(model: nn.Module, names: Survey) -> dict[str, tuple[Tensor | None, bool]]:
    """The weight of every site where it is stored, and whether one of its tensors learns."""
    modules = dict(model.named_modules())
    found: dict[str, tuple[Tensor | None, bool]] = {}
    for name in names.specs:
        if name in modules:
            own = {k: p for k, p in modules[name].named_parameters() if k != "bias"}
            found[name] = own.get("weight"), any(p.requires_grad for p in own.values())
    for name, node in _nodes(model):
        if name in names.specs:
            owner = node.graph.owning_module
            assert owner is not None
            weight = value_of(owner, arguments_of(node)["weight"])
            found[name] = weight, weight is None or weight.requires_grad
    return found


def _nodes(model: nn.Module) -> Iterable[tuple[str, Node]]:
    """The calls of convolutions in the graphs of a model, by name."""
    graphs = ((p, m.graph) for p, m in model.named_modules() if isinstance(m, GraphModule))
    nodes = chain.from_iterable(((p, node) for node in graph.nodes) for p, graph in graphs)
    return (
        (qualified(prefix, node), node)
        for prefix, node in nodes
        if node.op == "call_function" and signature_of(node) is not None
    )


def _noted(argument: Any) -> Tensor | None:
    meta: dict[str, Any] = argument.meta if isinstance(argument, Node) else {}
    value = meta.get("example_value", meta.get("val"))
    return value if isinstance(value, Tensor) else None


def _hint(length: int | torch.SymInt) -> int:
    """A length; of a dynamic one that which it had when it was traced, without fixing it."""
    return length if isinstance(length, int) else int(length.node.hint)


def _layout(x: Tensor, weight: Tensor | None) -> Layout:
    """channels_last if the input is, or the weight, by which torch decides too."""
    if x.dim() < 4:
        return "nchw"
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    lies = x.is_contiguous(memory_format=last) and not x.is_contiguous()
    rules = weight is not None and weight.dim() > 3 and weight.stride(1) == 1
    return "channels_last" if lies or rules else "nchw"


def _numel(seen: Seen) -> int:
    return torch.Size(seen.shape).numel()
