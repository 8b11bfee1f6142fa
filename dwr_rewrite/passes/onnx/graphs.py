"""Every graph of a model, seen through onnx-graphsurgeon and written through its own proto.

graphsurgeon gives producers, consumers and scoping. Its exporter drops what it does not model
(metadata_props, doc strings, overridable inputs, several attribute types), so nothing is exported
through it: a changed node is changed in the ModelProto, and all else stays byte for byte.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx_graphsurgeon.logger import G_LOGGER

from dwr_rewrite.errors import DwrError

OVERRIDABLE_SINCE_IR = 4
"""From this IR version on an initializer need not be a graph input, and one that is can be fed."""


@dataclass(eq=False)
class Scope:
    """One graph, control-flow body or local function.

    Attributes:
        path: prefix of its nodes' names: empty for the main graph, ``loop/body/`` for a body,
            ``domain::function/`` for a local function.
        proto: what is edited.
        view: the same graph in graphsurgeon; ``view.nodes[i]`` stands for ``proto.node[i]``.
        opset: version of the standard operator set here; 0 where none is imported.
        parent: the scope whose values this one can read.
        holder: of a body: the index of the parent's node that holds it, and the attribute's name.
        initializers: by name.
        outputs: names of the values that leave the scope.
        positions: index of each node of ``view`` by its ``id``.
    """

    path: str
    proto: GraphProto | FunctionProto
    view: gs.Graph
    opset: int
    parent: Scope | None = None
    holder: tuple[int, str] | None = None
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()
    positions: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Indexes what is looked up by name or node; refuses names that are no text."""
        for node in self.proto.node:
            names = (node.name, node.op_type, node.domain, *node.input, *node.output)
            if any(isinstance(name, bytes) for name in names):  # protobuf could not decode it
                raise DwrError(f"the model is damaged: a name in {self.path or 'it'} is no text")
        self.positions = {id(node): index for index, node in enumerate(self.view.nodes)}
        if isinstance(self.proto, GraphProto):
            self.initializers = {tensor.name: tensor for tensor in self.proto.initializer}
            self.outputs = frozenset(value.name for value in self.proto.output)
        else:
            self.outputs = frozenset(self.proto.output)

    def locate(self, node: gs.Node) -> tuple[Scope, int]:
        """The scope, this one or one around it, that holds a node, and the node's index there."""
        scope = self
        while id(node) not in scope.positions and scope.parent is not None:
            scope = scope.parent
        return scope, scope.positions[id(node)]

    def find_initializer(self, name: str) -> tuple[Scope, TensorProto] | None:
        """The initializer that a node here reads under this name, and the scope that holds it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.initializers:
                return scope, scope.initializers[name]
            scope = scope.parent
        return None


def scopes(model: ModelProto) -> list[Scope]:
    """The main graph, the bodies of If / Loop / Scan at any depth, and the local functions.

    Raises:
        DwrError: graphsurgeon cannot read the model.
    """
    with _readable_strings(model):
        try:
            view = gs.import_onnx(model)
        except RecursionError:
            raise DwrError("the model nests control flow too deeply to be read") from None
        except Exception as error:
            raise DwrError(f"the graph cannot be read: {error}") from error
    found = [Scope("", model.graph, view, opset(model))]
    found += [
        Scope(f"{function.domain}::{function.name}/", function, body, opset(function))
        for function, body in zip(model.functions, view.functions, strict=True)
    ]
    for scope in found:  # grows while it is walked: bodies may hold bodies
        found += _bodies(scope)
    paths: dict[str, int] = {}
    for scope in found:  # nodes may share a name, and then their bodies would share a path
        paths[scope.path] = count = paths.get(scope.path, 0) + 1
        scope.path = scope.path if count == 1 else f"{scope.path}#{count}/"
    return found


def _bodies(scope: Scope) -> Iterator[Scope]:
    for index, (node, proto) in enumerate(zip(scope.view.nodes, scope.proto.node, strict=True)):
        if not any(attribute.type == AttributeProto.GRAPH for attribute in proto.attribute):
            continue
        for attribute in proto.attribute:
            body = node.attrs.get(attribute.name)
            if attribute.type == AttributeProto.GRAPH and isinstance(body, gs.Graph):
                path = f"{scope.path}{label(proto)}/{attribute.name}/"
                holder = (index, attribute.name)
                yield Scope(path, attribute.g, body, scope.opset, scope, holder)


def label(node: NodeProto) -> str:
    """A node's name; for a nameless one that of its first output."""
    return node.name or next((name for name in node.output if name), node.op_type)


class FreshNames:
    """Hands out value and node names that nothing in the model has."""

    def __init__(self, found: Iterable[Scope]) -> None:
        """Collects every name of every scope."""
        self._taken: set[str] = set()
        for scope in found:
            self._taken.update(scope.initializers, scope.outputs)
            inputs = scope.proto.input
            self._taken.update(v if isinstance(v, str) else v.name for v in inputs)
            for node in scope.proto.node:
                self._taken.add(node.name)
                self._taken.update(node.input)
                self._taken.update(node.output)

    def __call__(self, wanted: str) -> str:
        """``wanted`` itself where it is free, else with the first free number behind it."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def claim(self, name: str) -> bool:
        """Takes exactly this name; False where it is taken already."""
        free = name not in self._taken
        self._taken.add(name)
        return free


@contextmanager
def quiet() -> Generator[None]:
    """Keeps graphsurgeon's log (one line per bfloat16 tensor) off the terminal."""
    severity, G_LOGGER.severity = G_LOGGER.severity, G_LOGGER.CRITICAL + 1
    try:
        yield
    finally:
        G_LOGGER.severity = severity


@contextmanager
def collector_paused() -> Generator[None]:
    """Stops the garbage collector, which else walks millions of live objects again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _readable_strings(model: ModelProto) -> Generator[None]:
    """Hides attribute bytes that are not UTF-8 (legal in custom domains; graphsurgeon fails)."""
    hidden: list[tuple[AttributeProto, list[bytes]]] = []
    for attribute in _attributes(model):
        values = [attribute.s] if attribute.type == AttributeProto.STRING else [*attribute.strings]
        if not all(_is_utf8(value) for value in values):
            hidden.append((attribute, values))
            _set_strings(attribute, [b""] * len(values))
    try:
        yield
    finally:
        for attribute, values in hidden:
            _set_strings(attribute, values)


def _set_strings(attribute: AttributeProto, values: list[bytes]) -> None:
    if attribute.type == AttributeProto.STRING:
        (attribute.s,) = values
    else:
        attribute.strings[:] = values


def _attributes(model: ModelProto) -> Iterator[AttributeProto]:
    """The string attributes of every node at any depth."""
    pending = [model.graph.node, *(function.node for function in model.functions)]
    while pending:
        for node in pending.pop():
            for attribute in node.attribute:
                if attribute.type in (AttributeProto.STRING, AttributeProto.STRINGS):
                    yield attribute
                elif attribute.type == AttributeProto.GRAPH:
                    pending.append(attribute.g.node)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def opset(importer: ModelProto | FunctionProto) -> int:
    """Version of the standard operator set that it imports; 0 where it imports none."""
    versions = (o.version for o in importer.opset_import if o.domain in ("", "ai.onnx"))
    return max(versions, default=0)
