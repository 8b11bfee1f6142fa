"""Which kernels of our own a device is asked about."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files

from dwr_rewrite.errors import Rejection
from dwr_rewrite.kernels import tiles
from dwr_rewrite.lowerings import KERNEL, kernel
from dwr_rewrite.planner.auto import Kernels, no_kernels
from dwr_rewrite.tuning import Device
from dwr_rewrite.workload import Workload

FACT = "kernels"
"""Fact of a device on which our kernels run: :func:`digest` of those that were measured there."""


@cache
def digest() -> str:
    """Of the kernels' sources: a kernel that was changed since is measured anew."""
    found = sha256()
    for source in sorted(files("dwr_rewrite.kernels").iterdir(), key=lambda each: each.name):
        if source.name.endswith(".py"):
            found.update(source.name.encode() + b"\0" + source.read_bytes())
    return found.hexdigest()[:16]


def asked_of(device: Device) -> Kernels:
    """The kernels that are worth a measurement on a device; none where these do not run."""
    if device.facts.get(FACT) != digest():
        return no_kernels
    multiprocessors = int(device.facts["multiprocessors"])

    def forms(workload: Workload) -> tuple[str, ...]:
        if isinstance(kernel.lower(workload.spec), Rejection):
            return ()
        found = tiles.candidates(workload, multiprocessors)
        return tuple(f"{KERNEL}:{tile}" for tile in found)

    return forms


def heuristic(workload: Workload) -> tuple[str, ...]:
    """The :data:`Kernels` of a cost model, which does not tell one tile from another."""
    return () if isinstance(kernel.lower(workload.spec), Rejection) else (KERNEL,)
