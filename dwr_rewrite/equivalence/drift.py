"""Errors at every site, from the input on: where a difference begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dwr_rewrite.equivalence.evidence import Tap
from dwr_rewrite.equivalence.samples import Arrays
from dwr_rewrite.equivalence.statistics import Array, errors, largest
from dwr_rewrite.equivalence.subject import Site, Subject


class Drift:
    """Compares the value of every site with the float64 truth.

    Both models put their values on disk, and the float64 evaluation is compared with them as it
    goes: no more than one site is held at a time.

    Args:
        sites: from the input on.
        folder: an empty folder.
    """

    def __init__(self, sites: Sequence[Site], folder: Path) -> None:
        """Nothing is run yet."""
        self.sites, self.folder = sites, folder
        self._depths = {site.value: depth for depth, site in enumerate(sites)}
        self._found: dict[int, Tap] = {}

    def record(self, role: str, subject: Subject, feeds: Arrays) -> None:
        """Puts the values of the ``reference`` or the ``candidate`` on disk."""

        def save(value: str, array: Array) -> None:
            path = self._path(role, value)
            if not path.exists():  # a loop's body passes more than once: the first time counts
                np.save(path, np.asarray(array, np.float64))

        subject.tap(feeds, list(self._depths), save)

    def observe(self, value: str, truth: Array) -> None:
        """Takes one value of the float64 evaluation."""
        depth = self._depths.get(value)
        if depth is None or depth in self._found:
            return
        paths = [self._path(role, value) for role in ("reference", "candidate")]
        if not all(path.exists() for path in paths):
            return
        values = [np.load(path) for path in paths]
        if any(array.shape != truth.shape for array in values):
            return
        finite = np.isfinite(truth) & np.isfinite(values[0]) & np.isfinite(values[1])
        site, exact = self.sites[depth], truth[finite]
        self._found[depth] = Tap(
            site.name, value, depth, tuple(truth.shape), largest(np.abs(exact)),
            errors(values[0][finite], exact, site.dtype),
            errors(values[1][finite], exact, site.dtype),
        )  # fmt: skip
        for path in paths:
            path.unlink()

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What was found, from the input on."""
        return tuple(self._found[depth] for depth in sorted(self._found))

    def _path(self, role: str, value: str) -> Path:
        return self.folder / f"{role}-{self._depths[value]}.npy"
