"""The layers that are measured: their geometry, their arithmetic and the bytes they must move."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

from dwr_rewrite.cost import macs
from dwr_rewrite.passes.fx.geometry import Geometry
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.workload import Direction

DATA = Path(__file__).parent / "data" / "depthwise_layers.json"


@dataclass(frozen=True)
class Layer:
    """A depthwise convolution with the length of its input; padding is symmetric."""

    channels: int
    kernel: tuple[int, ...]
    spatial: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    multiplier: int = 1
    bias: bool = False
    transposed: bool = False
    sets: tuple[str, ...] = ()
    example: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Layer:
        """From JSON, where tuples are lists; fields of other names are passed over."""
        names = {each.name for each in fields(cls)}
        kept = {name: value for name, value in row.items() if name in names}
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in kept.items()})

    @property
    def key(self) -> str:
        """What tells this geometry from every other."""
        kind = "T" if self.transposed else ""
        shape = f"{kind}C{self.channels}m{self.multiplier} k{_by(self.kernel)} s{_by(self.stride)}"
        window = f"p{_by(self.padding)} d{_by(self.dilation)} on {_by(self.spatial)}"
        return f"{shape} {window}{' bias' if self.bias else ''}"

    @property
    def spec(self) -> ConvSpec:
        pads = tuple((each, each) for each in self.padding)
        return ConvSpec(
            self.channels, self.kernel, self.multiplier, self.stride, self.dilation, pads,
            self.transposed, bias=self.bias, spatial=self.spatial,
        )  # fmt: skip

    @property
    def geometry(self) -> Geometry:
        return Geometry(
            self.channels, self.kernel, self.multiplier, self.stride, self.padding, self.dilation,
            self.transposed,
        )  # fmt: skip

    @property
    def output_spatial(self) -> tuple[int, ...]:
        return tuple(length for length in self.spec.output_spatial() if length is not None)

    def input_shape(self, batch: int) -> tuple[int, ...]:
        return (batch, self.channels, *self.spatial)

    def output_shape(self, batch: int) -> tuple[int, ...]:
        return (batch, self.channels * self.multiplier, *self.output_spatial)

    def flops(self, batch: int, width: int = 1) -> int:
        """Of each of the three directions: two for every multiply-accumulate."""
        found = macs(self.spec, width)
        assert found is not None
        return 2 * batch * found

    def elements(self, batch: int, width: int = 1) -> int:
        """Elements that any direction must move: input, output and packed weight, each once."""
        x, y = prod(self.input_shape(batch)), prod(self.output_shape(batch))
        return x + y + prod(self.spec.weight_shape) * width

    def terms(self, batch: int, direction: Direction) -> int:
        """Products that are summed for one element of a direction's result, at most."""
        if direction == "grad_weight":
            return batch * prod(self.spatial if self.transposed else self.output_spatial)
        return prod(self.kernel) * (self.multiplier if direction == "grad_input" else 1)


def _by(lengths: tuple[int, ...]) -> str:
    return "x".join(map(str, lengths))


def load(path: Path = DATA) -> list[Layer]:
    """The layers, the first of every set before the second of any."""
    layers = [Layer.of(row) for row in json.loads(path.read_text())["layers"]]
    seen: dict[str, int] = {}
    turns: dict[str, int] = {}
    for layer in layers:
        turns[layer.key] = seen[layer.sets[0]] = seen.get(layer.sets[0], 0) + 1
    return sorted(layers, key=lambda layer: turns[layer.key])
