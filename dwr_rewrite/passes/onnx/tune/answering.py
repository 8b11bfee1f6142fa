"""Answers questions on the device of this process; only a child process imports this."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import onnx

from dwr_rewrite.errors import DwrError
from dwr_rewrite.lowerings import KEEP
from dwr_rewrite.passes.onnx.bound import Bound
from dwr_rewrite.passes.onnx.child import shared, tell
from dwr_rewrite.passes.onnx.device import cache_bytes, state_of
from dwr_rewrite.passes.onnx.provider import CPU, Provider
from dwr_rewrite.passes.onnx.tune.bench import BenchJob
from dwr_rewrite.passes.onnx.tune.forms import Layer
from dwr_rewrite.passes.onnx.tune.gate import difference
from dwr_rewrite.timing import Repeated, Sampler, Timing, measure_all
from dwr_rewrite.tuning import Answer, Question
from dwr_rewrite.tuning.tune import describe

HOPELESS = 4.0
"""A form that takes so many times as long as ``keep`` in a first look is not looked at again: it
would use up the time in which the others are told apart."""

LOOKS = 3


def answers(job: BenchJob) -> Iterator[Answer]:
    """The answers to a job's questions, in their order."""
    for question in job.questions:
        tell(f"measuring {describe(question.workload)}")
        with tempfile.TemporaryDirectory(dir=shared()) as name:
            yield answer(question, job.provider, job.seconds, Path(name))


def answer(question: Question, provider: Provider, seconds: float, scratch: Path) -> Answer:
    """How long every form takes, all of them side by side.

    Args:
        question: the convolution and its forms.
        provider: what runs them.
        seconds: for the measurement.
        scratch: a folder for the models.
    """
    state = state_of(provider)
    layer = Layer.of(question.workload, cache_bytes(provider))
    bounds, failures = _load(question, layer, provider, scratch)
    samplers = {form: _sampler(bound, layer.count) for form, bound in bounds.items()}
    failures |= _drop_hopeless(samplers)
    timings: dict[str, Timing] = {}
    if samplers:
        found = measure_all([*samplers.values()], budget=seconds)
        timings = dict(zip(samplers, found, strict=True))
    return Answer(question.workload, timings, failures, state)


def _load(
    question: Question, layer: Layer, provider: Provider, scratch: Path
) -> tuple[dict[str, Bound], dict[str, str]]:
    """The forms that run and compute the same as ``keep``, and why others do not."""
    bounds, failures = dict[str, Bound](), dict[str, str]()
    right = None
    for form in question.forms:
        path = scratch / f"{form.replace(':', '')}.onnx"
        onnx.save(layer.model(form), path)
        try:
            bound = Bound(path, provider, layer.feeds, 0)
        except DwrError as error:
            failures[form] = str(error)
            if form == KEEP:  # there is nothing to compare with
                return {}, failures
            continue
        output = bound.outputs()["y0"]
        right = output if right is None else right
        why = difference(layer, right, output, provider.name == CPU)
        if why:
            failures[form] = why
        else:
            bounds[form] = bound
    return bounds, failures


def _sampler(bound: Bound, count: int) -> Sampler:
    """Seconds of one of the convolutions in a model."""
    repeated = Repeated(bound)
    return lambda: repeated() / count


def _drop_hopeless(samplers: dict[str, Callable[[], float]]) -> Mapping[str, str]:
    """Takes out what is far too slow, and tells why."""
    first = {form: min(sampler() for _ in range(LOOKS)) for form, sampler in samplers.items()}
    slow = {form: t / first[KEEP] for form, t in first.items() if t > HOPELESS * first[KEEP]}
    for form in slow:
        del samplers[form]
    return {
        form: f"{ratio:.1f} times as slow as keep in a first look" for form, ratio in slow.items()
    }
