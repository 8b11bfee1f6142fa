"""Depthwise convolutions, written in the form that a GPU runs best and proved to be the same.

``import dwr_rewrite as dwr``: :func:`onnx_rewrite` rewrites an ONNX model, :func:`restore` undoes
it. Importing this package loads neither onnx nor torch; the first use of a name does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dwr_rewrite.errors import DwrError, NotEquivalentError
    from dwr_rewrite.passes.onnx.api import Rewrite, onnx_rewrite, restore
    from dwr_rewrite.report import Report

__version__ = "0.1.0"

__all__ = ["DwrError", "NotEquivalentError", "Report", "Rewrite", "onnx_rewrite", "restore"]


def __getattr__(name: str) -> Any:
    if name in ("DwrError", "NotEquivalentError"):
        from dwr_rewrite import errors as module
    elif name == "Report":
        from dwr_rewrite import report as module
    elif name in ("Rewrite", "onnx_rewrite", "restore"):
        from dwr_rewrite.passes.onnx import api as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
