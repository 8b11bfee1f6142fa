"""Runs a model as inference, watches convolutions in it, and leaves it as it was."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from dwr_rewrite.errors import DwrError

Enter = Callable[[str, Tensor], Tensor]
"""Called with a convolution's name and its input; gives the input that it gets."""

Leave = Callable[[str, Tensor], None]
"""Called with a convolution's name and its output."""


def device_of(model: nn.Module) -> torch.device:
    """Where its first tensor is."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def copied(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a model with other tensors.

    Args:
        model: it stays as it is.
        convert: gives a new tensor for each one. The same tensor is given only once, and never two
            copies of it are alive.

    Raises:
        DwrError: something in it cannot be copied.
    """
    memo: dict[int, Any] = {}
    with torch.inference_mode(mode=False):
        for tensor in _tensors(model):
            if id(tensor) not in memo:
                value = convert(tensor.detach())
                keeps = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if keeps else value
    try:
        with torch.inference_mode(mode=False):
            return copy.deepcopy(model, memo)
    except Exception as error:
        raise DwrError(f"{type(model).__name__} cannot be copied: {error}") from error


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and plain attributes."""
    for module in model.modules():
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


@contextmanager
def inference(model: nn.Module) -> Generator[None]:
    """Eval mode, without gradients, from a fixed state of the random number generators.

    Training flags, tensors that the model writes, and the generators are put back.
    """
    flags = [(module, module.training) for module in model.modules()]
    with torch.inference_mode(mode=False), torch.no_grad(), seeded(model), _kept_tensors(model):
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training


@contextmanager
def eager() -> Generator[None]:
    """What ``torch.compile`` made runs as it was before."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def seeded(model: nn.Module) -> Generator[None]:
    """From a fixed state of all random number generators, which get theirs back."""
    device = device_of(model)
    on_gpu = device.type == "cuda"
    plain, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  models use it
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def _kept_tensors(model: nn.Module) -> Generator[None]:
    """Puts buffers and plain attributes back, also where a forward writes into them."""
    kept = [
        (module, name, tensor, tensor.clone(), tensor._version)  # noqa: SLF001
        for module in model.modules()
        for name, tensor in _written(module)
    ]
    try:
        yield
    finally:
        for module, name, tensor, value, version in kept:
            if getattr(module, name, None) is not tensor:
                setattr(module, name, tensor)
            if tensor._version != version:  # noqa: SLF001
                tensor.copy_(value)


def _written(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a forward may write; tensors of the inference mode are written nowhere else."""
    plain = [(name, value) for name, value in vars(module).items() if isinstance(value, Tensor)]
    for name, tensor in (*module.named_buffers(recurse=False, remove_duplicate=False), *plain):
        if not tensor.is_inference():
            yield name, tensor


@contextmanager
def watching(
    model: nn.Module, names: Collection[str], enter: Enter, leave: Leave
) -> Generator[None]:
    """Tells what goes into and comes out of convolutions while the model runs.

    Modules are watched by hooks, calls in a graph by running another graph in its place. All of it
    is gone at the end.

    Args:
        model: what runs.
        names: of modules, or of calls in the graph of a GraphModule, behind its own name.
        enter: told every input; what it returns is convolved.
        leave: told every output.
    """
    modules = dict(model.named_modules())
    with ExitStack() as cleanup:
        for name in names:
            if name in modules:
                _hook(modules[name], name, enter, leave, cleanup)
        for prefix, module in modules.items():
            if isinstance(module, GraphModule):
                _swap_graph(prefix, module, names, enter, leave, cleanup)
        yield


def _hook(module: nn.Module, name: str, enter: Enter, leave: Leave, cleanup: ExitStack) -> None:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (enter(name, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": enter(name, kwargs["input"])}

    def after(_: nn.Module, __: Any, output: Tensor) -> None:
        leave(name, output)

    cleanup.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    cleanup.callback(module.register_forward_hook(after).remove)


def _swap_graph(
    prefix: str, module: GraphModule, names: Collection[str], enter: Enter,
    leave: Leave, cleanup: ExitStack,
) -> None:  # fmt: skip
    watched = {node.name for node in module.graph.nodes if qualified(prefix, node) in names}
    if not watched:
        return
    graph = copy.deepcopy(module.graph)
    for node in list(graph.nodes):
        if node.name not in watched or node.op != "call_function":
            continue
        name, x = qualified(prefix, node), node.all_input_nodes[0]
        with graph.inserting_before(node):
            given = graph.call_function(_bound(enter, name), (x,))
        node.replace_input_with(x, given)
        with graph.inserting_after(node):
            graph.call_function(_bound(leave, name), (node,))
    vars(module)["forward"] = GraphModule(module, graph).forward
    cleanup.callback(partial(vars(module).pop, "forward"))


def _bound(tell: Callable[[str, Tensor], Any], name: str) -> Callable[[Tensor], Any]:
    """A function with a name of its own, which the code of a graph needs."""

    def watched(value: Tensor) -> Any:
        return tell(name, value)

    return watched


@contextmanager
def watching_values(
    model: nn.Module, names: Collection[str], enter: Enter, leave: Leave
) -> Generator[None]:
    """As :func:`watching`, with the names of values in place of those of convolutions.

    The value of a convolution has the convolution's name; that of its second call is ``name#2``.
    """
    calls: Counter[str] = Counter()

    def value(name: str) -> str:
        return name if calls[name] == 1 else f"{name}#{calls[name]}"

    def first(name: str, x: Tensor) -> Tensor:
        calls[name] += 1
        return enter(value(name), x)

    def last(name: str, output: Tensor) -> None:
        leave(value(name), output)

    with watching(model, names, first, last):
        yield


def untouched(_: str, x: Tensor) -> Tensor:
    """An :data:`Enter` that only lets the input pass."""
    return x


def site_of(value: str) -> str:
    """The convolution that computes a value."""
    return value.partition("#")[0]


def qualified(prefix: str, node: Node) -> str:
    """Name of a node, behind that of the GraphModule that it is in."""
    return f"{prefix}.{node.name}" if prefix else node.name
