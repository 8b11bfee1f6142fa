"""The child process of a verification: ``python -m dwr_rewrite.passes.onnx.worker JOB.json``.

Writes one JSON line for each step to standard output and the outcome to the job's result file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.files import count_nodes
from dwr_rewrite.passes.onnx.float64 import Evaluation, Float64Evaluator
from dwr_rewrite.passes.onnx.weights import dtype_name
from dwr_rewrite.verify import (
    FINITE_MAX,
    KINDS,
    UNIT_ROUNDOFF,
    Case,
    Comparison,
    Rounding,
    compare,
    make_input,
    movement,
)

Array = NDArray[Any]
Arrays = dict[str, Array]

BATCHES = (2, 1)
"""Tried for a dynamic first dimension: two elements show that none leaks into the other."""

LENGTHS = (64, 224, 320, 32, 16, 8, 1, 1000, 16000)
"""Tried for every other dynamic dimension, until the original accepts one."""

DOUBLE = UNIT_ROUNDOFF["float64"]


class NoInput(DwrError):
    """No input could be made that the original accepts."""


class Check:
    """One job: two models, compared on one input after the other."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = job
        self.started = time.monotonic()
        self.rng = np.random.default_rng(job["seed"])
        self.notes: list[str] = []
        self.steps = 0
        self.names = [*KINDS, *(["given"] if job["inputs"] else [])]

    def run(self) -> list[Case]:
        self.step("reading the models")
        self.original = onnx.load(self.job["reference"])
        self.rewritten = onnx.load(self.job["candidate"])
        failure = self.validity()
        if failure:
            return [failed("onnx.checker", "checker", failure)]
        self.sessions: list[Session] = []
        for what, key in (("original", "reference"), ("rewritten model", "candidate")):
            self.step(f"loading the {what} in onnxruntime")
            try:
                self.sessions.append(Session(self.job[key]))
            except Exception as error:  # onnxruntime raises many types
                if self.sessions:
                    return [failed("loading", ENGINE, f"onnxruntime refuses it: {line(error)}")]
                self.notes.append(f"onnxruntime cannot run the original: {line(error)}")
                break
        self.types = {site["output"]: site["dtype"] for site in self.job["sites"]}
        self.rounding = Rounding.of(self.types.values())
        self.truth = self.evaluator(self.original, self.types)
        self.double = self.evaluator(self.rewritten, ()) if self.truth else None
        return list(self.cases())

    def step(self, what: str) -> None:
        """Tells the parent what is going on."""
        total = 3 + len(self.names)
        print(json.dumps({"done": self.steps, "total": total, "what": what}), flush=True)
        self.steps += 1

    def validity(self) -> str:
        """Why the rewritten model is invalid although the original is not; empty otherwise."""
        for what, key in (("original", "reference"), ("rewritten", "candidate")):
            try:
                onnx.checker.check_model(self.job[key], full_check=True)
            except Exception as error:  # checker, inference and protobuf errors
                if what == "rewritten":
                    return f"onnx.checker refuses it: {line(error)}"
                self.notes.append(f"onnx.checker refuses the original: {line(error)}")
                return ""
        return ""

    def evaluator(self, model: ModelProto, sites: Collection[str]) -> Float64Evaluator | None:
        try:
            return Float64Evaluator(model, self.rounding, sites)
        except Exception as error:  # whatever an unknown operator makes onnx.reference raise
            self.notes.append(f"no float64 evaluation: {line(error)}")
            return None

    def cases(self) -> Iterator[Case]:
        """The comparisons, as far as the time budget reaches; at least one input."""
        longest = 0.0
        shapes = self.find_shapes()
        for count, name in enumerate(self.names):
            began = time.monotonic()
            if count and began - self.started + longest > self.job["budget"]:
                left = ", ".join(self.names[count:])
                self.notes.append(f"out of time before these inputs were compared: {left}")
                return
            self.step(f"running the input {name!r}")
            feeds = self.feeds(name, shapes)
            if count == 0 and not self.is_deterministic(feeds):
                yield Case(name, ENGINE, skipped="the original gives two results for one input")
                return
            yield from self.compare_on(name, feeds, with_double=count == 0)
            longest = max(longest, time.monotonic() - began)

    def compare_on(self, name: str, feeds: Arrays, with_double: bool) -> Iterator[Case]:
        truth = self.evaluate(self.truth, feeds)
        moved = self.movements(truth, feeds)
        overflow = self.overflow(truth)
        if overflow:
            yield Case(name, "float64", skipped=overflow)
            return
        if truth and self.double and (with_double or not self.sessions):
            rewritten = self.evaluate(self.double, feeds)
            if rewritten:
                yield Case(name, "float64", self.in_double(truth, rewritten, moved))
        if not self.sessions:
            return
        results = [session(feeds) for session in self.sessions]
        before, after = results
        if before.keys() != after.keys():
            yield failed(name, ENGINE, f"outputs {list(before)} became {list(after)}")
            return
        exact, slack = (truth.outputs, 0.0) if truth else (before, self.blind_slack())
        yield Case(name, ENGINE, tuple(
            compare(key, before[key], after[key], exact[key], moved.get(key, 0.0), slack)
            for key in before
        ))  # fmt: skip

    def evaluate(self, evaluator: Float64Evaluator | None, feeds: Arrays) -> Evaluation | None:
        if evaluator is None:
            return None
        try:
            result = evaluator.run(feeds)
        except Exception as error:  # an operator that nothing evaluates in float64
            self.notes.append(f"no float64 evaluation: {line(error)}")
            self.truth = self.double = None
            return None
        if result.single_precision:
            note = f"evaluated in float32 for want of a float64 kernel: {', '.join(result.single_precision)}"
            if note not in self.notes:
                self.notes.append(note)
        return result

    def movements(self, truth: Evaluation | None, feeds: Arrays) -> dict[str, float]:
        """How far rounding at the sites moves each output; more samples for few elements."""
        if truth is None or self.truth is None:
            return {}
        fewest = min((a.size for a in truth.outputs.values()), default=1)
        samples = min(8, max(2, -(-64 // max(1, fewest))))
        moved = [self.truth.run(feeds, perturb=self.rng).outputs for _ in range(samples)]
        return {
            key: movement(exact, [outputs[key] for outputs in moved])
            for key, exact in truth.outputs.items()
        }

    def overflow(self, truth: Evaluation | None) -> str:
        """Says so where the input drives an activation of the original past its type's range."""
        for output, peak in (truth.peak if truth else {}).items():
            if not peak <= FINITE_MAX[self.types[output]]:
                return f"its activations overflow {self.types[output]} before {output!r}"
        return ""

    def in_double(
        self, truth: Evaluation, rewritten: Evaluation, moved: Mapping[str, float]
    ) -> tuple[Comparison, ...]:
        """Both graphs in float64: the algebra alone.

        Rounding in float64 is smaller than in the model's own type by the ratio of the unit
        roundoffs; every operator may in addition round what has moved differently.
        """
        ratio = DOUBLE / self.rounding.accumulate
        mixed = truth.single_precision or rewritten.single_precision
        slack = count_nodes(self.original) * (UNIT_ROUNDOFF["float32"] if mixed else DOUBLE)
        return tuple(
            compare(key, exact, rewritten.outputs[key], exact, moved[key] * ratio, slack)
            for key, exact in truth.outputs.items()
        )

    def blind_slack(self) -> float:
        """Without a float64 evaluation: one first-order bound for every site, added up."""
        return sum(self.rounding.gamma(s["taps"] + 1) + self.rounding.store for s in self.job["sites"])

    def find_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes for all inputs that the original accepts; dynamic lengths are tried in turn."""
        dynamic = any(
            not length for name, (_, shape) in self.signature().items()
            for length in self.job["shapes"].get(name, shape)
        )  # fmt: skip
        error: Exception | None = None
        for batch, length in product(BATCHES, LENGTHS) if dynamic else [(1, 1)]:
            shapes = self.shapes(batch, length)
            try:
                self.run_original(self.feeds("normal", shapes))
            except Exception as raised:  # a length that the network cannot take
                error = error or raised
                continue
            return shapes
        given = ", ".join(f"{n}:{'x'.join(map(str, s))}" for n, (_, s) in self.signature().items())
        raise NoInput(
            f"the original runs on no input that was tried ({line(error)}); its inputs are "
            f"{given.replace('None', '?')}: give --shape for dynamic dimensions, or real data with --input"
        )

    def run_original(self, feeds: Arrays) -> Arrays:
        if self.sessions:
            return self.sessions[0](feeds)
        return self.truth.run(feeds).outputs if self.truth else {}

    def is_deterministic(self, feeds: Arrays) -> bool:
        one, two = self.run_original(feeds), self.run_original(feeds)
        return all(one[key].tobytes() == two[key].tobytes() for key in one)

    def signature(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """Element type and shape of every input that has to be fed."""
        stored = {tensor.name for tensor in self.original.graph.initializer}
        signature: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        for value in self.original.graph.input:
            if value.name in stored:
                continue
            if not value.type.HasField("tensor_type"):
                raise NoInput(f"the input {value.name!r} is no tensor, and only tensors can be made")
            tensor = value.type.tensor_type
            shape = tuple(d.dim_value or None for d in tensor.shape.dim)
            signature[value.name] = dtype_name(tensor.elem_type), shape
        return signature

    def shapes(self, batch: int, length: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (_, shape) in self.signature().items():
            wanted = self.job["shapes"].get(name)
            if wanted is not None and (len(wanted) != len(shape) or any(
                n not in (None, w) for n, w in zip(shape, wanted, strict=True)
            )):  # fmt: skip
                found = "x".join("?" if n is None else str(n) for n in shape)
                raise NoInput(f"--shape {name}:{'x'.join(map(str, wanted))} does not fit the input, "
                              f"which is {found}")  # fmt: skip
            shapes[name] = tuple(wanted or (
                n or (batch if axis == 0 else length) for axis, n in enumerate(shape)
            ))  # fmt: skip
        return shapes

    def feeds(self, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        """Seeded inputs; for ``given`` the real ones, and seeded ones for the rest."""
        feeds: Arrays = {}
        for name, (dtype, _) in self.signature().items():
            if name in self.job["inputs"] and (kind == "given" or dtype == "str"):
                feeds[name] = np.load(self.job["inputs"][name], allow_pickle=False)
            else:
                seeded = "normal" if kind == "given" else kind
                feeds[name] = make_input(seeded, dtype, shapes[name], self.rng)
        return feeds


class Session:
    """A model in onnxruntime on the CPU, whose float32 arithmetic is IEEE's."""

    def __init__(self, path: str) -> None:
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, feeds: Arrays) -> Arrays:
        results = self.session.run(self.names, feeds)
        return {k: v for k, v in zip(self.names, results, strict=True) if isinstance(v, np.ndarray)}


ENGINE = "onnxruntime CPU"


def failed(name: str, engine: str, reason: str) -> Case:
    """A case that fails for another cause than an error's size."""
    nan = float("nan")
    return Case(name, engine, (Comparison("", nan, nan, nan, 0.0, nan, reason),))


def line(error: BaseException | None) -> str:
    """The first line of an exception's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def main(path: str) -> None:
    """Runs the job and writes its outcome."""
    job = json.loads(Path(path).read_text())
    check = Check(job)
    outcome: dict[str, Any] = {"usage": ""}
    try:
        cases = check.run()
    except NoInput as error:
        cases, outcome["usage"] = [], str(error)
    outcome |= {
        "cases": [asdict(case) for case in cases],
        "notes": check.notes,
        "versions": {"onnxruntime": ort.__version__, "onnx": onnx.__version__, "numpy": np.__version__},
    }
    Path(job["result"]).write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(sys.argv[1])
