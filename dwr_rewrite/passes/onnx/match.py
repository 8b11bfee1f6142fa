"""Finds depthwise convolutions: every node becomes a Match, a Left with its reason, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from dwr_rewrite.errors import Rejection
from dwr_rewrite.passes.onnx.graphs import Scope, label
from dwr_rewrite.passes.onnx.metadata import read
from dwr_rewrite.passes.onnx.weights import Types, Weight, resolve
from dwr_rewrite.planner import Selection
from dwr_rewrite.spec import ConvSpec, Site, resolve_padding

STANDARD = ("", "ai.onnx")
CONVOLUTIONS = {
    *((domain, op) for domain in STANDARD for op in ("Conv", "ConvTranspose")),
    ("com.microsoft", "FusedConv"),
}

LEFT_ALONE = {
    "QLinearConv": "its arithmetic is int8, and onnxruntime's CUDA provider runs no QLinearConv",
    "ConvInteger": "its arithmetic is int8, and onnxruntime's CUDA provider runs no ConvInteger",
    "DeformConv": "its taps move with a second input, so its groups are not plain channels",
    "CausalConvWithState": "it carries state and has depthwise kernels of its own",
    "NhwcConv": "it is onnxruntime's own channels-last form; rewrite before optimizing",
    "NhwcFusedConv": "it is onnxruntime's own channels-last form; rewrite before optimizing",
    "ConvTransposeWithDynamicPads": "its padding is computed at run time",
}
"""Operators that convolve but are not rewritten, and why."""

OPTIMIZED_DOMAINS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Domains that occur only in models that onnxruntime has optimized for one machine."""


@dataclass(frozen=True)
class Match:
    """A depthwise convolution, where it stands, and the weight it reads."""

    site: Site
    scope: Scope
    index: int
    node: gs.Node
    weight: Weight


@dataclass(frozen=True)
class Left:
    """A convolution that was seen and is left as it is."""

    name: str
    op: str
    rejection: Rejection


@dataclass(frozen=True)
class Context:
    """What matching needs besides the node itself."""

    selection: Selection
    overridable: frozenset[str]
    types: Callable[[], Types]


def match(scope: Scope, context: Context) -> list[Match | Left]:
    """Every convolution of a scope that is depthwise or looks as if it could be.

    A standard convolution (group = 1) is not listed.
    """
    found: list[Match | Left] = []
    for index, node in enumerate(scope.view.nodes):
        domain = node.domain or ""
        if (domain, node.op) in CONVOLUTIONS:
            result = _match_node(scope, index, node, context)
        elif node.op in LEFT_ALONE and domain in (*STANDARD, "com.microsoft"):
            result = Rejection("operator", LEFT_ALONE[node.op])
        elif domain in OPTIMIZED_DOMAINS and "Conv" in node.op:
            result = Rejection("operator", "onnxruntime optimized this model; rewrite the original")
        else:
            continue
        if isinstance(result, Rejection):
            result = Left(_site_name(scope, index), _operator(node), result)
        if result is not None:
            found.append(result)
    return found


def _match_node(
    scope: Scope, index: int, node: gs.Node, context: Context
) -> Match | Rejection | None:
    proto = scope.proto.node[index]
    form = read(proto).get("form")
    if form:
        return Rejection("already-rewritten", f"already in the form {form}; --restore undoes it")
    group = node.attrs.get("group", 1)
    if group == 1:
        return None
    if not isinstance(group, int):
        return Rejection(
            "function-attribute", "its group is an attribute of the function around it"
        )
    if len(node.inputs) < 2 or not node.inputs[1].name:
        return Rejection("invalid", "it has no weight input")
    name = _site_name(scope, index)
    excluded = context.selection.reject(name)
    if excluded:
        return excluded
    weight = resolve(node.inputs[1], scope, context.overridable, context.types)
    if isinstance(weight, Rejection):
        return weight
    spec = _spec(node, group, weight, context.types)
    if isinstance(spec, Rejection):
        return spec
    owner = weight.owner.path if weight.owner else scope.path
    site = Site(name, _operator(node), spec, f"{owner}{weight.value.name}", weight.itemsize)
    return Match(site, scope, index, node, weight)


def _spec(
    node: gs.Node, group: int, weight: Weight, types: Callable[[], Types]
) -> ConvSpec | Rejection:
    """The geometry, from the weight's shape and the attributes alone (ONNX Conv, opset 1 on)."""
    shape, attributes = weight.shape, node.attrs
    rank, transposed = len(shape) - 2, node.op == "ConvTranspose"
    if not 1 <= rank <= 3:
        return Rejection(
            "rank", f"its weight has shape {list(shape)}; 1 to 3 spatial axes are known"
        )
    if min(shape) < 1 or group < 1:
        return Rejection("invalid", f"its weight has shape {list(shape)} and group is {group}")
    channels, multiplier = (shape[0], shape[1]) if transposed else (group, shape[0] // group)
    if transposed and shape[0] != group:
        return Rejection("grouped", f"an ordinary grouped convolution: {shape[0] // group} input "
                         f"channels in each of {group} groups")  # fmt: skip
    if not transposed and shape[1] != 1:
        return Rejection("grouped", f"an ordinary grouped convolution: {shape[1]} input channels "
                         f"in each of {group} groups")  # fmt: skip
    if not transposed and shape[0] % group:
        return Rejection("invalid", f"{shape[0]} output channels do not fall into {group} groups")
    kernel = shape[2:]
    if tuple(attributes.get("kernel_shape", kernel)) != kernel:
        return Rejection("invalid", f"kernel_shape {attributes['kernel_shape']} contradicts its "
                         f"weight's shape {list(shape)}")  # fmt: skip
    if set(kernel) == {1}:
        return Rejection("pointwise", "a 1x1 kernel only scales each channel")
    try:
        return ConvSpec(
            channels=channels,
            multiplier=multiplier,
            kernel=kernel,
            stride=tuple(attributes.get("strides", ())),
            dilation=tuple(attributes.get("dilations", ())),
            padding=resolve_padding(
                attributes.get("auto_pad", "NOTSET"), tuple(attributes.get("pads", ())), rank
            ),
            transposed=transposed,
            output_padding=tuple(attributes.get("output_padding", ())) if transposed else (),
            bias=len(node.inputs) > 2 and bool(node.inputs[2].name),
            dtype=weight.dtype,
            spatial=_spatial(node.inputs[0], rank, types),
        )
    except (TypeError, ValueError) as error:
        return Rejection("invalid", str(error))


def _spatial(x: gs.Tensor, rank: int, types: Callable[[], Types]) -> tuple[int | None, ...]:
    """Input lengths as far as shape inference knows them."""
    _, shape = types().get(x.name, ("", ()))
    return shape[2:] if len(shape) == rank + 2 else (None,) * rank


def _site_name(scope: Scope, index: int) -> str:
    return scope.path + label(scope.proto.node[index])


def _operator(node: gs.Node) -> str:
    domain = node.domain or ""
    return node.op if domain in STANDARD else f"{domain}::{node.op}"
