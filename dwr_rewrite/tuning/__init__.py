"""Measuring the forms of convolutions, remembering the answers, and sharing the work out.

Knows neither torch nor onnxruntime: a :class:`Bench` measures.
"""

from __future__ import annotations

from dwr_rewrite.tuning.bench import Answer, Bench, Device, Question

__all__ = ["Answer", "Bench", "Device", "Question"]
