"""What an array's difference from another looks like: errors, agreement, histogram, scatter."""

from __future__ import annotations

from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SCATTER_POINTS = 400
"""Pairs of values that a report keeps for its scatter plot."""

MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
"""Stored bits of the mantissa by element type."""

SMALLEST_EXPONENT = {"float16": -14, "bfloat16": -126, "float32": -126, "float64": -1022}
"""Exponent of the smallest normal number by element type; below it the spacing stays."""

COUNTED = (1e-20, 1e20)
"""Relative errors outside are counted at these ends of a histogram."""


@dataclass(frozen=True, slots=True)
class Errors:
    """How far an array is from another, over the elements that are finite in both.

    Attributes:
        largest: largest absolute difference.
        mean: mean absolute difference.
        p99: 99th percentile of the absolute differences.
        relative_largest: largest difference relative to the other's element; differences from an
            element of zero are left out here and in the next two.
        relative_mean: their mean.
        relative_p99: their 99th percentile.
        ulps: largest difference in units in the last place of the element type, at the other's
            element; 0 for integers that are equal.
        cosine: cosine of the angle between the two as vectors; None where one is zero.
        snr: signal-to-noise ratio in dB, 20 log10(|other| / |difference|); inf for equal arrays.
        psnr: the same with the other's largest magnitude for a signal, and per element.
    """

    largest: float
    mean: float
    p99: float
    relative_largest: float
    relative_mean: float
    relative_p99: float
    ulps: float
    cosine: float | None
    snr: float
    psnr: float


