"""The depthwise layers of MobileNetV1 alone: each direction of all of them in a row, every way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import _paper
from benchmarks._layers_calls import Call, call_of
from benchmarks._layers_check import WrongError, poison, reference
from benchmarks._layers_clock import Clock, Effort, interleave, warm
from benchmarks._layers_cudnn import settings
from benchmarks._layers_operands import Operands, operands
from benchmarks._layers_shapes import Layer
from benchmarks._layers_work import DType, Group, Way
from benchmarks._records import Record
from benchmarks._run import give_up, refusal, still_there
from dwr_rewrite.passes.fx.functional import unpack
from dwr_rewrite.passes.fx.geometry import Forms
from dwr_rewrite.workload import DIRECTIONS, Direction

STATUS = {WrongError: "wrong", torch.OutOfMemoryError: "out of memory"}


def name(way: Way, direction: Direction) -> str:
    return f"{way.name} {direction}"


@torch.no_grad()
def measure(
    layers: Sequence[Layer], batch: int, dtype: DType, ways: Mapping[Way, Sequence[Forms]],
    device: torch.device, clock: Clock, effort: Effort,
) -> list[Record]:  # fmt: skip
    """An entry for every way and direction; one call is a row of all layers.

    At batch 64 the operands of a row are larger than any cache.

    Args:
        layers: in the order of the model.
        batch: images.
        dtype: of operands and products.
        ways: with the group widths that each gives the layers.
        device: where.
        clock: by what.
        effort: how long.
    """
    clock.start()
    entries: list[Record] = []
    samplers: dict[int, Callable[[], float]] = {}
    for direction in DIRECTIONS:
        groups = [Group(layer, batch, dtype, direction) for layer in layers]
        given = {layout: [operands(group, layout, 1, device) for group in groups]
                 for layout in dict.fromkeys(way.layout for way in ways)}  # fmt: skip
        for way, widths in ways.items():
            entry: Record = {"way": name(way, direction), "layout": way.layout, "form": way.form,
                             "setting": way.setting, "direction": direction}  # fmt: skip
            entries.append(entry)
            try:
                with settings(dtype, way.setting):
                    row = _row(way, groups, given[way.layout], widths)
                    calls = effort.calls(min(clock.once(row) for _ in range(2)), 1)
                    samplers[len(entries) - 1] = clock.sampler(row, calls)
            except (RuntimeError, WrongError) as error:
                entry.update(refusal(error, STATUS))
                del error
                still_there(device, entries)
    try:
        for sampler in samplers.values():
            warm(sampler, effort.warm)
        samples = interleave(list(samplers.values()), effort.rounds[0])
        for index, found in zip(samplers, samples, strict=True):
            entries[index].update(status="timed", us=[float(f"{value:.5g}") for value in found])
    except RuntimeError as error:
        give_up(entries, error, STATUS, "layers")
        del error
        still_there(device, entries)
    return entries


def _row(
    way: Way, groups: Sequence[Group], given: Sequence[Operands], widths: Sequence[Forms]
) -> Callable[[int], Any]:
    """Runs every layer once; each has been held against float64.

    Raises:
        WrongError: a layer computes something else.
    """
    calls = [
        _checked(way, group, operands, getattr(width, group.direction))
        for group, operands, width in zip(groups, given, widths, strict=True)
    ]
    return lambda i: [call(i) for call in calls]


def _checked(way: Way, group: Group, given: Operands, width: int) -> Call:
    expected = reference(group, given)
    if way.form == _paper.FORM:
        call = _paper.call_of(group, given)
    else:
        call = call_of(group, Way(way.layout, way.form, width), given, 1)
    poison(expected.result.to(given.weight.dtype))
    expected.check(_compact(way, group, call(0)))
    return call


def _compact(way: Way, group: Group, result: Tensor) -> Tensor:
    """The authors' gradient of the weight is as large as their weight."""
    if way.form != _paper.FORM or group.direction != "grad_weight":
        return result
    channels = group.layer.channels
    packing = group.layer.geometry.packing(channels // _paper.groups_of(channels))
    return unpack(result, packing)
