"""The child process of a verification: ``python -m dwr_rewrite.passes.onnx.worker JOB.json``.

Writes one JSON line for each step to standard output and the outcome to the job's result file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto

from dwr_rewrite.passes.onnx.files import count_nodes
from dwr_rewrite.passes.onnx.float64 import Evaluation, Float64Evaluator
from dwr_rewrite.passes.onnx.inputs import Arrays, InputError, Inputs, Shapes
from dwr_rewrite.verify import (
    FINITE_MAX,
    KINDS,
    UNIT_ROUNDOFF,
    Case,
    Comparison,
    Rounding,
    compare,
    movement,
)

DOUBLE = UNIT_ROUNDOFF["float64"]


class Check:
    """One job: two models, compared on one input after the other."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        """Takes the job as the parent process wrote it."""
        self.job = job
        self.started = time.monotonic()
        self.rng = np.random.default_rng(job["seed"])
        self.notes: list[str] = []
        self.steps = 0
        self.names = [*KINDS, *(["given"] if job["inputs"] else [])]

    def run(self) -> list[Case]:
        """Every comparison; a single failed one where the rewritten model does not load."""
        self.step("reading the models")
        self.original = onnx.load(self.job["reference"])
        self.rewritten = onnx.load(self.job["candidate"])
        given = {n: np.load(file, allow_pickle=False) for n, file in self.job["inputs"].items()}
        shapes = {name: tuple(shape) for name, shape in self.job["shapes"].items()}
        self.inputs = Inputs(self.original, shapes, given)
        failure = self.validity() or self.outputs_differ()
        if failure:
            return [failed("onnx.checker", "checker", failure)]
        self.sessions: list[Session] = []
        for what, key in (("original", "reference"), ("rewritten model", "candidate")):
            self.step(f"loading the {what} in onnxruntime")
            try:
                self.sessions.append(Session(self.job[key]))
            except Exception as error:  # noqa: BLE001  onnxruntime raises many types
                if self.sessions:
                    return [failed("loading", ENGINE, f"onnxruntime refuses it: {line(error)}")]
                self.note(f"onnxruntime cannot run the original: {line(error)}")
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

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def validity(self) -> str:
        """Why the rewritten model is invalid although the original is not; empty otherwise."""
        for what, key in (("original", "reference"), ("rewritten", "candidate")):
            try:
                onnx.checker.check_model(self.job[key], full_check=True)
            except Exception as error:  # noqa: BLE001  checker, inference and protobuf errors
                if what == "rewritten":
                    return f"onnx.checker refuses it: {line(error)}"
                self.note(f"onnx.checker refuses the original: {line(error)}")
                return ""
        return ""

    def outputs_differ(self) -> str:
        """How the outputs' names differ, which nothing in the pass may change."""
        before, after = ([o.name for o in m.graph.output] for m in (self.original, self.rewritten))
        return "" if before == after else f"outputs {before} became {after}"

    def evaluator(self, model: ModelProto, sites: Collection[str]) -> Float64Evaluator | None:
        """The float64 evaluation of a model, or None with a note."""
        try:
            return Float64Evaluator(model, self.rounding, sites)
        except Exception as error:  # noqa: BLE001  whatever an unknown operator makes onnx.reference raise
            self.note(f"no float64 evaluation: {line(error)}")
            return None

    def cases(self) -> Iterator[Case]:
        """The comparisons, as far as the time budget reaches; at least one input."""
        longest = 0.0
        shapes = self.find_shapes()
        for count, name in enumerate(self.names):
            began = time.monotonic()
            if count and began - self.started + longest > self.job["budget"]:
                left = ", ".join(self.names[count:])
                self.note(f"out of time before these inputs were compared: {left}")
                return
            self.step(f"running the input {name!r}")
            feeds = self.inputs.feeds(name, shapes, self.rng)
            if count == 0 and not self.is_deterministic(feeds):
                yield Case(name, ENGINE, skipped="the original gives two results for one input")
                return
            yield from self.compare_on(name, feeds, with_double=count == 0)
            longest = max(longest, time.monotonic() - began)

    def compare_on(self, name: str, feeds: Arrays, with_double: bool) -> Iterator[Case]:
        """Both models on one input: in onnxruntime, and if asked (or alone) in float64."""
        truth = self.evaluate(self.truth, feeds)
        moved = self.movements(truth, feeds)
        overflow = self.overflow(truth)
        if overflow:
            yield Case(name, "float64", skipped=overflow)
            return
        if truth and self.double and (with_double or not self.sessions):
            algebra = self.evaluate(self.double, feeds)
            if algebra:
                yield Case(name, "float64", self.in_double(truth, algebra, moved))
        if not self.sessions:
            return
        original, rewritten = self.sessions
        before = original(feeds)
        try:
            after = rewritten(feeds)
        except Exception as error:  # noqa: BLE001  onnxruntime raises many types
            yield failed(name, ENGINE, f"the rewritten model does not run: {line(error)}")
            return
        if untold := [repr(output) for output in original.names if output not in before]:
            self.note(f"outputs that are no tensors were not compared: {', '.join(untold)}")
        exact, slack = (truth.outputs, 0.0) if truth else (before, self.blind_slack())
        yield Case(name, ENGINE, tuple(
            compare(key, before[key], after[key], exact[key], moved.get(key, 0.0), slack)
            for key in before
        ))  # fmt: skip

    def evaluate(self, evaluator: Float64Evaluator | None, feeds: Arrays) -> Evaluation | None:
        """One float64 evaluation, or None with a note, and then none is tried any more."""
        if evaluator is None:
            return None
        try:
            result = evaluator.run(feeds)
        except Exception as error:  # noqa: BLE001  an operator that nothing evaluates in float64
            self.note(f"no float64 evaluation: {line(error)}")
            self.truth = self.double = None
            return None
        if result.single_precision:
            operators = ", ".join(result.single_precision)
            self.note(f"evaluated in float32 for want of a float64 kernel: {operators}")
        return result

    def movements(self, truth: Evaluation | None, feeds: Arrays) -> dict[str, float]:
        """How far rounding moves each output; a second sample where an output is small."""
        if truth is None or self.truth is None:
            return {}
        exact = tensors(truth.outputs)
        samples = 1 if all(array.size >= 64 for array in exact.values()) else 2
        moved = [self.truth.run(feeds, perturb=self.rng).outputs for _ in range(samples)]
        return {
            key: movement(array, [outputs[key] for outputs in moved])
            for key, array in exact.items()
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
            for key, exact in tensors(truth.outputs).items()
        )

    def blind_slack(self) -> float:
        """Without a float64 evaluation: one first-order bound for every site, added up."""
        return sum(
            self.rounding.gamma(s["taps"] + 1) + self.rounding.store for s in self.job["sites"]
        )

    def find_shapes(self) -> Shapes:
        """The first shapes that the original runs on."""
        reason = ""
        for shapes in self.inputs.shapes():
            try:
                self.run_original(self.inputs.feeds("normal", shapes, self.rng))
            except Exception as error:  # noqa: BLE001  a length that the network cannot take
                reason = reason or line(error)
            else:
                return shapes
        raise InputError(
            f"the original runs on no input that was tried ({reason}); its inputs are "
            f"{self.inputs.describe()}: give --shape for what is dynamic, or real data with --input"
        )

    def run_original(self, feeds: Arrays) -> Arrays:
        """Its outputs, in onnxruntime where that runs it."""
        if self.sessions:
            return self.sessions[0](feeds)
        return self.truth.run(feeds).outputs if self.truth else {}

    def is_deterministic(self, feeds: Arrays) -> bool:
        """Whether the original gives the same bits twice."""
        one, two = self.run_original(feeds), self.run_original(feeds)
        return all(one[key].tobytes() == two[key].tobytes() for key in one)


class Session:
    """A model in onnxruntime on the CPU, whose float32 arithmetic is IEEE's."""

    def __init__(self, path: str) -> None:
        """Loads a model file."""
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, feeds: Arrays) -> Arrays:
        """The outputs that are tensors, by name."""
        results = self.session.run(self.names, feeds)
        return tensors(dict(zip(self.names, results, strict=True)))


ENGINE = "onnxruntime CPU"


def tensors(outputs: Mapping[str, Any]) -> Arrays:
    """The outputs that are no sequences or maps."""
    return {name: value for name, value in outputs.items() if isinstance(value, np.ndarray)}


def failed(name: str, engine: str, reason: str) -> Case:
    """A case that fails for another cause than an error's size."""
    nan = float("nan")
    return Case(name, engine, (Comparison("", nan, nan, nan, 0.0, nan, reason=reason),))


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
    except InputError as error:
        cases, outcome["usage"] = [], str(error)
    outcome |= {
        "cases": [asdict(case) for case in cases],
        "notes": check.notes,
        "versions": {
            "onnxruntime": ort.__version__,
            "onnx": onnx.__version__,
            "numpy": np.__version__,
        },
    }
    Path(job["result"]).write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(sys.argv[1])
