"""Convolutions as calls: one row for each function or operator, one way to read and write them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from dwr_rewrite.passes.fx.functional import convolve, pad
from dwr_rewrite.passes.fx.geometry import Form, Forms, Geometry, around
from dwr_rewrite.spec import Pads, Same, same_padding

aten = torch.ops.aten

FORWARD: tuple[str, ...] = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED: tuple[str, ...] = (*FORWARD[:5], "output_padding", "groups", "dilation")
GENERAL: tuple[str, ...] = (*FORWARD[:6], "transposed", "output_padding", "groups")
DEFAULTS: Mapping[str, Any] = {
    "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0,
    "transposed": False,
}  # fmt: skip


@dataclass(frozen=True)
class Signature:
    """Order of a call's arguments, and what it is."""

    names: tuple[str, ...]
    transposed: bool = False

    def read(self, node: Node) -> dict[str, Any]:
        """All arguments of a call by name."""
        given = dict(zip(self.names, node.args, strict=False)) | dict(node.kwargs)
        return {name: given.get(name, DEFAULTS.get(name)) for name in self.names}

    def write(self, node: Node, **changes: Any) -> None:
        """Changes arguments of a call where they stand."""
        for name, value in changes.items():
            position = self.names.index(name)
            if position < len(node.args):
                node.update_arg(position, value)
            else:
                node.update_kwarg(name, value)


SIGNATURES: dict[Any, Signature] = {
    **{f: Signature(FORWARD) for f in (torch.conv1d, torch.conv2d, torch.conv3d)},
    **{f: Signature(FORWARD) for f in (F.conv1d, F.conv2d, F.conv3d)},
    **{f: Signature(FORWARD) for op in (aten.conv1d, aten.conv2d, aten.conv3d)
       for f in (op, op.default, op.padding)},
    **{f: Signature(TRANSPOSED, True) for f in (
        torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
        F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
        aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    )},
    aten.convolution.default: Signature(GENERAL),
}  # fmt: skip
"""Every call that convolves."""

LAYOUT = {
    "squeeze", "unsqueeze", "reshape", "view", "expand", "permute", "transpose", "contiguous",
    "detach", "clone", "to", "flatten", "flip",
}  # fmt: skip
"""Methods and operators that only lay a weight out anew, by name."""


def is_layout(node: Node) -> bool:
    """Whether a node only lays its first argument out anew."""
    if node.op == "call_method":
        return str(node.target) in LAYOUT
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    name = getattr(node.target, "__name__", "").partition(".")[0]
    return name in LAYOUT or name in ("_to_copy", "alias", "lift_fresh_copy")


def chain(node: Node) -> list[Node]:
    """The nodes from an attribute to this one, if each only lays out the one before; or none."""
    if node.op == "get_attr":
        return [node]
    if not is_layout(node) or node.all_input_nodes != list(node.args[:1]):
        return []
    before = chain(node.all_input_nodes[0])
    return [*before, node] if before else []


def writes(node: Node) -> bool:
    """Whether a node changes one of its arguments in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return bool(schema.is_mutable)
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))
    in_place = name.endswith("_") and not name.endswith("__")
    assigned = node.target in (
        operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv,
    )  # fmt: skip
    return in_place or assigned or "out" in node.kwargs or bool(node.kwargs.get("inplace"))


def update_meta(node: Node, change: Callable[[Tensor], Tensor]) -> None:
    """Applies a change of a node's value to what export and Dynamo noted about it."""
    node.meta.pop("tensor_meta", None)
    for key in ("val", "example_value"):
        value = node.meta.get(key)
        if isinstance(value, Tensor):
            with getattr(value, "fake_mode", nullcontext()):
                node.meta[key] = change(value)


def as_tuple(value: Any, rank: int) -> tuple[int, ...]:
    """1 -> (1, 1)."""
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * (rank if len(value) == 1 else 1)


def padding_of(value: Any, rank: int) -> Pads | Same:
    """Torch's padding argument as the pairs of a ConvSpec."""
    if value == "same":
        return "same_upper"
    amounts = (0,) * rank if value == "valid" else as_tuple(value, rank)
    return tuple((amount, amount) for amount in amounts)


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, forms: tuple[Form, Form, Form],
) -> Tensor:  # fmt: skip
    """What a linked call becomes: a convolution with the compact weight, in the forms given.

    Args:
        x: input [N, C, ...] or [C, ...].
        weight: compact weight.
        bias: [M] or None.
        stride: as torch takes it.
        padding: numbers, ``"same"`` or ``"valid"``.
        dilation: as torch takes it.
        transposed: a transposed convolution.
        output_padding: its extra output length.
        groups: channels C.
        forms: of forward, grad_input and grad_weight.
    """
    rank = weight.dim() - 2
    dilations, amounts = as_tuple(dilation, rank), padding
    if padding == "same":
        pairs = tuple(
            same_padding("same_upper", 1, k, 1, d)
            for k, d in zip(weight.shape[2:], dilations, strict=True)
        )
        first, amounts = around(pairs)
        x = pad(x, first)
    elif padding == "valid":
        amounts = 0
    kernel = tuple(int(n) for n in weight.shape[2:])
    multiplier = int(weight.shape[1] if transposed else weight.shape[0] // groups)
    geometry = Geometry(
        groups, kernel, multiplier, as_tuple(stride, rank), as_tuple(amounts, rank), dilations,
        transposed,
        as_tuple(output_padding, rank) if transposed else (),
    )  # fmt: skip
    return convolve(x, weight, bias, geometry, Forms(*forms))
