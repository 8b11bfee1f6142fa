"""A network in onnxruntime: as it is, and as `onnx_rewrite` makes it, under the same setting."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks._auto import facts_of
from benchmarks._models_torch import ORIGINAL, REWRITTEN, Asked
from benchmarks._records import Record
from benchmarks._run import refusal
from dwr_rewrite.errors import DwrError

if TYPE_CHECKING:
    from dwr_rewrite.timing import Paired, Timing

NEEDED = ("onnxruntime", "onnx_graphsurgeon", "onnxscript")
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


class MissingError(Exception):
    """onnxruntime cannot run it here; the message says what is missing."""


@dataclass(frozen=True)
class Onnx:
    """onnxruntime on a device.

    Attributes:
        device: where: CUDA's provider, or the one for the CPU.
        budget: seconds that ``onnx_rewrite`` may measure single convolutions.
        seconds: for timing the two models.
        min_speedup: how many times faster the whole model has to be.
    """

    device: torch.device
    budget: float
    seconds: float
    min_speedup: float = 1.02

    def __call__(self, asked: Asked) -> list[Record]:
        """An entry for the original and one for the rewritten model, or why there are none."""
        try:
            check(self.device.type)
            with tempfile.TemporaryDirectory() as folder:
                return self._timed(asked, Path(folder))
        except (MissingError, DwrError, RuntimeError, ValueError) as error:
            known = {MissingError: "unsupported"}
            return [{"way": ORIGINAL, "role": ORIGINAL, **refusal(error, known)}]

    def _timed(self, asked: Asked, folder: Path) -> list[Record]:
        from dwr_rewrite import onnx_rewrite
        from dwr_rewrite.equivalence.plan import Settings
        from dwr_rewrite.passes.onnx.runtime import time_models
        from models.export import export

        path, fast = folder / "original.onnx", folder / "rewritten.onnx"
        export(asked.network, path)
        names, shapes = asked.network.input_names, asked.network.shapes
        sizes = {
            name: (asked.batch * shape[0], *shape[1:])
            for name, shape in zip(names, shapes, strict=True)
        }
        report = onnx_rewrite(
            path, fast, provider=self.device.type, shapes=sizes, budget=self.budget,
            min_speedup=self.min_speedup, verify=False,
        ).report  # fmt: skip
        setting = report.runtime.setting if report.runtime else ""
        result = time_models(
            path, fast, Settings(shapes=sizes), provider=self.device.type,
            provider_options=options_of(setting), budget=self.seconds,
        )  # fmt: skip
        plan = {"sites": len(report.changed), "notes": list(report.notes),
                "provider": str(result.provider), "device": str(result.device),
                **facts_of(report.runtime)}  # fmt: skip
        return entries_of(setting, result.pair, plan)


def entries_of(setting: str, pair: Paired, plan: Record) -> list[Record]:
    """What was timed of a network and of what was made of it; the same network, if it was kept."""
    original: Record = {"way": f"{ORIGINAL}, {setting or 'as given'}", "role": ORIGINAL,
                        "setting": setting, **_samples(pair.reference)}  # fmt: skip
    ours: Record = {"way": REWRITTEN, "role": REWRITTEN, "setting": setting, "plan": plan}
    same = {"status": "same", "same_as": original["way"]}
    return [original, ours | (_samples(pair.candidate) if plan["sites"] else same)]


def check(kind: str) -> None:
    """Whether onnxruntime can run networks here.

    Raises:
        MissingError: it cannot.
    """
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingError(f"{', '.join(missing)} not installed")
    import onnxruntime

    found = onnxruntime.get_available_providers()
    if PROVIDERS[kind] not in found:
        raise MissingError(f"this onnxruntime has no {PROVIDERS[kind]}, only {', '.join(found)}")


def options_of(setting: str) -> Mapping[str, str]:
    """The provider's options behind the name of a free setting."""
    return dict([setting.split("=", 1)]) if setting else {}


def _samples(timing: Timing) -> Record:
    return {"status": "timed", "us": [float(f"{1e6 * each:.5g}") for each in timing.samples]}
