"""``dwr.verify``: two models of any kind, compared in one call."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dwr_rewrite import __version__
from dwr_rewrite.equivalence.check import Check
from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.equivalence.samples import Arrays
from dwr_rewrite.equivalence.strangers import Renamed, Strangers
from dwr_rewrite.errors import DwrError
from dwr_rewrite.report import Report, Totals

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn
    from torch.export import ExportedProgram

    Model = str | os.PathLike[str] | ModelProto | nn.Module | ExportedProgram


def verify(
    reference: Model,
    candidate: Model,
    inputs: Any = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    timeout: float = 600.0,
    training: int = 0,
    minimal: str | os.PathLike[str] | None = None,
) -> Report:
    """Shows whether two models compute the same function.

    Both run on the same inputs and are compared with a float64 evaluation of the reference.

    Args:
        reference: the original: an ONNX file or model, a torch module, graph module or exported
            program.
        candidate: the model in question, of any of these kinds.
        inputs: for ONNX models real inputs, by name (optional). Where a torch model takes part,
            example arguments of its forward: a tensor, a tuple, or a dict of keyword arguments.
            They fix the shapes; the seeded inputs have the same ones.
        shapes: shapes for inputs of ONNX models with dynamic dimensions.
        seed: of the seeded inputs.
        timeout: seconds that the check may take. Two ONNX models run in a process of their own,
            which is ended then; otherwise no further input is begun.
        training: two torch modules are also compared in training: their gradients, and the loss
            over this many steps of SGD. 0 compares inference only.
        minimal: where to write the smallest model that still fails, if the check does.

    Returns:
        The report; its ``verdict`` is ``equivalent``, ``not equivalent`` or ``not checked``.

    Raises:
        DwrError: the check could not be made.
    """
    models: tuple[Any, Any] = reference, candidate
    kinds = [_is_torch(model) for model in models]
    target = None if minimal is None else Path(minimal)
    settings = Settings(seed=seed, timeout=timeout, minimal=target)
    command = f"dwr.verify({', '.join(map(_name, models))}, ..., {seed=}, {training=})"
    if training and not all(kinds):
        raise DwrError("training compares two torch modules; one of these models is ONNX")
    if not any(kinds):
        return _verify_onnx(models, inputs, shapes or {}, settings, command)
    if inputs is None:
        raise DwrError("a torch model declares no input shapes: give example arguments as inputs")
    from dwr_rewrite.passes.fx.verify import api as torch_api
    from dwr_rewrite.passes.fx.verify.pair import TorchPair
    from dwr_rewrite.passes.fx.verify.training import train

    with ExitStack() as stack:
        pair = TorchPair(*models, inputs) if all(kinds) else _mixed(models, inputs, stack)
        examples = _examples(pair)
        wanted = {name: array.shape for name, array in examples.items()}
        settings = replace(settings, shapes=wanted, given={"given": examples})
        found = Check(pair, settings).run()
        if training and isinstance(pair, TorchPair):
            found = replace(found, training=train(pair, examples, training, seed))
    options = {"seed": seed, "inputs": [*settings.kinds, "given"], "training": training}
    return Report(
        __version__, _name(reference), _name(candidate), options, torch_api.sites(candidate),
        _totals(reference), _totals(candidate), found, kind="verify", command=command,
    ).here()  # fmt: skip


def _examples(pair: Any) -> Arrays:
    """The example arguments, by the reference's names."""
    torch_side = pair.reference if hasattr(pair.reference, "call") else pair.candidate.own
    return dict(zip(pair.reference.declared, torch_side.call.examples.values(), strict=True))


def _is_torch(model: Any) -> bool:
    torch: Any = sys.modules.get("torch")  # where it is not loaded, the model is not torch's
    return torch is not None and isinstance(model, torch.nn.Module | torch.export.ExportedProgram)


def _verify_onnx(
    models: Sequence[Any],
    inputs: Any,
    shapes: Mapping[str, Sequence[int]],
    settings: Settings,
    command: str,
) -> Report:
    from dwr_rewrite.passes.onnx import verify, whole

    if inputs is not None and not isinstance(inputs, Mapping):
        raise DwrError(f"inputs of ONNX models are arrays by name, not a {type(inputs).__name__}")
    given = {name: np.asarray(array) for name, array in (inputs or {}).items()}
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    settings = replace(settings, shapes=wanted, given={"given": given} if given else {})
    reference, candidate = (whole.read(model) for model in models)
    return verify.verify(reference, candidate, settings, command=command)


def _mixed(models: Sequence[Any], inputs: Any, stack: ExitStack) -> Strangers:
    """A torch model and an ONNX one, in either order; both run in this process."""
    from dwr_rewrite.passes.fx.verify import api as torch_api
    from dwr_rewrite.passes.fx.verify.subject import TorchSubject
    from dwr_rewrite.passes.onnx import verify, whole

    subjects: list[Any] = [
        TorchSubject(model, inputs) if _is_torch(model) else verify.subject(model, stack)
        for model in models
    ]
    reference, candidate = subjects
    totals = _totals(models[0])
    return Strangers(
        reference, Renamed(candidate, reference.declared, reference.outputs),
        reference.rounding.coarser(candidate.rounding),
        torch_api.versions() | whole.versions(), totals.nodes, totals.bytes,
    )  # fmt: skip


def _totals(model: Any) -> Totals:
    if _is_torch(model):
        from dwr_rewrite.passes.fx.verify import api as torch_api

        return torch_api.totals(model)
    from dwr_rewrite.passes.onnx import whole

    source = whole.read(model)
    return whole.totals(source.model, source.size(), source.path)


def _name(model: Any) -> str:
    if isinstance(model, str | os.PathLike):
        return repr(os.fspath(model))
    return type(model).__name__
