"""Which calls are compiled, and compiling one: what a launch on a GPU would be, on tensors of none.

The launchers see meta tensors with the sizes and strides of real ones, so Triton specialises its
arguments as it would there: addresses and numbers that 16 divides, numbers that are 1.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks._compile import Recorder, compile_for
from benchmarks._layers_operands import TORCH_DTYPES
from benchmarks._layers_shapes import Layer, load
from benchmarks._layers_work import DType, workload_of
from dwr_rewrite.kernels import launch, tiles
from dwr_rewrite.kernels.tile import Tile
from dwr_rewrite.workload import DIRECTIONS, LAYOUTS, Direction, Layout, Workload

MULTIPROCESSORS = {90: 132, 80: 108, 100: 148}
"""Of an H100 or H200, an A100, and a B200, by architecture; the first is looked at most closely."""

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that a program may have (CUDA programming guide, compute capabilities)."""

PATIENCE = 60
"""Seconds after which a call is given up."""

DTYPES: tuple[DType, ...] = ("bf16", "fp16", "fp32")
REPRESENTATIVE = (
    "C128m1 k3x3 s1x1 p1x1 d1x1 on 56x56", "C64m1 k3x3 s2x2 p1x1 d1x1 on 112x112",
    "C1024m1 k3x3 s1x1 p1x1 d1x1 on 7x7", "C240m1 k5x5 s1x1 p2x2 d1x1 on 28x28",
    "C144m1 k5x5 s2x2 p2x2 d1x1 on 56x56", "C96m1 k7x7 s1x1 p3x3 d1x1 on 56x56 bias",
    "C64m2 k7x7 s2x2 p3x3 d1x1 on 64x64", "C672m1 k5x5 s1x1 p4x4 d2x2 on 33x33",
    "C128m1 k31x31 s1x1 p15x15 d1x1 on 56x56", "C1536m1 k4 s1 p3 d1 on 2048 bias",
    "C512m1 k9 s1 p4 d1 on 1500 bias", "C1024m1 k31 s1 p15 d1 on 512 bias",
    "TC512m1 k4 s2 p0 d1 on 1500", "C54m1 k3x3x3 s1x1x1 p1x1x1 d1x1x1 on 16x56x56",
    "C108m1 k3x3x3 s1x2x2 p1x1x1 d1x1x1 on 16x56x56",
)  # fmt: skip
"""Layers of the layer table, by their keys: every kind of geometry once."""

TILED = (
    REPRESENTATIVE[0], REPRESENTATIVE[1], REPRESENTATIVE[5], REPRESENTATIVE[8], REPRESENTATIVE[9],
    REPRESENTATIVE[13],
)  # fmt: skip
"""Those of them of which every tile is compiled: 3x3 of stride 1 and 2, 7x7, 31x31, 1-D, 3-D."""

MAIN_DTYPE: DType = "bf16"


@dataclass(frozen=True)
class Case:
    """A call: a layer in one direction, with its tile, for one architecture."""

    layer: Layer
    direction: Direction
    dtype: DType
    layout: Layout
    arch: int
    tile: str
    default: bool
    batch: int = 64


def layers(pattern: str = "") -> list[Layer]:
    """The representative layers, or those of the table whose key contains ``pattern``."""
    if pattern:
        return [layer for layer in load() if pattern in layer.key]
    known = {layer.key: layer for layer in load()}
    return [known[key] for key in REPRESENTATIVE]


def cases(
    chosen: Sequence[Layer], archs: Sequence[int], dtypes: Sequence[DType] = DTYPES,
    tile: str = "", thorough: bool = False,
) -> list[Case]:  # fmt: skip
    """Calls in the tile that they take by themselves, and in those that tuning would try.

    Architectures differ little, and so do tiles of two 16-bit types. So one architecture has all
    dtypes, and a few layers of it all tiles; the others have :data:`MAIN_DTYPE`.

    Args:
        chosen: layers.
        archs: architectures.
        dtypes: of the operands.
        tile: the only one that is compiled, where it is given.
        thorough: leaves nothing out.
    """
    every = [
        Case(layer, direction, dtype, layout, arch, tile, not tile)
        for layer in chosen
        for layout in LAYOUTS[: 1 if len(layer.kernel) == 1 else 2]
        for dtype in dtypes
        for direction in DIRECTIONS
        for arch in archs
        if thorough or arch == archs[0] or dtype == MAIN_DTYPE or len(dtypes) == 1
    ]
    if tile:
        return every
    found: dict[Case, None] = {}
    for case in every:
        main = case.arch == archs[0] and case.dtype == MAIN_DTYPE
        others = thorough or (main and case.layer.key in TILED)
        found |= dict.fromkeys(with_tiles(case, others))
    return list(found)


