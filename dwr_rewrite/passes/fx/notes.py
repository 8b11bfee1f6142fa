"""What a rewrite noted about a model, on the model itself."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from dwr_rewrite.errors import DwrError
from dwr_rewrite.report import SiteReport
from dwr_rewrite.timing import Runtime

RECORD = "_dwr_record"
"""Attribute of a rewritten model: its site reports."""

RUNTIME = "_dwr_runtime"
"""Attribute of a rewritten model: what was timed."""


def note(model: Any, reports: list[SiteReport], timed: Runtime | None = None) -> None:
    """Keeps both on the model."""
    noted = {RECORD: reports, RUNTIME: timed}
    for key, value in noted.items():
        setattr(model, key, value)
    if isinstance(model, GraphModule):  # a copy of one keeps its meta and none of its attributes
        model.meta.update(noted)


def _noted(model: Any, key: str) -> Any:
    kept = model.meta.get(key) if isinstance(model, GraphModule) else None
    return getattr(model, key, kept)


def record(model: nn.Module | ExportedProgram) -> list[SiteReport]:
    """What ``fx_rewrite`` decided for every convolution that it saw in ``model``.

    Raises:
        DwrError: the model was not rewritten.
    """
    reports = _noted(model, RECORD)
    if reports is None:
        raise DwrError("this model does not come from dwr.fx_rewrite")
    return list(reports)


def runtime(model: nn.Module | ExportedProgram) -> Runtime | None:
    """What was timed when ``fx_rewrite`` made ``model``; None where nothing was."""
    return _noted(model, RUNTIME)
