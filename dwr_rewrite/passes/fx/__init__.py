"""The torch front end: modules in place, traced graphs, exported programs."""

from __future__ import annotations

from dwr_rewrite.passes.fx.api import fx_rewrite, record, restore, runtime, survey
from dwr_rewrite.passes.fx.backend import DepthwisePass
from dwr_rewrite.passes.fx.geometry import Forms

__all__ = [
    "DepthwisePass", "Forms", "fx_rewrite", "record", "restore", "runtime", "survey",
]  # fmt: skip
