"""Chooses a form for every site. Knows shapes, bytes and times only, and nothing that measures."""

from __future__ import annotations

from dwr_rewrite.planner.choice import Choice, Option
from dwr_rewrite.planner.decision import Decision, decide, format_bytes
from dwr_rewrite.planner.plan import Basis, Plan
from dwr_rewrite.planner.policy import AUTO, Chooser, Policy, Selection
from dwr_rewrite.planner.settle import Attempt, Settled, settle

__all__ = [
    "AUTO", "Attempt", "Basis", "Choice", "Chooser", "Decision", "Option", "Plan", "Policy",
    "Selection", "Settled", "decide", "format_bytes", "settle",
]  # fmt: skip
