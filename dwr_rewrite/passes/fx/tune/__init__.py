"""Measures convolutions and whole models with torch, on the device that they are on."""

from __future__ import annotations

from dwr_rewrite.passes.fx.tune.bench import TorchBench

__all__ = ["TorchBench"]
