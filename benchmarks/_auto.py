"""What `fx_rewrite` makes of a model by measurement, and what it found out on the way."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks._records import Record
from benchmarks._steps import sampler
from dwr_rewrite.passes.fx.api import perform, record, runtime
from dwr_rewrite.passes.fx.decide import options
from dwr_rewrite.passes.fx.geometry import Forms
from dwr_rewrite.passes.fx.linked import UNDO
from dwr_rewrite.passes.fx.tune.auto import Instruments
from dwr_rewrite.passes.fx.tune.bench import TorchBench
from dwr_rewrite.passes.fx.tune.request import Wish
from dwr_rewrite.passes.fx.tune.settings import AS_GIVEN, Free, possible
from dwr_rewrite.passes.fx.tune.whole import Run, Setting, Work
from dwr_rewrite.planner import AUTO
from dwr_rewrite.timing import Call, Runtime, Timing, measure_all
from models.entry import is_depthwise

DATABASE = "DWR_TUNING_DATABASE"
"""Variable that names the database of single convolutions."""

MAX_GROWTH = 256 << 20
"""Bytes that a packed weight may have more, as ``fx_rewrite`` allows by default."""


@dataclass(frozen=True)
class Tuned:
    """A model as the policy ``auto`` rewrites it.

    Attributes:
        model: with a weight layout and type as before.
        sites: how many of its convolutions have another form.
        setting: the free setting under which that was decided.
        facts: forms, trials and settings, for a record.
    """

    model: nn.Module
    sites: int
    setting: Free
    facts: Record


def rewritten(
    model: nn.Module, work: Work, device: torch.device, budget: float,
    within: Setting, instruments: Instruments,
) -> Tuned:  # fmt: skip
    """Rewrites a copy of a model for the device that it is on, as ``fx_rewrite`` does by default.

    Args:
        model: in the mode in which it is used.
        work: its inputs, and whether it is compiled.
        device: where it is; a CPU is the target here.
        budget: seconds for measuring single convolutions.
        within: the context in which it runs.
        instruments: what measures.
    """
    chosen = options(AUTO, model.training, (), (), MAX_GROWTH)
    wish = Wish(None if device.type == "cuda" else "cpu", budget, compiled=work.compiled)
    with within():
        result = perform(model, work.inputs, chosen, wish, False, instruments)
        name = getattr(runtime(result), "setting", "")
        frees = {f.name: f for f in possible(Run(copy.deepcopy(model), work), device)}
    forms = {site.name: site.form for site in record(result) if site.changed}
    facts = {"sites": len(forms), "forms": forms, "setting": name, **facts_of(runtime(result))}
    return Tuned(result, len(forms), frees.get(name, AS_GIVEN), facts)


def facts_of(timed: Runtime | None) -> Record:
    """The trials and free settings of a rewrite, for a record."""
    if timed is None:
        return {"trials": [], "settings": []}
    return {"trials": [asdict(trial) for trial in timed.trials],
            "settings": [asdict(setting) for setting in timed.settings]}  # fmt: skip


def widths_of(original: nn.Module, other: nn.Module) -> dict[str, Forms]:
    """Group widths that another form of a model gives its depthwise convolutions, by name."""
    names = [name for name, module in original.named_modules() if is_depthwise(module)]
    undo = {name: getattr(other.get_submodule(name), UNDO, None) for name in names}
    return {name: Forms() if each is None else each.forms for name, each in undo.items()}


@contextlib.contextmanager
def remembering(out: Path) -> Generator[None]:
    """Keeps what single convolutions took beside ``out``, unless a database is named already."""
    if DATABASE in os.environ:
        yield
        return
    os.environ[DATABASE] = str(out.with_suffix(".sqlite3"))
    try:
        yield
    finally:
        del os.environ[DATABASE]


def hasty(device: torch.device) -> Instruments:
    """Instruments of ``--quick``, whose times decide nothing: two rounds of everything."""

    def timer(runs: Sequence[Call], seconds: float) -> tuple[Timing, ...]:
        return measure_all([sampler(run, device) for run in runs], rounds=2, warmup=0)

    return Instruments(partial(TorchBench, seconds=0.0), timer, 0.0)
