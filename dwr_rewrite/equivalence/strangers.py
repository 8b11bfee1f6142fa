"""Two models of different front ends: only their inputs and outputs correspond, by position."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from dwr_rewrite.equivalence.evidence import Probe, Proof
from dwr_rewrite.equivalence.samples import Arrays, Declared
from dwr_rewrite.equivalence.subject import Evaluation, Observe, Site, Subject
from dwr_rewrite.equivalence.tolerance import Rounding
from dwr_rewrite.errors import DwrError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Renamed:
    """A model with the names of another one's inputs and outputs.

    Attributes:
        own: the model.
        declared: what is declared of the inputs, by the other one's names.
        outputs: the other one's names.

    Raises:
        DwrError: they are not as many.
    """

    own: Subject
    declared: Mapping[str, Declared]
    outputs: Sequence[str]

    def __post_init__(self) -> None:
        """Checks that every name has its partner."""
        for what, ours, theirs in (
            ("inputs", list(self.declared), list(self.own.declared)),
            ("outputs", list(self.outputs), list(self.own.outputs)),
        ):
            if len(ours) != len(theirs):
                raise DwrError(
                    f"the reference has {len(ours)} {what} ({', '.join(ours)}), the candidate "
                    f"{len(theirs)} ({', '.join(theirs)}): they cannot be matched by position"
                )

    @property
    def engine(self) -> str:
        """What runs the model."""
        return self.own.engine

    def run(self, feeds: Arrays) -> Arrays:
        """See :class:`Subject`."""
        return self._renamed(self.own.run(self._feeds(feeds)))

    def exact(
        self,
        feeds: Arrays,
        perturb: np.random.Generator | None = None,
        observe: Observe | None = None,
    ) -> Evaluation:
        """See :class:`Subject`."""
        found = self.own.exact(self._feeds(feeds), perturb, observe)
        return Evaluation(self._renamed(found.outputs), found.peak, found.single_precision)

    def tap(self, feeds: Arrays, values: Sequence[str], observe: Observe) -> None:
        """See :class:`Subject`."""
        self.own.tap(self._feeds(feeds), values, observe)

    def release(self) -> None:
        """See :class:`Subject`."""
        self.own.release()

    def _feeds(self, feeds: Arrays) -> Arrays:
        return {
            theirs: feeds[ours]
            for ours, theirs in zip(self.declared, self.own.declared, strict=True)
        }

    def _renamed(self, outputs: Mapping[str, Value]) -> dict[str, Value]:
        return {
            ours: outputs[theirs]
            for ours, theirs in zip(self.outputs, self.own.outputs, strict=True)
            if theirs in outputs
        }


@dataclass(frozen=True)
class Strangers:
    """A pair of which nothing is known but the outputs; see :class:`Pair`."""

    reference: Subject
    candidate: Subject
    rounding: Rounding
    versions: Mapping[str, str]
    operators: int
    weight_bytes: int
    sites: Sequence[Site] = ()
    proof: Proof | None = None
    changed: Sequence[str] = ()

    def probes(self) -> Iterable[Probe]:
        """None: no site is known."""
        return ()

    def hybrid(self, names: Collection[str]) -> Subject:
        """Not possible.

        Raises:
            DwrError: always.
        """
        raise DwrError("models of different front ends have no parts in common")

    def save_hybrid(self, names: Collection[str], path: Path) -> None:
        """Not possible.

        Raises:
            DwrError: always.
        """
        self.hybrid(names)
