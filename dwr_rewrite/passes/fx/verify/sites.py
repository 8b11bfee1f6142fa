"""The convolutions of a model: where they are, and each of them by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_leaves

from dwr_rewrite.passes.fx import graph, linked, operator
from dwr_rewrite.passes.fx.attributes import value_of
from dwr_rewrite.passes.fx.calls import (
    GENERAL,
    SIGNATURES,
    Signature,
    as_tuple,
    depthwise_conv,
)
from dwr_rewrite.passes.fx.geometry import width_of
from dwr_rewrite.passes.fx.verify.running import inference, qualified

Place = nn.Module | Node
"""A module that convolves, or a call in a graph."""

Undo = linked.Undo | graph.Undo

LINKED_CALL = Signature((*GENERAL, "forms"))
"""Arguments of :func:`~dwr_rewrite.passes.fx.calls.depthwise_conv`."""


_COMPILED = "_orig_mod"
"""Attribute of what ``torch.compile`` returns: the module that it was given."""


@dataclass(frozen=True)
class Convolution:
    """A convolution by itself.

    Attributes:
        channels: of its input.
        outputs: channels of its output.
        width: input channels in each group.
        kernel: taps along each axis.
        stride: step along each axis.
        padding: as torch has it, but never a text: ``"same"`` as the whole reach of the kernel.
        dilation: distance between taps along each axis.
        transposed: a transposed convolution.
        example: a tensor of its element type, on its device.
        apply: convolves [N, C, ...] without the bias.
    """

    channels: int
    outputs: int
    width: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    example: Tensor
    apply: Callable[[Tensor], Tensor]

    @property
    def is_depthwise(self) -> bool:
        """One input channel in each group, several groups, and more than one tap."""
        return self.width == 1 < self.channels and set(self.kernel) != {1}

    @property
    def form(self) -> str:
        """``keep``, ``dense`` or ``blocks:b``, of what was a depthwise convolution."""
        if self.width == 1:
            return "keep"
        return "dense" if self.width == self.channels else f"blocks:{self.width}"


def as_module(model: nn.Module | ExportedProgram) -> nn.Module:
    """The module itself, not compiled; of a program, its graph without what checks inputs."""
    if isinstance(model, nn.Module):
        return getattr(model, _COMPILED, model)
    module = model.module(check_guards=False)
    assert isinstance(module, GraphModule)
    vars(module.graph)["_tracer_cls"] = None  # to unpickle, torch would call it without arguments
    return GraphModule(module, module.graph)


def is_compiled(model: nn.Module | ExportedProgram) -> bool:
    """Whether it is what ``torch.compile`` makes of a module."""
    return hasattr(model, _COMPILED)


def convolutions(model: nn.Module) -> Iterator[tuple[str, Place]]:
    """Every convolution module, and every call of a convolution in a graph, by name."""
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            yield name, module
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                if node.op == "call_function" and signature_of(node) is not None:
                    yield qualified(name, node), node


def signature_of(node: Node) -> Signature | None:
    """How a call of a convolution takes its arguments; None for another call."""
    if node.target is operator.OPERATOR:
        return operator.SIGNATURE if graph.UNDO in node.meta else None
    return LINKED_CALL if node.target is depthwise_conv else SIGNATURES.get(node.target)


def undo_of(place: Place) -> Undo | None:
    """What the torch pass did at a place; None where it did nothing."""
    return place.meta.get(graph.UNDO) if isinstance(place, Node) else vars(place).get(linked.UNDO)


def is_linked(place: Place) -> bool:
    """Whether its weight is the compact one."""
    if isinstance(place, Node):
        return place.target in (depthwise_conv, operator.OPERATOR)
    return isinstance(place, linked.Linked)


def is_transposed(node: Node) -> bool:
    """Whether a call is one of a transposed convolution."""
    signature = signature_of(node)
    return signature is not None and (
        signature.transposed or bool(signature.read(node).get("transposed", False))
    )


def weight_of(place: Place) -> Tensor | None:
    """The weight that is stored; None where it is computed."""
    if not isinstance(place, Node):
        return vars(place)["_parameters"].get("weight")
    owner = place.graph.owning_module
    assert owner is not None
    return value_of(owner, arguments_of(place)["weight"])


def arguments_of(node: Node) -> dict[str, Any]:
    """Arguments of a call of a convolution, by name."""
    signature = signature_of(node)
    assert signature is not None
    return signature.read(node)


def convolution_of(place: Place) -> Convolution | None:
    """A convolution by itself; None where its weight or its geometry is computed as it runs."""
    return _of_call(place) if isinstance(place, Node) else _of_module(place)


def _of_module(module: Any) -> Convolution:
    alone = object.__new__(type(module))  # copy.copy refuses a parametrized module
    vars(alone).update(vars(module), _parameters={**vars(module)["_parameters"], "bias": None})

    def apply(x: Tensor) -> Tensor:
        with inference(module):  # where its weight is computed, that may change it
            return alone.forward(x)

    undo = undo_of(module)
    example = next(chain(module.parameters(), module.buffers(), [torch.empty(())]))
    return Convolution(
        channels=module.in_channels,
        outputs=module.out_channels,
        width=width_of(undo.forms.forward) if undo else module.in_channels // module.groups,
        transposed=module.transposed,
        example=example,
        apply=apply,
        **_geometry(vars(module), module.kernel_size),
    )


def _of_call(node: Node) -> Convolution | None:
    signature, arguments, weight = signature_of(node), arguments_of(node), weight_of(node)
    assert signature is not None
    numbers = [arguments[name] for name in ("stride", "padding", "dilation", "groups")]
    computed = any(isinstance(value, Node) for value in tree_leaves(numbers))
    if weight is None or computed:
        return None

    def apply(x: Tensor) -> Any:
        given: dict[str, Any] = {"input": x, "weight": weight, "bias": None}
        if undo is not None and target is operator.OPERATOR:
            given["size"] = undo.spec.at(tuple(x.shape[2:])).output_spatial()
        named = zip(signature.names, node.args, strict=False)
        kwargs = {name: given.get(name, value) for name, value in node.kwargs.items()}
        return target(*(given.get(name, value) for name, value in named), **kwargs)

    target: Any = node.target
    undo = undo_of(node)
    transposed, groups = is_transposed(node), int(arguments["groups"])
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    return Convolution(
        channels=channels,
        outputs=weight.shape[1] * groups if transposed else weight.shape[0],
        width=width_of(arguments.get("forms", [channels // groups])[0]),
        transposed=transposed,
        example=weight,
        apply=apply,
        **_geometry(arguments, tuple(weight.shape[2:])),
    )


def _geometry(given: Mapping[str, Any], kernel: tuple[int, ...]) -> dict[str, Any]:
    """Kernel, stride, padding and dilation with one number for each axis."""
    rank = len(kernel)
    dilation, padding = as_tuple(given["dilation"], rank), given["padding"]
    if padding == "same":
        padding = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    elif padding == "valid":
        padding = 0
    return {
        "kernel": kernel,
        "stride": as_tuple(given["stride"], rank),
        "padding": as_tuple(padding, rank),
        "dilation": dilation,
    }
