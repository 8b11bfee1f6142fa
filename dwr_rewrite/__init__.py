"""Depthwise convolutions, written in the form that a GPU runs best and proved to be the same."""

from __future__ import annotations

__version__ = "0.1.0"