def with_tiles(case: Case, others: bool) -> list[Case]:
    """The case in its default tile, and in the others that a measurement would try."""
    first, *rest = tiles.candidates(workload(case), MULTIPROCESSORS[case.arch])
    found = [replace(case, tile=str(first))]
    return found + [replace(case, tile=str(tile), default=False) for tile in rest if others]


def workload(case: Case) -> Workload:
    return workload_of(case.layer, case.batch, case.dtype, case.direction, case.layout)


def compiled(case: Case, folder: Path) -> dict[str, Any]:
    """The facts of every kernel that the call launches, or why it failed."""
    recorder = Recorder(folder)
    row: dict[str, Any] = {
        "layer": case.layer.key, "batch": case.batch, "direction": case.direction,
        "dtype": case.dtype, "layout": case.layout, "tile": case.tile, "default": case.default,
        "arch": case.arch,
    }  # fmt: skip
    try:
        compile_for(case.arch)
        with patch.object(launch, "_as_is", recorder), _Patience():
            outputs = _call(case)
    except Exception as error:  # noqa: BLE001  whatever a compiler may raise is the finding
        return {**row, "failed": _told(error)}
    return {**row, "outputs": outputs, "kernels": [
        {"grid": list(grid), **asdict(found)} for grid, found in recorder.launches
    ]}  # fmt: skip


def _told(error: BaseException) -> str:
    """What Triton wraps in errors of its own, each with the code that it was compiling."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return f"{type(error).__name__}: {lines[-1][:200] if lines else 'no message'}"


def _call(case: Case) -> int:
    """Launches it; elements of the result."""
    layer, (problem, *_) = case.layer, tiles.question(workload(case))
    x, y = (_empty(shape, case) for shape in
            (layer.input_shape(case.batch), layer.output_shape(case.batch)))  # fmt: skip
    weight = torch.empty(layer.spec.weight_shape, dtype=x.dtype, device="meta")
    if case.direction == "grad_weight":
        launch.depthwise_weight(x, y, tuple(weight.shape), problem, layer.bias, case.tile)
        return weight.numel()
    read, written = (y, x) if case.direction == "grad_input" else (x, y)
    with_bias = layer.bias and case.direction == "forward"
    bias = weight.new_empty(problem.out_channels) if with_bias else None
    launch.depthwise(read, weight, None, bias, written.shape[2:], problem, "none", case.tile)
    return written.numel()


def _empty(shape: Sequence[int], case: Case) -> Tensor:
    dtype = TORCH_DTYPES[case.dtype]
    if case.layout == "nchw":
        return torch.empty(shape, dtype=dtype, device="meta")
    last = torch.empty((shape[0], *shape[2:], shape[1]), dtype=dtype, device="meta")
    return last.movedim(-1, 1)


class _Patience:
    """Ends what takes longer than :data:`PATIENCE`; in the main thread of a process only."""

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGALRM, self._give_up)
        signal.alarm(PATIENCE)

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.before)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not compiled after {PATIENCE} s")


def per_output(row: dict[str, Any]) -> float | None:
    """Instructions that threads issue for an output; None where code loops, and it is not known.

    Those of the lanes that the last programs have too many are counted too.
    """
    if any(kernel["loop"] for kernel in row["kernels"]):
        return None
    issued = sum(
        sum(kernel["instructions"].values()) * kernel["threads"] * prod(kernel["grid"])
        for kernel in row["kernels"]
    )
    return issued / row["outputs"]


def per_position(row: dict[str, Any]) -> float | None:
    """Instructions for a value of the gradient in the loop of a gradient of the weight."""
    tile, first = Tile.parse(row["tile"]), row["kernels"][0]
    if row["direction"] != "grad_weight" or tile.method != "fma" or not first["loop"]:
        return None
    box = tile.depth * tile.rows * tile.columns
    return first["loop"] * first["threads"] / (tile.channels * tile.positions * box)
