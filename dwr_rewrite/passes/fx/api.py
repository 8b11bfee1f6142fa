"""``dwr.fx_rewrite``: one call for modules, traced graphs and exported programs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx import attributes, exported, graph, modules
from dwr_rewrite.passes.fx.decide import FormPolicy, Options, options
from dwr_rewrite.passes.fx.observe import functional_calls
from dwr_rewrite.report import SiteReport

RECORD = "_dwr_record"
"""Attribute of a rewritten model: its site reports."""

Model = TypeVar("Model", nn.Module, GraphModule, ExportedProgram)


def fx_rewrite(
    model: Model,
    example_inputs: Sequence[Any] | None = None,
    *,
    policy: FormPolicy = "blocks:32",
    weights: Literal["precomputed", "linked"] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_growth: int = 256 << 20,
    inplace: bool = False,
) -> Model:
    """Rewrites the depthwise convolutions of a torch model as diagonal standard convolutions.

    Args:
        model: a module (rewritten where it is, without tracing), a traced GraphModule, or an
            ExportedProgram.
        example_inputs: positional arguments on which a module is run once after the rewrite, in
            eval mode, so that depthwise convolutions which its code calls as functions are
            reported too. Without them only its modules are seen.
        policy: ``blocks:N``, ``dense`` or ``keep``; or a mapping with one of them for each of
            ``forward``, ``grad_input`` and ``grad_weight`` (linked weights only; default keep).
        weights: ``precomputed`` stores diagonal weights in ordinary convolutions; ``linked`` keeps
            the compact parameters, their names and their gradients. By default linked in training
            mode and precomputed in eval mode and for exported programs.
        include: only sites whose name one of these regular expressions finds.
        exclude: no site whose name one of these finds.
        max_growth: bytes that one packed weight may have more than its compact one.
        inplace: change ``model`` itself and return it.

    Returns:
        The same kind of model. :func:`record` tells what was done to it.

    Raises:
        DwrError: an argument is wrong.
    """
    if weights not in (None, "precomputed", "linked"):
        raise DwrError(f"weights {weights!r}: precomputed, linked or None expected")
    given: Any = model
    if not isinstance(given, nn.Module | ExportedProgram):
        raise DwrError(
            f"a torch.nn.Module, GraphModule or ExportedProgram expected, not "
            f"{type(given).__name__}"
        )
    training = isinstance(given, nn.Module) and given.training
    linked = weights == "linked" or (weights is None and training)
    chosen = options(policy, linked, include, exclude, max_growth)
    result: Any = model if inplace else _copy(model)
    reports = list(_rewrite(result, chosen))
    if example_inputs is not None and not isinstance(given, ExportedProgram):
        reports += functional_calls(result, example_inputs, (site.name for site in reports))
    _note(result, reports)
    return result


def _copy(model: Model) -> Model:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # the old weight_norm keeps a tensor that torch does not copy
        raise DwrError(f"the model cannot be copied: {error}; pass inplace=True") from error


def _note(model: Any, reports: list[SiteReport]) -> None:
    setattr(model, RECORD, reports)
    if isinstance(model, GraphModule):  # a copy of one keeps its meta and none of its attributes
        model.meta[RECORD] = reports


def _rewrite(model: nn.Module | ExportedProgram, chosen: Options) -> Iterator[SiteReport]:
    if isinstance(model, ExportedProgram):
        yield from exported.rewrite(model, chosen)
        return
    yield from modules.rewrite(model, chosen, attributes.tensors_read(model))
    yield from graph.rewrite(model, chosen)


def record(model: nn.Module | ExportedProgram) -> list[SiteReport]:
    """What :func:`fx_rewrite` decided for every convolution that it saw in ``model``.

    Raises:
        DwrError: the model was not rewritten.
    """
    noted = model.meta.get(RECORD) if isinstance(model, GraphModule) else None
    reports = getattr(model, RECORD, noted)
    if reports is None:
        raise DwrError("this model does not come from dwr.fx_rewrite")
    return list(reports)


def restore(model: Model, *, inplace: bool = False) -> Model:
    """Gives a rewritten torch model its depthwise convolutions back.

    Args:
        model: what :func:`fx_rewrite` returned, possibly trained since.
        inplace: change ``model`` itself and return it.
    """
    result: Any = model if inplace else _copy(model)
    _note(result, list(_restore(result)))
    return result


def _restore(model: nn.Module | ExportedProgram) -> Iterator[SiteReport]:
    if isinstance(model, ExportedProgram):
        yield from exported.restore(model)
        return
    yield from modules.restore(model)
    yield from graph.restore(model)
