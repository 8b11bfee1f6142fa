"""What a verification costs beside running the model: time and memory.

`python -m benchmarks.verify_cost` verifies MobileNetV2 of 224 x 224 against its rewritten form, and
a network with 1 GiB of weights, and compares with a process that only loads the reference in
onnxruntime and runs it on as many inputs. Peaks are sampled sums over a process and its children.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from benchmarks import _measure
from dwr_rewrite import __version__
from dwr_rewrite.equivalence.samples import KINDS
from models.export import export
from models.zoo import ZOO

LIBRARIES = ("numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "torch", "transformers")
INTERVAL = 0.02
"""Seconds between two looks at the memory."""

OWN_RUN = """
import sys
import numpy as np
import onnxruntime
path, shape, runs = sys.argv[1], [int(n) for n in sys.argv[2].split("x")], int(sys.argv[3])
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
for seed in range(runs):
    x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    session.run(None, {name: x})
"""


@dataclass(frozen=True)
class Cost:
    """Wall seconds and peak bytes of a process with its children."""

    seconds: float
    peak: int


@dataclass(frozen=True)
class Subject:
    """A model, its rewritten form and the shape of its input."""

    name: str
    reference: Path
    candidate: Path
    shape: str


def cost(command: Sequence[str]) -> Cost:
    """Runs a command to its end."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, cwd=_measure.ROOT, stdout=subprocess.DEVNULL) as child:  # noqa: S603  our own
        process, done = psutil.Process(child.pid), threading.Event()

        def look() -> None:
            nonlocal peak
            while not done.wait(INTERVAL):
                peak = max(peak, _resident(process))

        thread = threading.Thread(target=look)
        thread.start()
        code = child.wait()
        done.set()
        thread.join()
    if code:
        raise RuntimeError(f"{' '.join(command[:4])} ended with exit code {code}")
    return Cost(time.perf_counter() - start, peak)


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def gigabyte(path: Path, blocks: int, channels: int) -> None:
    """Blocks of depthwise 3x3, pointwise (C x C) and ReLU."""
    rng, nodes, stored, value = np.random.default_rng(0), [], [], "x"
    for index in range(blocks):
        for kind, inputs, kernel in (("dw", 1, 3), ("pw", channels, 1)):
            name, shape = f"{kind}{index}", (channels, inputs, kernel, kernel)
            weight = rng.standard_normal(shape, dtype=np.float32) / (inputs * kernel**2) ** 0.5
            stored.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.weight"))
            nodes.append(helper.make_node(
                "Conv", [value, f"{name}.weight"], [name], name=name, pads=[kernel // 2] * 4,
                kernel_shape=[kernel, kernel], group=channels // inputs,
            ))  # fmt: skip
            value = name
        nodes.append(helper.make_node("Relu", [value], [f"relu{index}"], name=f"relu{index}"))
        value = f"relu{index}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 14, 14])
        for name in ("x", value)
    ]
    graph = helper.make_graph(nodes, "gigabyte", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def prepare(folder: Path, quick: bool) -> list[Subject]:
    """Writes the models and their rewritten forms."""
    small = folder / "mobilenet_v2.onnx"
    size = 64 if quick else 224
    export(replace(ZOO["hf_mobilenet_v2"], shapes=((1, 3, size, size),)), small)
    large = folder / "gigabyte.onnx"
    _measure.in_child(gigabyte, large, 2 if quick else 16, 256 if quick else 4096)
    shapes = {small: f"2x3x{size}x{size}", large: f"1x{256 if quick else 4096}x14x14"}
    subjects: list[Subject] = []
    for path, shape in shapes.items():
        fast = path.with_suffix(".fast.onnx")
        cost([*_measure.entry_point("dwr_rewrite.cli.rewrite:main"), str(path), "-o", str(fast),
              "--policy", "blocks:32", "--no-verify", "--freeze-weights"])  # fmt: skip
        subjects.append(Subject(path.stem, path, fast, shape))
    return subjects


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verify_cost", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small models; writes nothing")
    options = parser.parse_args()
    console, facts, results = Console(), _measure.host(), dict[str, Any]()
    runs = len(KINDS) + 1
    table = Table("model", "run s", "verify s", "ratio", "run MiB", "verify MiB", "ratio")
    with tempfile.TemporaryDirectory() as folder:
        for subject in prepare(Path(folder), options.quick):
            own = cost([sys.executable, "-c", OWN_RUN, str(subject.reference), subject.shape,
                        str(runs)])  # fmt: skip
            ours = cost([*_measure.entry_point("dwr_rewrite.cli.verify:main"),
                         str(subject.reference), str(subject.candidate)])  # fmt: skip
            table.add_row(
                subject.name, f"{own.seconds:.1f}", f"{ours.seconds:.1f}",
                f"{ours.seconds / own.seconds:.2f}", f"{own.peak / 2**20:.0f}",
                f"{ours.peak / 2**20:.0f}", f"{ours.peak / own.peak:.2f}",
            )  # fmt: skip
            results[subject.name] = {"inputs": runs, "own": asdict(own), "verify": asdict(ours)}
    console.print(table)
    if options.quick:
        return
    header = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": facts,
        "versions": {"dwr-rewrite": __version__, **_measure.versions(*LIBRARIES)},
    }
    console.print(f"written: {_measure.write('verify_cost', facts, header | {'costs': results})}")


if __name__ == "__main__":
    main()
