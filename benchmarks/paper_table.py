"""MobileNetV1 as in the paper, trained on today's stack: every form, beside the paper's figure.

`python -m benchmarks.paper_table --out paper.jsonl --shard 0/4 --minutes 8` measures one dtype of
four: batch 64 of 3x224x224, SGD (momentum 0.9, rate 0.01), in float32 without and with TF32 and
under autocast to bfloat16 and float16, in NCHW and channels_last: the 13 depthwise layers alone in
each direction, and the whole training step with its peak memory. `--resume` goes on where a run
ended; `--merge FILE...` writes paper_table.json, paper_table.md and, where matplotlib is,
paper_table.png. Forms: torch's own depthwise convolution (keep), the dense parameter with a mask
that the authors coded (paper), the linked `blocks:32`, and what `fx_rewrite` makes of the network
on this device (plan).
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import _device, _paper, _paper_layers, _paper_report, _run, _steps
from benchmarks._auto import Tuned, hasty, remembering, rewritten, widths_of
from benchmarks._layers_clock import QUICK, Clock, Effort, clock_of
from benchmarks._layers_work import DTYPES, DType, Way
from benchmarks._records import Record
from benchmarks._run import Task, give_up, refusal, still_there
from benchmarks._steps import Training, numbers
from dwr_rewrite import fx_rewrite
from dwr_rewrite.passes.fx.geometry import Forms
from dwr_rewrite.passes.fx.tune.auto import Instruments
from dwr_rewrite.passes.fx.tune.whole import Run, Work
from dwr_rewrite.workload import LAYOUTS, Layout
from models import mobilenet_v1

LINKED, PLAN = "blocks:32", "plan"
FORMS = (
    ("keep", "default"), ("keep", "benchmark"), (_paper.FORM, "benchmark"), (LINKED, "benchmark"),
    (PLAN, "benchmark"),
)  # fmt: skip
"""With ``torch.backends.cudnn.benchmark`` off, as torch comes, and on."""

WAYS = [Way(layout, form, setting=setting) for layout in LAYOUTS for form, setting in FORMS]
STATUS = {torch.OutOfMemoryError: "out of memory"}


@dataclass
class Study:
    """What is measured, and with what.

    Attributes:
        device: where.
        clock: for the layers alone.
        effort: for the layers alone.
        batch: images.
        size: their height and width.
        width: of the network.
        dtypes: of :data:`DTYPES`.
        seconds: for the timing of the steps of one dtype.
        budget: seconds that ``fx_rewrite`` may measure for one plan.
        instruments: what measures steps and plans.
    """

    device: torch.device
    clock: Clock
    effort: Effort
    batch: int = 64
    size: int = 224
    width: float = 1.0
    dtypes: Sequence[DType] = DTYPES
    seconds: float = 60.0
    budget: float = 60.0
    instruments: Instruments = field(default_factory=Instruments)
    plans: dict[tuple[DType, Layout], Tuned] = field(default_factory=dict)

    @property
    def tasks(self) -> list[Task]:
        facts = {"batch": self.batch, "size": self.size}
        parts = {"layers": self.layers, "step": self.steps}
        return [
            Task(f"{part} {dtype}", {"part": part, "dtype": dtype, **facts}, partial(run, dtype))
            for dtype in self.dtypes
            if dtype != "tf32" or self.device.type == "cuda"
            for part, run in parts.items()
        ]

    def batch_of(self, layout: Layout) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, 3, self.size, self.size, generator=generator)
        labels = torch.randint(1000, (self.batch,), generator=generator)
        return _steps.laid_out(x.to(self.device), layout), labels.to(self.device)

    def model(self, layout: Layout) -> nn.Module:
        built = mobilenet_v1.build(width=self.width, size=self.size).train().requires_grad_()
        return _steps.laid_out(built.to(self.device), layout)

    def training(self, model: nn.Module, dtype: DType, way: Way) -> Training:
        return Training(model, *self.batch_of(way.layout), dtype, way.setting)

    def plan(self, dtype: DType, layout: Layout) -> Tuned:
        """The model as ``fx_rewrite`` rewrites it here; measured once for each."""
        if (dtype, layout) not in self.plans:
            x, _ = self.batch_of(layout)
            within = partial(numbers, dtype, "benchmark", self.device)
            work = Work((x,), training=True)
            self.plans[dtype, layout] = rewritten(
                self.model(layout), work, self.device, self.budget, within, self.instruments
            )
        return self.plans[dtype, layout]

    def form(self, dtype: DType, way: Way) -> nn.Module:
        if way.form == PLAN:
            return copy.deepcopy(self.plan(dtype, way.layout).model)
        model = self.model(way.layout)
        if way.form == _paper.FORM:
            return _steps.laid_out(_paper.as_published(model), way.layout)
        if way.form == LINKED:
            return fx_rewrite(model, policy=LINKED, weights="linked", inplace=True)
        return model

    def layers(self, dtype: DType) -> list[Record]:
        ways: dict[Way, Sequence[Forms]] = {}
        found = _paper.layers(self.size, self.width)
        for way in WAYS:
            if way.form in (LINKED, PLAN):
                ways[way] = list(widths_of(self.model("nchw"), self.form(dtype, way)).values())
            else:
                ways[way] = [Forms()] * len(found)
        return _paper_layers.measure(
            found, self.batch, dtype, ways, self.device, self.clock, self.effort
        )

    def steps(self, dtype: DType) -> list[Record]:
        entries: list[Record] = []
        steps: dict[int, Training] = {}
        for way in WAYS:
            entry: Record = {"way": way.name, "layout": way.layout, "form": way.form,
                             "setting": way.setting}  # fmt: skip
            entries.append(entry)
            try:
                steps[len(entries) - 1] = self._begun(dtype, way, entry)
            except RuntimeError as error:
                entry.update(refusal(error, STATUS))
                del error
                still_there(self.device, entries)
        try:
            self._time(entries, steps)
        except RuntimeError as error:
            give_up(entries, error, STATUS, "steps")
            del error
            still_there(self.device, entries)
        return entries

    def _begun(self, dtype: DType, way: Way, entry: Record) -> Training:
        """A training whose first loss is noted, and the peak of a later step."""
        model = self.form(dtype, way)
        step = self.training(model, dtype, way)
        entry["loss"] = float(step())
        if not math.isfinite(entry["loss"]):
            raise RuntimeError(f"the first loss is {entry['loss']}")
        entry["peak_bytes"] = _steps.peak_bytes(step, self.device)
        entry["state_bytes"] = step.state_bytes
        if way.form == PLAN:
            entry["plan"] = self.plan(dtype, way.layout).facts
            original = self.model("nchw")
            entry["widths"] = {n: [*w] for n, w in widths_of(original, model).items()}
        return step

    def _time(self, entries: Sequence[Record], steps: Mapping[int, Training]) -> None:
        if steps:
            runs = [Run(step.model, Work(step=step.on)) for step in steps.values()]
            timings = self.instruments.timer(runs, self.seconds)
            for index, timing in zip(steps, timings, strict=True):
                us = [float(f"{1e6 * each:.5g}") for each in timing.samples]
                entries[index].update(status="timed", us=us)


def measure(study: Study, out: Path, deadline: float, part: str = "0/1") -> str:
    clock = f"layers: {study.clock.replayed}; steps: {_steps.clock_name(study.device)}"
    source = _device.source(_device.everything())
    begun = _device.begin("paper_table", study.device, clock, shard=part, source=source)
    with remembering(out):
        return _run.run(begun, study.tasks, out, deadline)


def merge(paths: Sequence[Path], folder: Path | None = None) -> tuple[str, bool]:
    """Joins result files; the table.

    Raises:
        DamagedError: a file is damaged, or does not belong to the others.
    """
    return _paper_report.write(_run.merge(paths), folder), True


def quick(folder: Path) -> tuple[str, bool]:
    """A narrow network on a few small images, in every way that the device has."""
    device = _device.pick()
    study = Study(
        device, clock_of(device), QUICK, batch=2, size=32, width=0.25, dtypes=("fp32", "bf16"),
        seconds=0.0, budget=0.2, instruments=hasty(device),
    )  # fmt: skip
    told = measure(study, folder / "paper_table.jsonl", math.inf)
    shown, fine = merge([folder / "paper_table.jsonl"], folder)
    return f"{shown}\n{told}", fine


def main() -> None:
    def part(options: argparse.Namespace, deadline: float) -> str:
        device, (index, parts) = _device.pick(), options.shard
        study = Study(device, clock_of(device), Effort(), dtypes=DTYPES[index::parts])
        return measure(study, options.out, deadline, f"{index}/{parts}")

    _run.main(_run.parser("paper_table", __doc__), quick, part, merge)


if __name__ == "__main__":
    main()
