"""Choosing by time: what a model asks of a device, and onnxruntime as the device that answers."""

from __future__ import annotations

from dwr_rewrite.passes.onnx.tune.bench import OnnxBench
from dwr_rewrite.passes.onnx.tune.survey import survey

__all__ = ["OnnxBench", "survey"]
