"""What ``dwr.verify`` needs to know of torch models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from dwr_rewrite.passes.fx.notes import RECORD, record
from dwr_rewrite.passes.fx.verify.sites import as_module
from dwr_rewrite.report import SiteReport, Totals

Model = nn.Module | ExportedProgram


def totals(model: Model) -> Totals:
    """Modules (nodes of a graph), parameters and buffers of a model, and their bytes."""
    module = as_module(model)
    graph = getattr(module, "graph", None)
    count = len(list(module.modules() if graph is None else graph.nodes))
    tensors = [*module.parameters(), *module.buffers()]
    return Totals(
        count, sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)
    )


def sites(candidate: Any) -> tuple[SiteReport, ...]:
    """What ``fx_rewrite`` noted of a model; nothing of one that it did not make."""
    noted = hasattr(candidate, RECORD) or RECORD in getattr(candidate, "meta", {})
    return tuple(record(candidate)) if noted else ()


def versions() -> dict[str, str]:
    """Of the libraries that run a model."""
    return {"torch": torch.__version__, "numpy": np.__version__}
