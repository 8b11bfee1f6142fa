"""The ONNX front end: match, plan and emit on onnx-graphsurgeon, checked with onnxruntime."""

from __future__ import annotations

from dwr_rewrite.passes.onnx.api import Rewrite, onnx_rewrite, restore
from dwr_rewrite.passes.onnx.rewrite import Options

__all__ = ["Options", "Rewrite", "onnx_rewrite", "restore"]
