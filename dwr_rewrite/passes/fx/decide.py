"""From a convolution's tensors to its forms: the policy, applied to each direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dwr_rewrite import cost
from dwr_rewrite.errors import DwrError, Rejection
from dwr_rewrite.lowerings import form_of
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.passes.fx.calls import Signature, as_tuple, padding_of
from dwr_rewrite.passes.fx.geometry import Form, Forms, entry, width_of
from dwr_rewrite.planner import AUTO, Chooser, Policy, Selection
from dwr_rewrite.recipe import Kernel
from dwr_rewrite.report import SiteReport
from dwr_rewrite.spec import DTYPES, ConvSpec, Pads, Same
from dwr_rewrite.workload import DIRECTIONS

FormPolicy = str | Mapping[str, str]
"""``auto``, ``blocks:N``, ``dense``, ``keep``, ``kernel``; or a form for each of ``DIRECTIONS``."""


@dataclass(frozen=True)
class Options:
    """What the torch pass is asked to do.

    Attributes:
        choosers: one for each direction; the same plan three times, or policies.
        linked: keep the compact weight as the parameter.
        selection: the sites that may be touched.
        max_growth: bytes that one packed weight may have more than the compact one.
    """

    choosers: tuple[Chooser, Chooser, Chooser]
    linked: bool
    selection: Selection
    max_growth: int

    @property
    def is_kernel(self) -> bool:
        """Whether the policy for the forward is a kernel of ours: then no weight is packed."""
        forward = self.choosers[0]
        return isinstance(forward, Policy) and forward.is_kernel

    def by(self, chooser: Chooser) -> Options:
        """The same with one that chooses for all directions."""
        return replace(self, choosers=(chooser, chooser, chooser))


def options(
    policy: FormPolicy,
    linked: bool,
    include: Sequence[str],
    exclude: Sequence[str],
    max_growth: int,
) -> Options:
    """Reads the arguments of ``fx_rewrite``.

    Raises:
        DwrError: one of them cannot be read.
    """
    if type(max_growth) is not int or max_growth < 0:
        raise DwrError(f"max_growth {max_growth!r}: a number of bytes expected")
    return Options(
        _policies("keep" if policy == AUTO else policy),  # which is not known yet
        linked,
        Selection.parse(include, exclude),
        max_growth,
    )


def _policies(policy: FormPolicy) -> tuple[Policy, Policy, Policy]:
    given: Any = policy
    texts: Mapping[Any, Any] = (
        given if isinstance(given, Mapping) else dict.fromkeys(DIRECTIONS, given)
    )
    for name, text in texts.items():
        if name not in DIRECTIONS:
            raise DwrError(f"policy for {name!r}: {', '.join(DIRECTIONS)} expected")
        if not isinstance(text, str):
            raise DwrError(f"policy {text!r}: a text such as 'blocks:32', or a mapping with one "
                           f"for each of {', '.join(DIRECTIONS)}, expected")  # fmt: skip
        if text == AUTO:
            raise DwrError(f"policy 'auto' for {name!r}: it is for all directions at once, as "
                           f"policy='auto'")  # fmt: skip
    forms: dict[str, str] = {**dict.fromkeys(DIRECTIONS, "keep"), **texts}
    forward, grad_input, grad_weight = (Policy.parse(forms[name]) for name in DIRECTIONS)
    return forward, grad_input, grad_weight


@dataclass(frozen=True)
class Chosen:
    """A decided site."""

    spec: ConvSpec
    forms: Forms
    report: SiteReport


def inspect(
    weight: Tensor,
    groups: int,
    stride: Sequence[int],
    padding: Pads | Same,
    dilation: Sequence[int],
    *,
    transposed: bool,
    output_padding: Sequence[int] = (),
    bias: bool,
) -> ConvSpec | Rejection | None:
    """The geometry of a depthwise convolution; None for a standard one (groups = 1).

    Args:
        weight: [M, C/groups, k...]; [C, M/groups, k...] when transposed. Only its shape and dtype
            are read.
        groups: as torch has it.
        stride: step along each axis.
        padding: (before, after) along each axis.
        dilation: distance between taps along each axis.
        transposed: a transposed convolution.
        output_padding: its extra output length.
        bias: whether a bias is added.
    """
    if groups == 1:
        return None
    shape, dtype = tuple(weight.shape), str(weight.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        return Rejection("weight-type", f"its weight is {dtype}; {', '.join(DTYPES)} expected")
    width = shape[0] // groups if transposed else shape[1]
    if width != 1:
        return Rejection("grouped", f"an ordinary grouped convolution: {width} input channels in "
                         f"each of {groups} groups")  # fmt: skip
    if set(shape[2:]) == {1}:
        return Rejection("pointwise", "a 1x1 kernel only scales each channel")
    return ConvSpec(
        channels=groups,
        multiplier=shape[1] if transposed else shape[0] // groups,
        kernel=shape[2:],
        stride=tuple(stride),
        padding=padding,
        dilation=tuple(dilation),
        transposed=transposed,
        output_padding=tuple(output_padding) if transposed else (),
        bias=bias,
        dtype=dtype,
    )


def spec_of(
    signature: Signature, arguments: Mapping[str, Any], weight: Tensor
) -> ConvSpec | Rejection | None:
    """:func:`inspect` of a call with these arguments and a weight of this shape."""
    rank = weight.dim() - 2
    return inspect(
        weight,
        arguments["groups"],
        as_tuple(arguments["stride"], rank),
        padding_of(arguments["padding"], rank),
        as_tuple(arguments["dilation"], rank),
        transposed=signature.transposed or arguments.get("transposed", False),
        output_padding=as_tuple(arguments.get("output_padding", 0), rank),
        bias=arguments["bias"] is not None,
    )


def choose(name: str, op: str, spec: ConvSpec, chosen: Options, linked: bool) -> Chosen | Rejection:
    """The forms that the policies give a site, or why it is kept.

    A site whose forward is a kernel is linked, whatever was asked for: it packs no weight.
    """
    excluded = chosen.selection.reject(name)
    if excluded is not None:
        return excluded
    forms: list[Form] = []
    kept: list[Rejection] = []
    compact = linked
    for direction, chooser in zip(DIRECTIONS, chosen.choosers, strict=True):
        if direction != "forward" and not compact:
            break
        recipe = chooser.recipe(name, spec, direction)
        if isinstance(recipe, Rejection):
            kept.append(recipe)
            forms.append(1)
            continue
        growth = recipe.packing.growth * DTYPES[spec.dtype]
        if growth > chosen.max_growth:
            return Rejection("over-budget", f"its weight would grow by {growth} bytes, more than "
                             f"max_growth={chosen.max_growth}")  # fmt: skip
        forms.append(entry(recipe))
        compact = compact or isinstance(recipe.conv, Kernel)
    if set(forms) == {1}:
        return next((why for why in kept if why.code != "policy-keep"), kept[0])
    found = Forms(*forms)
    widest = max(map(width_of, found))
    growth = (widest - 1) * spec.out_channels * spec.taps * DTYPES[spec.dtype]
    macs = (cost.macs(spec), cost.macs(spec, width_of(found.forward)))
    report = SiteReport(
        name, op, _form(spec, found, linked), spec=spec,
        weights="linked" if compact else "precomputed", growth=growth, macs=macs,
    )  # fmt: skip
    return Chosen(spec, found, report)


def _form(spec: ConvSpec, forms: Forms, linked: bool) -> str:
    """``blocks:32``; or the form of each direction where they differ."""
    names = [_name(spec, form) for form in forms]
    if not linked or len(set(names)) == 1:
        return names[0]
    return ",".join(f"{d}={n}" for d, n in zip(DIRECTIONS, names, strict=True))


def _name(spec: ConvSpec, form: Form) -> str:
    if isinstance(form, str):
        return form
    return form_of(diagonal(spec, form))


def left(name: str, op: str, reason: Rejection, spec: ConvSpec | None = None) -> SiteReport:
    """The report of a site that is kept."""
    return SiteReport(name, op, "keep", reason=reason, spec=spec)
