"""A rewritten convolution: is its weight the diagonal embedding of the reference's?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from dwr_rewrite.equivalence.evidence import Lemma
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.passes.fx.functional import pack, unpack
from dwr_rewrite.passes.fx.geometry import width_of
from dwr_rewrite.passes.fx.verify.same import describe, different
from dwr_rewrite.passes.fx.verify.sites import (
    Place,
    Undo,
    arguments_of,
    is_linked,
    undo_of,
    weight_of,
)
from dwr_rewrite.recipe import Packing


@dataclass(frozen=True)
class Side:
    """A convolution in one of the two models.

    Attributes:
        weight: what it stores; None where the weight is computed.
        groups: what the convolution, or the code that packs its weight, is told.
        undo: what the torch pass did; None where it did nothing.
        linked: whether the weight is packed as it runs.
    """

    weight: Tensor | None
    groups: int
    undo: Undo | None
    linked: bool

    @classmethod
    def of(cls, place: Place) -> Side:
        """A module, or a call in a graph."""
        call = isinstance(place, Node)
        groups = arguments_of(place)["groups"] if call else vars(place)["groups"]
        return cls(weight_of(place), groups, undo_of(place), is_linked(place))

    @property
    def width(self) -> int:
        """Channels per group of the weight that it stores."""
        return width_of(self.undo.forms.forward) if self.undo and not self.linked else 1

    @property
    def by_kernel(self) -> bool:
        """Whether a kernel of ours runs its forward."""
        return self.undo is not None and isinstance(self.undo.forms.forward, str)


def prove(name: str, before: Place, after: Place, others: str = "") -> Lemma:
    """Holds two forms of one convolution against the lemma of the diagonal embedding.

    Args:
        name: of the site.
        before: in the reference; at least one of the two is a form that the torch pass made.
        after: in the candidate.
        others: what else differs at the site; empty for nothing.
    """
    reference, candidate = Side.of(before), Side.of(after)
    form = candidate.undo.form if candidate.undo else "keep"
    weights = "linked" if (candidate if candidate.undo else reference).linked else "precomputed"
    flaw = _flaw(reference, "the reference's") or _flaw(candidate, "its")
    if not flaw and reference.weight is not None and candidate.weight is not None:
        flaw = _apart(_compact(reference), _compact(candidate), candidate.undo or reference.undo)
    if flaw:
        return Lemma(name, form, weights, "refuted", flaw)
    if not others and (reference.weight is None) is not (candidate.weight is None):
        others = "one of the two weights is stored and the other is computed"
    if others:
        return Lemma(name, form, weights, "unproved", others)
    return Lemma(name, form, weights, "proved", _told(candidate))


def _told(side: Side) -> str:
    taken = "convolved by a kernel of ours" if side.by_kernel else "packed as it runs"
    if side.weight is None:
        return f"its weight is computed as before, and {taken}"
    if side.undo is None:
        return "its weight is the reference's compact weight, bit for bit"
    if side.linked:
        return (
            f"its weight {list(side.weight.shape)} is the reference's, bit for bit, and is {taken}"
        )
    return (
        f"the diagonal of its weight {list(side.weight.shape)} is the reference's weight, bit for "
        f"bit, and everything else in it is +0"
    )


def _flaw(side: Side, whose: str) -> str:
    """Why a side is no form of a depthwise convolution; empty if it is one."""
    if side.undo is None or side.weight is None:
        return ""
    channels, widths = side.undo.spec.channels, [width_of(form) for form in side.undo.forms]
    if any(channels % width for width in widths):
        return f"{whose} {channels} channels are not divided by its group widths {widths}"
    packing, groups = _packing(side), channels // side.width
    if side.groups != groups or tuple(side.weight.shape) != packing.packed:
        return (
            f"{whose} weight {list(side.weight.shape)} in {side.groups} groups is not the weight "
            f"{list(packing.packed)} in {groups} groups of its form"
        )
    expected = pack(unpack(side.weight.detach(), packing), packing)
    where = different(expected, side.weight)
    if where is None:
        return ""
    source, target = _channels(side, where)
    return (
        f"{whose} weight is not zero off the diagonal: input channel {source} takes part in output "
        f"channel {target}"
    )


def _apart(reference: Tensor, candidate: Tensor, undo: Undo | None) -> str:
    """How the compact weights differ; empty where they are the same bits."""
    assert undo is not None
    if describe(reference) != describe(candidate):
        return (
            f"its compact weight is {describe(candidate)}, and the reference's is "
            f"{describe(reference)}"
        )
    where = different(reference, candidate)
    if where is None:
        return ""
    index = tuple(where.nonzero()[0].tolist())
    source, target = _channels(Side(reference, undo.spec.channels, undo, linked=True), where)
    return (
        f"its weight is another one: from input channel {source} to output channel {target} it is "
        f"{candidate[index].item():.9g} at {list(index[2:])}, and {reference[index].item():.9g} in "
        f"the reference ({int(where.sum())} of {where.numel()} elements differ)"
    )


def _compact(side: Side) -> Tensor:
    assert side.weight is not None
    weight = side.weight.detach()
    return weight if side.width == 1 else unpack(weight, _packing(side))


def _packing(side: Side) -> Packing:
    assert side.undo is not None
    return diagonal(side.undo.spec, side.width).packing


def _channels(side: Side, where: Tensor) -> tuple[int, int]:
    """Input and output channel of the first element of a stored weight that is marked."""
    assert side.undo is not None
    spec, width = side.undo.spec, side.width
    row, column = where.nonzero()[0].tolist()[:2]
    rows = width if spec.transposed else width * spec.multiplier
    columns = width * spec.multiplier if spec.transposed else width
    found = row, row // rows * columns + column
    return found if spec.transposed else found[::-1]
