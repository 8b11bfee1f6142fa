"""Depthwise convolutions, written in the form that a GPU runs best and proved to be the same.

``import dwr_rewrite as dwr``: :func:`onnx_rewrite` rewrites an ONNX model, :func:`fx_rewrite` a
torch model, :func:`restore` undoes either, :func:`verify` compares two models. Importing this
package loads neither onnx nor torch; the first use of a name does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dwr_rewrite import nn
    from dwr_rewrite.errors import DwrError, NotEquivalentError
    from dwr_rewrite.passes.fx.api import fx_rewrite, record, runtime
    from dwr_rewrite.passes.onnx.api import Rewrite, onnx_rewrite
    from dwr_rewrite.report import Report
    from dwr_rewrite.verify_models import verify

__version__ = "0.1.0"

__all__ = [
    "DwrError", "NotEquivalentError", "Report", "Rewrite", "fx_rewrite", "nn", "onnx_rewrite",
    "record", "restore", "runtime", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "nn":
        import dwr_rewrite.nn as module

        return module
    if name in ("DwrError", "NotEquivalentError"):
        from dwr_rewrite import errors as module
    elif name == "Report":
        from dwr_rewrite import report as module
    elif name in ("Rewrite", "onnx_rewrite"):
        from dwr_rewrite.passes.onnx import api as module
    elif name == "verify":
        from dwr_rewrite import verify_models as module
    elif name in ("fx_rewrite", "record", "runtime"):
        from dwr_rewrite.passes.fx import api as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)


def restore(model: Any, *arguments: Any, **options: Any) -> Any:
    """Gives a rewritten model its depthwise convolutions back.

    A torch model goes to :func:`dwr_rewrite.passes.fx.api.restore`, a file or an ONNX model to
    :func:`dwr_rewrite.passes.onnx.api.restore`, with their further arguments.
    """
    torch: Any = sys.modules.get("torch")  # where it is not loaded, the model is not torch's
    if torch is not None and isinstance(model, torch.nn.Module | torch.export.ExportedProgram):
        from dwr_rewrite.passes.fx import api as front
    else:
        from dwr_rewrite.passes.onnx import api as front
    return front.restore(model, *arguments, **options)
