"""Every rewritten convolution by itself in onnxruntime, on one-hot and on non-finite channels.

Zeros must stay zeros: what stands alone in one channel may reach that channel's own outputs only.
It is run in float32, whatever the type of the weights: what is asked is which channels meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Literal

import numpy as np
from onnx import ModelProto

from dwr_rewrite.equivalence.evidence import Probe, Reach
from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.equivalence.subject import Site
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.definitions import Definitions, Place
from dwr_rewrite.passes.onnx.graphs import quiet
from dwr_rewrite.passes.onnx.lone import Floats, Lone
from dwr_rewrite.passes.onnx.match import CONVOLUTIONS

BUDGET = 1 << 29
"""Multiply-adds that the candidate may take for the one-hot channels of one site."""

BATCH_ELEMENTS = 1 << 24
"""Numbers that the input or output of one run may have (64 MiB)."""

KEPT = 10
"""Leaks that are listed."""


def probes(reference: ModelProto, candidate: ModelProto, sites: Iterable[Site]) -> Iterator[Probe]:
    """Probes the sites whose weight or group is another one in the candidate.

    A site is left out where its weight is only known when the model runs.

    Args:
        reference: the original.
        candidate: the model in question, which computes the same values under the same names.
        sites: convolutions, by the values that they compute.

    Raises:
        DwrError: a model cannot be read, or a tensor of it; or onnxruntime does not run a site.
    """
    with quiet():
        before, after = Definitions(reference), Definitions(candidate)
    for site in sites:
        one, other = _lone(before, site), _lone(after, site)
        if one is None or other is None:
            continue
        try:
            found = _probe(site, one, other)
        except Exception as error:  # onnxruntime raises many types
            what = f"onnxruntime does not run {site.name!r} by itself"
            raise DwrError(f"{what}: {first_line(error)}") from error
        if found is not None:
            yield found


def _lone(definitions: Definitions, site: Site) -> Lone | None:
    """The convolution that computes a site's value; bodies may use one name for several."""
    found = [
        place
        for scope in definitions.scopes
        if isinstance(place := definitions.own(scope, site.value), Place)
        and (place.node.domain, place.node.op_type) in CONVOLUTIONS
        and site.name.startswith(scope.path)
    ]
    innermost = max(found, key=lambda place: len(place.scope.path), default=None)
    with quiet():
        return None if innermost is None else Lone.of(innermost)


def _comparable(reference: Lone, candidate: Lone) -> bool:
    """Whether they take the same channels to the same channels, in another way."""
    same = reference.group == candidate.group and np.array_equal(
        reference.weight, candidate.weight, equal_nan=True
    )
    forms = [(lone.channels, len(lone.extent), lone.transposed) for lone in (reference, candidate)]
    return not same and forms[0] == forms[1]


def _probe(site: Site, reference: Lone, candidate: Lone) -> Probe | None:
    if not _comparable(reference, candidate):
        return None
    bench = _Bench(reference, candidate)
    channels, outputs = bench.channels
    count = min(channels, max(1, BUDGET // bench.cost))
    chosen = np.linspace(0, channels - 1, count).astype(int)
    rng = np.random.default_rng(0)
    leaks, leaking = list[tuple[int, int]](), 0
    for part in np.array_split(chosen, -(-count // bench.batch)):
        x = np.zeros((len(part), channels, *bench.spatial), np.float32)
        x[np.arange(len(part)), part] = _nonzero(rng, (len(part), *bench.spatial))
        before, after = bench.run(x)
        leaked = np.argwhere((after != 0).any(-1) & (before == 0).all(-1))
        leaks += [(int(part[i]), int(output)) for i, output in leaked[: KEPT - len(leaks)]]
        leaking += len(leaked)
    reach = tuple(_reach(value, bench, rng) for value in ("Inf", "NaN"))
    return Probe(site.name, site.form, channels, outputs, count, tuple(leaks), leaking, reach)


def _reach(value: Literal["Inf", "NaN"], bench: _Bench, rng: np.random.Generator) -> Reach:
    """One non-finite channel among finite ones."""
    channels, _ = bench.channels
    x = _nonzero(rng, (1, channels, *bench.spatial))
    x[:, channels // 2] = float(value)
    reached = (int((~np.isfinite(y)).any(-1).sum()) for y in bench.run(x))
    return Reach(value, channels // 2, *reached)


def _nonzero(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Of either sign and a size of at least 1: its product with a number is never a zero."""
    size = rng.uniform(1, 2, shape)
    return np.where(rng.random(shape) < 0.5, -size, size).astype(np.float32)


class _Bench:
    """Two convolutions and an input size at which every tap of both meets an element."""

    def __init__(self, reference: Lone, candidate: Lone) -> None:
        """Loads both in onnxruntime."""
        self.pair = reference, candidate
        self.sessions = [lone.session() for lone in self.pair]
        self.channels = reference.channels
        extent = tuple(map(max, reference.extent, candidate.extent))
        self.spatial = (1,) * len(extent) if reference.transposed else extent
        self.cost = candidate.weight.size
        self.batch = max(1, BATCH_ELEMENTS // (max(self.channels) * prod(extent)))

    def run(self, x: Floats) -> tuple[Floats, Floats]:
        """The results of both, [N, M, positions]."""
        before, after = (
            np.asarray(session.run(None, {"x": x, "w": lone.weight})[0])
            for lone, session in zip(self.pair, self.sessions, strict=True)
        )
        shape = len(x), self.channels[1], -1
        return before.reshape(shape), after.reshape(shape)
