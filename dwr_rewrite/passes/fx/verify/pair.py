"""Two torch models as a :class:`~dwr_rewrite.equivalence.subject.Pair`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from dwr_rewrite.equivalence.evidence import Probe
from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.equivalence.subject import Site
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.verify.compare import compare_modules
from dwr_rewrite.passes.fx.verify.hybrid import hybrid
from dwr_rewrite.passes.fx.verify.probe import probe
from dwr_rewrite.passes.fx.verify.running import site_of
from dwr_rewrite.passes.fx.verify.sites import (
    Place,
    convolution_of,
    convolutions,
    undo_of,
)
from dwr_rewrite.passes.fx.verify.subject import Shelf, TorchSubject


class TorchPair:
    """Two modules, graph modules or exported programs.

    The sites are the convolutions that the torch pass rewrote in either model, and where there are
    none the depthwise convolutions of the reference that the candidate has under the same name.

    Args:
        reference: the model that is the truth; it stays as it is.
        candidate: the model in question; it stays as it is.
        examples: arguments for both, as :class:`~dwr_rewrite.passes.fx.verify.subject.TorchSubject`
            takes them.

    Attributes:
        places: where each convolution that is compared is in the two models, by its name.

    Raises:
        DwrError: the reference does not run on the examples.
    """

    def __init__(
        self,
        reference: nn.Module | ExportedProgram,
        candidate: nn.Module | ExportedProgram,
        examples: Any,
    ) -> None:
        """Runs both once, and compares them without running them."""
        shelf: Shelf = {}
        self._examples = examples
        self.reference = TorchSubject(reference, examples, shelf)
        names = list(self.reference.declared)
        self.candidate = TorchSubject(candidate, examples, shelf, names, required=False)
        self.rounding = self.reference.rounding.coarser(self.candidate.rounding)
        self.places = _places(self.reference.model, self.candidate.model)
        for subject in (self.reference, self.candidate):
            subject.rounding, subject.sites = self.rounding, self.places.keys()
        self.sites: Sequence[Site] = list(self._sites())
        models = self.reference.model, self.candidate.model
        alike = isinstance(models[0], GraphModule) is isinstance(models[1], GraphModule)
        findings = compare_modules(*models) if alike else None
        self.proof = findings.proof if findings else None
        self.changed: Sequence[str] = findings.changed if findings else ()
        self.operators = self.reference.operators
        tensors = (*models[0].parameters(), *models[0].buffers())
        self.weight_bytes = sum(t.numel() * t.element_size() for t in tensors)
        self.versions: Mapping[str, str] = {"torch": torch.__version__, "numpy": np.__version__}

    def _sites(self) -> Iterator[Site]:
        """One for each call of a convolution that both models make, as the reference runs them."""
        for value, dtype in self.reference.values.items():
            name = site_of(value)
            if name not in self.places or value not in self.candidate.values:
                continue
            before, after = self.places[name]
            yield Site(value, value, dtype, _terms(before, after), _form(after))

    def probes(self) -> Iterator[Probe]:
        """Every site by itself, on one-hot and non-finite channels.

        A site whose weight is computed as the model runs is left out.
        """
        for name, places in self.places.items():
            found = probe(name, _form(places[1]), *(convolution_of(place) for place in places))
            if found is not None:
                yield found

    def hybrid(self, names: Collection[str]) -> TorchSubject:
        """The reference with only these of the changes.

        Args:
            names: some of :attr:`changed`.

        Raises:
            DwrError: they cannot be made alone.
        """
        model = hybrid(self.reference.model, self.candidate.model, names)
        subject = TorchSubject(model, self._examples)
        subject.rounding = self.rounding
        return subject

    def save_hybrid(self, names: Collection[str], path: Path) -> None:
        """Writes what :meth:`hybrid` gives with ``torch.save``.

        ``torch.load(path, weights_only=False)`` reads it where the classes of the model can be
        imported.

        Args:
            names: some of :attr:`changed`.
            path: of the file.

        Raises:
            DwrError: it cannot be pickled.
        """
        model = hybrid(self.reference.model, self.candidate.model, names)
        try:
            torch.save(model, path)
        except Exception as error:
            raise DwrError(f"the model cannot be pickled: {first_line(error)}") from error


def _places(reference: nn.Module, candidate: nn.Module) -> dict[str, tuple[Place, Place]]:
    """The sites, by name."""
    before, after = dict(convolutions(reference)), dict(convolutions(candidate))
    both = {name: (before[name], after[name]) for name in before if name in after}
    rewritten = {
        name: places for name, places in both.items() if any(undo_of(place) for place in places)
    }
    return rewritten or {
        name: places
        for name, places in both.items()
        if (alone := convolution_of(places[0])) is not None and alone.is_depthwise
    }


def _terms(*places: Place) -> int:
    """Products in one sum: one for each tap."""
    for place in places:
        undo = undo_of(place)
        if undo is not None:
            return undo.spec.taps
    alone = convolution_of(places[0])
    assert alone is not None  # else it would not be a site
    return prod(alone.kernel)


def _form(place: Place) -> str:
    undo = undo_of(place)
    if undo is not None:
        return undo.form
    alone = convolution_of(place)
    return "keep" if alone is None else alone.form
