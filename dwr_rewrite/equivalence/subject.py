"""What a front end provides so that its models can be checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from dwr_rewrite.equivalence.evidence import Probe, Proof
from dwr_rewrite.equivalence.samples import Arrays, Declared
from dwr_rewrite.equivalence.statistics import Array
from dwr_rewrite.equivalence.tolerance import Rounding

Observe = Callable[[str, Array], None]
"""Called with the name of a value and the value, which it must not keep."""


@dataclass(frozen=True, slots=True)
class Site:
    """A convolution that is compared by itself.

    Attributes:
        name: where it is.
        value: name of the value that it computes, the same in both models.
        dtype: its element type.
        terms: products in each of its sums, without exact zeros.
        form: in the candidate: ``keep``, ``dense`` or ``blocks:b``.
    """

    name: str
    value: str
    dtype: str
    terms: int
    form: str


@dataclass(frozen=True)
class Evaluation:
    """A run in float64.

    Attributes:
        outputs: by name; floating-point ones in float64.
        peak: largest magnitude at the input of each site that the run reached, by its value's name.
        single_precision: operators that ran in float32 for want of a float64 kernel, sorted.
    """

    outputs: Mapping[str, object]
    peak: Mapping[str, float] = field(default_factory=dict[str, float])
    single_precision: tuple[str, ...] = ()


class Subject(Protocol):
    """A model that can be run.

    Attributes:
        engine: what runs it, for a person.
        declared: what it declares about its inputs, by name, in order.
        outputs: names of its outputs, in order.
    """

    @property
    def engine(self) -> str: ...  # noqa: D102  see the class
    @property
    def declared(self) -> Mapping[str, Declared]: ...  # noqa: D102  see the class
    @property
    def outputs(self) -> Sequence[str]: ...  # noqa: D102  see the class

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs that are tensors, by name, as its engine computes them."""
        ...

    def exact(
        self,
        feeds: Arrays,
        perturb: np.random.Generator | None = None,
        observe: Observe | None = None,
    ) -> Evaluation:
        """The outputs in float64.

        Args:
            feeds: inputs by name, in the model's own element types.
            perturb: source of the signs of rounding errors, which every operator then commits.
            observe: told the value of every site.

        Raises:
            DwrError: nothing evaluates some operator; the message names it.
        """
        ...

    def tap(self, feeds: Arrays, values: Sequence[str], observe: Observe) -> None:
        """Runs it as :meth:`run` does and gives the named values to ``observe``, one by one.

        The model that :meth:`run` uses is not touched.
        """
        ...

    def release(self) -> None:
        """Lets go of what it needs to run; the next run makes it anew."""
        ...


class Pair(Protocol):
    """How two models of one front end correspond.

    Attributes:
        reference: the model that is the truth.
        candidate: the model in question.
        sites: what is compared by itself, from the input on.
        rounding: of the coarser of the two models.
        proof: of what can be told without running them; None where nothing can.
        versions: of the libraries that run them.
        changed: names of the changes that :meth:`hybrid` can apply one by one.
        operators: how many operators the reference has.
        weight_bytes: what its parameters take.
    """

    @property
    def reference(self) -> Subject: ...  # noqa: D102  see the class
    @property
    def candidate(self) -> Subject: ...  # noqa: D102  see the class
    @property
    def sites(self) -> Sequence[Site]: ...  # noqa: D102  see the class
    @property
    def rounding(self) -> Rounding: ...  # noqa: D102  see the class
    @property
    def proof(self) -> Proof | None: ...  # noqa: D102  see the class
    @property
    def versions(self) -> Mapping[str, str]: ...  # noqa: D102  see the class
    @property
    def changed(self) -> Sequence[str]: ...  # noqa: D102  see the class
    @property
    def operators(self) -> int: ...  # noqa: D102  see the class
    @property
    def weight_bytes(self) -> int: ...  # noqa: D102  see the class

    def probes(self) -> Iterable[Probe]:
        """Every site by itself, on one-hot and non-finite channels; stops where it cannot."""
        ...

    def hybrid(self, names: Collection[str]) -> Subject:
        """The reference with only these of the changes.

        Raises:
            DwrError: they cannot be applied.
        """
        ...

    def save_hybrid(self, names: Collection[str], path: Path) -> None:
        """Writes what :meth:`hybrid` gives to a file.

        Raises:
            DwrError: it cannot be written.
        """
        ...