@dataclass(frozen=True, slots=True)
class Worst:
    """The element where the candidate is furthest off.

    Attributes:
        index: its position.
        truth: its value in the float64 evaluation of the reference.
        reference: in the reference.
        candidate: in the candidate.
    """

    index: tuple[int, ...]
    truth: float
    reference: float
    candidate: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """For an output that looks like scores: how often both models rank alike.

    Attributes:
        rows: score vectors that were looked at.
        top1: fraction with the same largest element.
        k: length of the list that is compared.
        topk: mean fraction of the reference's k largest that are among the candidate's k largest.
    """

    rows: int
    top1: float
    k: int
    topk: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Errors relative to the output's largest magnitude, counted by powers of ten.

    Attributes:
        edges: log10 of the edges of the bins, ascending.
        reference: counts of the reference's errors, one fewer than edges.
        candidate: counts of the candidate's.
        exact: elements without any error: of the reference, of the candidate.
    """

    edges: tuple[float, ...]
    reference: tuple[int, ...]
    candidate: tuple[int, ...]
    exact: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Picture:
    """One output in detail, for plots.

    Attributes:
        output: its name.
        case: the input that it was computed on.
        histogram: of both models' errors.
        scatter: (reference, candidate) values of evenly chosen elements, the worst among them.
    """

    output: str
    case: str
    histogram: Histogram
    scatter: tuple[tuple[float, float], ...]


def errors(values: Array, truth: Array, dtype: str) -> Errors:
    """The differences of ``values`` from ``truth``; inf where one is too large for float64.

    Args:
        values: any shape, float64, finite.
        truth: the same shape, float64, finite.
        dtype: element type whose last place :attr:`Errors.ulps` counts.
    """
    values, truth = values.ravel(), truth.ravel()
    angle = cosine(values, truth)  # before the arrays below are made, to hold fewer at a time
    with np.errstate(over="ignore"):
        difference = values - truth
        np.abs(difference, out=difference)
        magnitude = np.abs(truth)
        ulps = largest(difference / spacing(magnitude, dtype))
        told = magnitude > 0
        relative = difference[told]
        relative /= magnitude[told]
        noise = rms(difference)
        return Errors(
            largest(difference),
            mean(difference),
            quantile(difference, 0.99),
            largest(relative),
            mean(relative),
            quantile(relative, 0.99),
            ulps,
            angle,
            decibels(rms(magnitude), noise),
            decibels(largest(magnitude), noise),
        )


def spacing(magnitude: Array, dtype: str) -> Array:
    """Distance from each number to the next larger one of an element type; 1 for integers."""
    if dtype not in MANTISSA:
        return np.ones_like(magnitude)
    exponent = np.frexp(magnitude)[1] - 1  # magnitude = f 2^(exponent + 1), 1/2 <= f < 1
    exponent = np.where(magnitude > 0, exponent, SMALLEST_EXPONENT[dtype])
    return np.ldexp(1.0, np.maximum(exponent, SMALLEST_EXPONENT[dtype]) - MANTISSA[dtype])


def cosine(a: Array, b: Array) -> float | None:
    """Cosine of the angle between two arrays as vectors; None where one is zero.

    They are scaled first, so that no square overflows or vanishes.
    """
    scales = largest(np.abs(a)), largest(np.abs(b))
    if not all(0 < scale < np.inf for scale in scales) or a.size == 0:
        return None
    x, y = (a / scales[0]).ravel(), (b / scales[1]).ravel()
    value = float(np.dot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y)))
    return min(1.0, max(-1.0, value))


def decibels(signal: float, noise: float) -> float:
    """20 log10 of a ratio of amplitudes; inf without noise, -inf without signal."""
    if noise == 0:
        return float("inf")
    return 20 * (log10(signal) - log10(noise)) if signal else float("-inf")


def rms(values: Array) -> float:
    """Root mean square of non-negative numbers; inf where one is not a number, 0 for none.

    They are scaled first, so that no square overflows or vanishes.
    """
    scale = largest(values)
    if not 0 < scale < np.inf:
        return scale
    scaled = values.ravel() / scale
    return scale * float(np.sqrt(np.dot(scaled, scaled) / scaled.size))


def largest(values: Array) -> float:
    """Largest element of non-negative numbers; inf where one is not a number, 0 for none."""
    found = float(np.max(values, initial=0.0))
    return float("inf") if np.isnan(found) else found


def mean(values: Array) -> float:
    """Mean; 0 for none."""
    return float(np.mean(values)) if values.size else 0.0


def quantile(values: Array, q: float) -> float:
    """The smallest element that is not below a fraction q of all; 0 for none."""
    if not values.size:
        return 0.0
    place = min(values.size - 1, max(0, int(np.ceil(q * values.size)) - 1))
    return float(np.partition(values, place, axis=None)[place])


def agreement(reference: Array, candidate: Array) -> Agreement | None:
    """How often both rank alike; None where the output does not look like scores.

    Scores are floating-point, with two classes or more along the last axis (rank 2 and 3) or along
    axis 1 (dense prediction, rank 4 and more).
    """
    if reference.ndim < 2 or reference.size == 0:
        return None
    axis = -1 if reference.ndim <= 3 else 1
    classes = reference.shape[axis]
    if classes < 2:
        return None
    rows = [np.moveaxis(a, axis, -1).reshape(-1, classes) for a in (reference, candidate)]
    k = min(5, classes)
    first, second = (_among_largest(a, k) for a in rows)
    top1 = float(np.mean(rows[0].argmax(axis=1) == rows[1].argmax(axis=1)))
    return Agreement(len(rows[0]), top1, k, float((first & second).sum() / first.sum()))


def _among_largest(rows: Array, k: int) -> Array:
    """Marks the k largest elements of every row; of equal ones the first."""
    smallest = np.partition(rows, -k, axis=1)[:, -k, None]
    above, equal = rows > smallest, rows == smallest
    left = k - above.sum(axis=1, keepdims=True)
    return above | (equal & (equal.cumsum(axis=1, dtype=np.int32) <= left))


def picture(output: str, case: str, reference: Array, candidate: Array, truth: Array) -> Picture:
    """What the plots of one output need.

    Args:
        output: its name.
        case: the input that it was computed on.
        reference: float64 and finite, as the next two.
        candidate: of the same shape.
        truth: of the same shape.
    """
    flat = [array.ravel() for array in (reference, candidate, truth)]
    scale = largest(np.abs(flat[2])) or 1.0
    with np.errstate(over="ignore"):
        relative = [np.abs(values - flat[2]) / scale for values in flat[:2]]
    return Picture(output, case, histogram(*relative), _scatter(*flat))


def histogram(reference: Array, candidate: Array) -> Histogram:
    """Counts both models' relative errors in four bins for each power of ten."""
    logs = [np.log10(np.clip(values[values > 0], *COUNTED)) for values in (reference, candidate)]
    both = np.concatenate(logs)
    low, high = (float(np.floor(both.min())), float(np.ceil(both.max()))) if both.size else (-1, 0)
    edges = np.linspace(low, max(high, low + 1), 4 * int(max(high, low + 1) - low) + 1)
    counts = [tuple(int(n) for n in np.histogram(values, edges)[0]) for values in logs]
    exact = tuple(int((values == 0).sum()) for values in (reference, candidate))
    return Histogram(tuple(map(float, edges)), counts[0], counts[1], (exact[0], exact[1]))


def _scatter(reference: Array, candidate: Array, truth: Array) -> tuple[tuple[float, float], ...]:
    if not reference.size:
        return ()
    step = max(1, -(-reference.size // SCATTER_POINTS))
    with np.errstate(over="ignore"):
        worst = int(np.argmax(np.abs(candidate - truth)))
    chosen = sorted({*range(0, reference.size, step), worst})
    return tuple((float(reference[i]), float(candidate[i])) for i in chosen)
