"""One small depthwise convolution in numpy: rounded honestly, and wrong in known ways."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from dwr_rewrite.equivalence.comparison import Comparison, compare
from dwr_rewrite.equivalence.samples import KINDS, make_input
from dwr_rewrite.equivalence.tolerance import Rounding, movement
from dwr_rewrite.equivalence.verification import Case, Verification
from dwr_rewrite.recipe import convolve

CHANNELS = 6
TERMS = 9 + 1  # taps of a sum, and the bias
GEOMETRY = dict(groups=CHANNELS, stride=(2, 1), dilation=(1, 1), padding=((1, 1), (1, 1)))

Model = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Takes x [N, 6, H, W], the weight [6, 1, 3, 3] and the bias [6], in the type that it sums in."""


def exact(x, weight, bias):
    return convolve(x, weight, bias, **GEOMETRY)


def shuffled(rng: np.random.Generator) -> Model:
    """The same sums in a random order, so that they round differently."""

    def model(x, weight, bias):
        y = np.zeros_like(exact(x, weight, bias))
        for tap in rng.permutation(list(product(range(3), range(3)))):
            alone = np.zeros_like(weight)
            alone[..., tap[0], tap[1]] = weight[..., tap[0], tap[1]]
            y = y + exact(x, alone, None)
        return y + bias.reshape(-1, 1, 1)

    return model


def verification(candidate: Model, dtype: str = "float32", seed: int = 0) -> Verification:
    """The verdict on a candidate, on one input of every kind."""
    rng = np.random.default_rng([seed, 0])
    weight = (rng.standard_normal((CHANNELS, 1, 3, 3)) / 3).astype(dtype)
    bias = (rng.standard_normal(CHANNELS) / 10).astype(dtype)
    rounding = Rounding.of([dtype])
    cases = [
        Case(kind, "numpy", (_on(kind, candidate, rounding, dtype, weight, bias, rng),))
        for kind in KINDS
    ]
    return Verification(tuple(cases))


def _on(kind, candidate, rounding, dtype, weight, bias, rng) -> Comparison:
    feeds = (make_input(kind, dtype, (2, CHANNELS, 8, 8), rng), weight, bias)
    sums = np.float64 if dtype == "float64" else np.float32
    narrow, wide = ([a.astype(t) for a in feeds] for t in (sums, np.float64))
    truth = exact(*wide)
    bound = rounding.of_sum(exact(*map(np.abs, wide)), TERMS)
    bound += rounding.of_result(truth)
    moved = [truth + bound * rng.choice((-1, 1), truth.shape) for _ in range(2)]
    before, after = shuffled(rng)(*narrow).astype(dtype), candidate(*narrow)
    if after.dtype == sums:
        after = after.astype(dtype)
    return compare("y", before, after, truth, movement(truth, moved))
