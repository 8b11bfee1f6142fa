"""Do two models learn the same? Gradients of one step, and a short training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from dwr_rewrite.equivalence.evidence import Gradient, Training
from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.equivalence.samples import Arrays
from dwr_rewrite.equivalence.statistics import Array, Errors, errors, largest
from dwr_rewrite.equivalence.tolerance import movement
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.verify.learner import Direction, Draw, Learner, is_dropout
from dwr_rewrite.passes.fx.verify.pair import TorchPair
from dwr_rewrite.passes.fx.verify.rounding import RoundingErrors
from dwr_rewrite.passes.fx.verify.sites import is_linked, undo_of

SAMPLES = 2
"""Perturbed runs. Where a ReLU's input is near zero rounding decides whether a gradient passes, so
the largest movement of one run may miss what another finds."""

_INF = float("inf")

BEYOND = Errors(_INF, _INF, _INF, _INF, _INF, _INF, _INF, None, -_INF, -_INF)
"""Errors of what has another shape, or is not finite where the truth is."""

Result = TypeVar("Result")


def train(pair: TorchPair, feeds: Arrays, steps: int = 5, seed: int = 0) -> Training:
    """Trains copies of two models, and a float64 copy of the reference, on the same data.

    The yardstick and the tolerance are those of :mod:`dwr_rewrite.equivalence.tolerance`: each
    gradient of the candidate may be 2 * (error of the reference + movement) off, and so may its
    loss, with the largest error and movement up to that step.

    Args:
        pair: the models; they stay as they are.
        feeds: inputs by name.
        steps: of the training run.
        seed: of the random numbers.

    Raises:
        DwrError: one of the models cannot be trained, or nothing differentiates it in float64.
    """
    gradients, notes = _gradients(pair, feeds, seed)
    notes += _notes(pair)
    if not any(map(torch.is_floating_point, pair.reference.model.parameters())):
        return Training(gradients, notes=(*notes, "nothing learns: there was no training run"))
    rates: list[float] = []

    def learn(learner: Learner) -> Array:
        losses, rate = learner.losses(_targets(seed), steps, next(iter(rates), None))
        rates.append(rate)
        return np.array(losses)

    exact, before, after, *moved = _each(pair, feeds, seed, learn)
    off = np.abs(before - exact)
    away = np.max(np.abs(np.array(moved) - exact), axis=0)
    tolerance = 2 * (np.maximum.accumulate(off) + np.maximum.accumulate(away))
    curves = (tuple(map(float, curve)) for curve in (exact, before, after, tolerance))
    return Training(gradients, *curves, notes=tuple(notes))


def _gradients(pair: TorchPair, feeds: Arrays, seed: int) -> tuple[tuple[Gradient, ...], list[str]]:
    """The gradients of both models, and what a reader has to know of them."""
    notes: list[str] = []
    signs = _signs(seed)
    try:
        runs = _each(pair, feeds, seed, lambda learner: learner.gradients(signs))
    except DwrError as error:  # the code changes its input in place, or asks for its gradient
        runs = _each(pair, feeds, seed, lambda learner: learner.gradients(signs, inputs=False))
        notes.append(f"gradients of the inputs were not compared: {error}")
    truth, reference, candidate, *moved = runs
    shared = [key for key in truth if key in reference and key in candidate]
    found = tuple(
        _gradient(*key, *(run[key] for run in (truth, reference, candidate, *moved)))
        for key in shared
    )
    left = [
        f"{direction} of {name!r}" for direction, name in truth if (direction, name) not in shared
    ]
    if left:
        notes.append(f"the candidate has no counterpart of: {', '.join(left)}")
    silent = sum(gradient.tolerance >= gradient.scale > 0 for gradient in found)
    if silent:
        notes.append(
            f"{silent} of {len(found)} gradients say nothing: rounding may move them by as much as "
            f"they are"
        )
    return found, notes


def _each(
    pair: TorchPair, feeds: Arrays, seed: int, function: Callable[[Learner], Result]
) -> list[Result]:
    """What a function gives for the truth, the reference, the candidate and the moved truths."""
    before, after = ({n: places[i] for n, places in pair.places.items()} for i in range(2))
    found: list[Result] = []
    for run in range(3 + SAMPLES):
        subject, places, what = pair.reference, before, "the reference in float64"
        if run in (1, 2):
            subject, places, what = (
                (subject, places, "the reference") if run == 1
                else (pair.candidate, after, "the candidate")
            )  # fmt: skip
        rng = np.random.default_rng((seed, run))
        moves = RoundingErrors(pair.rounding, rng) if run > 2 else None
        try:
            learner = Learner(subject, feeds, places, exact=run not in (1, 2), errors=moves)
            found.append(function(learner))
        except Exception as error:
            raise DwrError(
                f"{what} cannot be trained on this input: {first_line(error)}"
            ) from error
    return found


def _gradient(
    direction: Direction, name: str, truth: Array, reference: Array, candidate: Array,
    *moved: Array,
) -> Gradient:  # fmt: skip
    """One gradient of both models against the truth, where reference and truth are finite."""
    dtype, exact = reference.dtype.name, truth.astype(np.float64)
    finite = np.isfinite(exact) & np.isfinite(reference.astype(np.float64))
    own = errors(reference.astype(np.float64)[finite], exact[finite], dtype)
    away = movement(np.where(finite, exact, np.nan), moved)
    values = candidate.astype(np.float64)
    fits = values.shape == exact.shape and bool(np.isfinite(values[finite]).all())
    found = errors(values[finite], exact[finite], dtype) if fits else BEYOND
    scale = largest(np.abs(exact[finite]))
    return Gradient(name, direction, scale, own, found, 2 * (own.largest + away))


def _signs(seed: int) -> Draw:
    """Random signs, over the root of the number of elements as a power of two."""

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        signs = _rng(seed, name).integers(0, 2, shape) * 2 - 1
        return torch.from_numpy(np.ldexp(signs, -round(np.log2(max(signs.size, 1)) / 2)))

    return draw


def _targets(seed: int) -> Draw:
    """Normal numbers in steps of 1/8."""

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(np.round(_rng(seed, name).standard_normal(shape) * 8) / 8)

    return draw


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng((seed, crc32(name.encode())))


def _notes(pair: TorchPair) -> Iterator[str]:
    """What a reader has to know of every run."""
    if any(undo_of(after) and not is_linked(after) for _, after in pair.places.values()):
        yield (
            "precomputed weights: only their diagonals were compared, and learned here. An "
            "optimizer would train the zeros beside them too: to train, rewrite with "
            "weights='linked'"
        )
    if any(is_dropout(module) for module in pair.reference.model.modules()):
        yield "dropout is off"
    if not all(parameter.requires_grad for parameter in pair.reference.model.parameters()):
        yield "frozen parameters learn here too"
