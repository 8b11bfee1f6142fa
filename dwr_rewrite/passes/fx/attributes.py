"""The tensors that the nodes of a graph read as weights: what they are and who else uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from dwr_rewrite.passes.fx.calls import chain, is_layout, writes


@dataclass(frozen=True)
class Step:
    """One operator that laid a weight out anew: a node without its first argument."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    meta: dict[str, Any]

    @classmethod
    def of(cls, node: Node) -> Step:
        """A node of a :func:`chain`."""
        return cls(node.op, node.target, node.args[1:], dict(node.kwargs), dict(node.meta))

    def __call__(self, value: Tensor) -> Any:
        """What the node gives for a value."""
        call = getattr(value, self.target) if self.op == "call_method" else None
        arguments = self.args if call else (value, *self.args)
        with torch.no_grad():
            return (call or self.target)(*arguments, **self.kwargs)


@dataclass(frozen=True)
class Origin:
    """Where a compact weight came from that has other readers, or that operators laid out anew.

    A copy of a GraphModule loses the attributes that no node reads, so the tensor itself is here.

    Attributes:
        root: the ``get_attr``: its target is the attribute.
        tensor: the attribute's value.
        steps: what made the weight of it.
        stored: attribute of the packed weight.
    """

    root: Step
    tensor: Tensor
    steps: tuple[Step, ...]
    stored: str

    def value(self) -> Tensor:
        """The compact weight."""
        value = self.tensor.detach()
        for step in self.steps:
            value = step(value)
        return value


@dataclass
class Uses:
    """Who reads and writes the tensors of a model, by ``id``.

    Attributes:
        readers: how many nodes use a tensor; further names and convolutions that keep it count too.
        written: tensors that a node changes in place.
    """

    readers: Counter[int]
    written: set[int] = field(default_factory=set[int])

    @classmethod
    def of(cls, model: nn.Module) -> Uses:
        """Looks through the graphs and the modules of ``model``."""
        uses, owners = cls(Counter(map(id, tensors_read(model)))), Counter[int]()
        for module in model.modules():
            for _, tensor in (
                *module.named_parameters(recurse=False, remove_duplicate=False),
                *module.named_buffers(recurse=False, remove_duplicate=False),
            ):  # somebody may call a convolution, which then uses the tensor as its weight
                owners[id(tensor)] += 2 if isinstance(module, _ConvNd) else 1
            if isinstance(module, GraphModule):
                uses.written.update(
                    id(value_of(module, node))
                    for node in module.graph.find_nodes(op="get_attr")
                    if _is_written(node)
                )
        uses.readers.update({tensor: count - 1 for tensor, count in owners.items()})
        return uses


def tensors_read(model: nn.Module) -> Iterator[Tensor]:
    """The tensors that nodes read as attributes, once for each node that uses one."""
    for module in model.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.find_nodes(op="get_attr"):
                value = value_of(module, node)
                if value is not None:
                    yield from (value for _ in node.users)


def _is_written(node: Node) -> bool:
    return any(writes(user) or (is_layout(user) and _is_written(user)) for user in node.users)


def value_of(module: GraphModule, node: Node) -> Tensor | None:
    """The tensor that a node gives, if it is an attribute that was only laid out anew."""
    nodes = chain(node)
    value = attribute_of(module, str(nodes[0].target)) if nodes else None
    for later in nodes[1:]:
        value = Step.of(later)(value) if isinstance(value, Tensor) else None
    return value if isinstance(value, Tensor) else None


def attribute_of(module: nn.Module, target: str) -> Any:
    """What a ``get_attr`` with this target reads; None where there is nothing."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part, None)
    return value


def assign(module: nn.Module, target: str, value: Tensor, like: Tensor) -> None:
    """Makes ``value`` the attribute ``target``: a parameter if ``like`` is one, else a buffer."""
    *path, name = target.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if isinstance(like, nn.Parameter):
        setattr(module, name, nn.Parameter(value, requires_grad=like.requires_grad))
    elif hasattr(module, name):
        setattr(module, name, value)
    else:
        module.register_buffer(name, value)
