"""What a form costs: its arithmetic, its bytes, and the time that a model expects of it."""

from __future__ import annotations

from dwr_rewrite.cost.model import Model, load_model
from dwr_rewrite.cost.target import Target, find_target, targets
from dwr_rewrite.cost.work import Work, macs, work_of

__all__ = ["Model", "Target", "Work", "find_target", "load_model", "macs", "targets", "work_of"]
