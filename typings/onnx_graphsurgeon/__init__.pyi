"""The part of onnx-graphsurgeon that dwr-rewrite uses; the package carries no types."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

class Tensor:
    name: str
    inputs: list[Node]
    outputs: list[Node]

class Variable(Tensor):
    def __init__(self, name: str) -> None: ...

class Constant(Tensor):
    values: NDArray[np.generic]

class Node:
    op: str
    name: str
    domain: str | None
    attrs: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]
    def __init__(
        self,
        op: str,
        name: str | None = ...,
        attrs: dict[str, Any] | None = ...,
        inputs: Sequence[Tensor] | None = ...,
        outputs: Sequence[Tensor] | None = ...,
        domain: str | None = ...,
    ) -> None: ...

    @dataclass
    class AttributeRef:
        name: str
        type: type

class Graph:
    nodes: list[Node]
    functions: list[Graph]

def import_onnx(onnx_model: ModelProto) -> Graph: ...
