"""What is measured, in which order, and how it is shared out.

A group is what is timed together, interleaved: one layer, batch, dtype and direction, in every way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks._layers_shapes import Layer
from dwr_rewrite.kernels import tiles
from dwr_rewrite.lowerings import KERNEL, is_kernel
from dwr_rewrite.lowerings.blocks import group_width
from dwr_rewrite.workload import DIRECTIONS, LAYOUTS, Direction, Layout, Workload

DType = Literal["bf16", "tf32", "fp16", "fp32"]
DTYPES: tuple[DType, ...] = ("bf16", "tf32", "fp16", "fp32")
"""tf32: float32 tensors with TF32 on, as torch has it by default for convolutions; fp32: off."""

NAMES = {"bf16": "bfloat16", "fp16": "float16", "tf32": "float32", "fp32": "float32"}
"""What the product calls them."""

FIRST: tuple[DType, ...] = ("bf16", "tf32")
"""What a network is trained in today, and what it gets that asks for nothing."""

BATCHES = (64, 1, 8)
WIDTHS = (8, 16, 32, 64)
KEPT = ("default", "benchmark", "cudnn")
"""Settings in which the depthwise convolution is timed: as torch comes, with
``torch.backends.cudnn.benchmark``, and with cuDNN forced."""

COMPILED = ("default", "compile", "max-autotune")


@dataclass(frozen=True)
class Kernels:
    """That our own kernels are timed too.

    Attributes:
        multiprocessors: of the device that their work is cut for.
        tiles: most candidates in each layout, the kernels' own choice among them; 1 or more.
    """

    multiprocessors: int
    tiles: int


@dataclass(frozen=True)
class Group:
    """``compiled``: torch.compile beside the default; otherwise every form beside it."""

    layer: Layer
    batch: int
    dtype: DType
    direction: Direction
    compiled: bool = False
    kernels: Kernels | None = None

    @property
    def key(self) -> str:
        kind = "compiled" if self.compiled else "eager"
        return f"{self.layer.key} | n{self.batch} {self.dtype} {self.direction} {kind}"


@dataclass(frozen=True)
class Way:
    """One way to run a group's convolution.

    ``precomputed``: the packed weight is stored, as for inference; otherwise it is packed from the
    compact one in every call, as in training.
    """

    layout: Layout
    form: str = "keep"
    width: int = 1
    setting: str = "default"
    precomputed: bool = False

    @property
    def name(self) -> str:
        words = (self.layout, self.form, self.setting)
        return " ".join((*words, "precomputed") if self.precomputed else words)

    @property
    def is_kernel(self) -> bool:
        """Whether it is our own kernel."""
        return is_kernel(self.form)

    @property
    def tile(self) -> str:
        """Of our own kernel; empty for the one that it takes by itself."""
        return self.form.partition(":")[2]


def forms(channels: int) -> dict[str, int]:
    """Group width of each rewritten form that this number of channels has; dense first."""
    found = {"dense": channels}
    for asked in WIDTHS:
        width = group_width(channels, asked)
        if width is not None:
            found[f"blocks:{asked}"] = width
    return found


def ways(group: Group) -> dict[Way, Way | None]:
    """Every way, and for one that is the same convolution as another, that other."""
    found: dict[Way, Way | None] = {}
    for layout in LAYOUTS:
        for setting in COMPILED if group.compiled else KEPT:
            found[Way(layout, setting=setting)] = None
        if group.kernels is not None:
            found |= _kernels(group, layout, group.kernels)
        if group.compiled:
            continue
        stored = (True, False) if group.direction == "forward" else (False,)
        for precomputed in stored:
            first: dict[int, Way] = {}
            for form, width in forms(group.layer.channels).items():
                way = Way(layout, form, width, "benchmark", precomputed)
                found[way] = first.get(width)
                first.setdefault(width, way)
    return found


def _kernels(group: Group, layout: Layout, asked: Kernels) -> dict[Way, Way | None]:
    """Our kernels in a layout: with torch.compile only as they come, otherwise in other tiles."""
    own = Way(layout, KERNEL)
    found: dict[Way, Way | None] = {own: None}
    if group.compiled:
        return found
    workload = workload_of(group.layer, group.batch, group.dtype, group.direction, layout)
    first, *others = tiles.candidates(workload, asked.multiprocessors)[: asked.tiles]
    found[Way(layout, f"{KERNEL}:{first}")] = own
    return found | {Way(layout, f"{KERNEL}:{tile}"): None for tile in others}


def workload_of(
    layer: Layer, batch: int, dtype: DType, direction: Direction, layout: Layout
) -> Workload:
    """What the product calls this; nothing is packed."""
    spec = replace(layer.spec, dtype=NAMES[dtype])
    return Workload(spec, batch, direction, layout, stored=direction == "forward")


def order_of_work(
    layers: Sequence[Layer],
    dtypes: Sequence[str] = DTYPES,
    batches: Sequence[int] = BATCHES,
    compiled: bool = True,
    first: Sequence[str] = FIRST,
    kernels: Kernels | None = None,
) -> list[Group]:
    """All groups, the most telling first: one batch and the ``first`` dtypes of every layer."""
    groups = [
        Group(layer, batch, dtype, direction, kind, kernels)
        for kind in ((False, True) if compiled else (False,))
        for batch in BATCHES
        if batch in batches
        for layer in layers
        for dtype in DTYPES
        if dtype in dtypes
        for direction in DIRECTIONS
    ]
    return sorted(groups, key=lambda group: _turn(group, first))  # stable


def _turn(group: Group, first: Sequence[str]) -> int:
    """Round of work: compiling takes seconds, so most of it comes last."""
    large, common = group.batch == BATCHES[0], group.dtype in first
    if group.compiled:
        return 2 if large and common else 6
    if common:
        return {64: 0, 1: 1}.get(group.batch, 4)
    return 3 if large else 5


def shard(groups: Sequence[Group], part: int, parts: int) -> list[Group]:
    """The groups of every ``parts``-th layer: a layer's figures come from one run."""
    turns = {key: turn for turn, key in enumerate(dict.fromkeys(g.layer.key for g in groups))}
    return [group for group in groups if turns[group.layer.key] % parts == part]
