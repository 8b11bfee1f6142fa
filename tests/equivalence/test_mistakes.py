"""A convolution computed honestly is equivalent; with a mistake in it, it is not."""

from __future__ import annotations

import numpy as np
import pytest

from dwr_rewrite.equivalence.tolerance import FACTOR, UNIT_ROUNDOFF
from dwr_rewrite.recipe import convolve
from tests.equivalence.convolutions import CHANNELS, GEOMETRY, exact, shuffled, verification


def retouched(channel, change):
    def model(x, weight, bias):
        weight = weight.copy()
        weight[channel] = change(weight[channel])
        return exact(x, weight, bias)

    return model


def one_percent(weight):
    weight[0, 1, 1] *= weight.dtype.type(1.01)
    return weight


def with_more_bias(more):
    return lambda x, weight, bias: exact(x, weight, bias + np.array(more, bias.dtype))


def with_geometry(**other):
    return lambda x, weight, bias: convolve(x, weight, bias, **(GEOMETRY | other))


def dense(leak=0.0):
    """The diagonal of a standard convolution; channel 4 may leak into channel 1."""

    def model(x, weight, bias):
        full = np.zeros((CHANNELS, CHANNELS, 3, 3), weight.dtype)
        full[range(CHANNELS), range(CHANNELS)] = weight[:, 0]
        full[1, 4, 1, 1] = leak
        return convolve(x, full, bias, **(GEOMETRY | dict(groups=1)))

    return model


def spoiled(value):
    def model(x, weight, bias):
        y = exact(x, weight, bias)
        y[1, 2, 3, 4] = value
        return y

    return model


GROSS = {
    "weights of two channels swapped": retouched([3, 4], lambda w: w[::-1]),
    "kernel transposed": lambda x, w, b: exact(x, w.swapaxes(2, 3).copy(), b),
    "kernel flipped": lambda x, w, b: exact(x, w[..., ::-1, ::-1].copy(), b),
    "padding off by one": with_geometry(padding=((0, 2), (1, 1))),
    "too little padding": with_geometry(padding=((0, 1), (1, 1))),
    "stride swapped": with_geometry(stride=(1, 2)),
    "no stride": with_geometry(stride=(1, 1)),
    "dilation": with_geometry(dilation=(2, 1), padding=((2, 2), (1, 1))),
    "no bias": lambda x, w, b: exact(x, w, None),
    "NaN": spoiled(np.nan),
    "Inf": spoiled(np.inf),
    "another shape": lambda x, w, b: exact(x, w, b)[:, :, None],
    "empty": lambda x, w, b: exact(x, w, b)[:0],
    "zero": lambda x, w, b: np.zeros_like(exact(x, w, b)),
    "batches swapped": lambda x, w, b: exact(x, w, b)[::-1],
    "channels swapped": lambda x, w, b: exact(x, w, b)[:, ::-1],
}
FINE = {
    "one weight of one channel 1 % off": retouched(3, one_percent),
    "bias 1e-3 off": with_more_bias(6 * [1e-3]),
    "bias 1e-3 off in one channel": with_more_bias([0, 0, 1e-3, 0, 0, 0]),
    "a channel that leaks a thousandth": dense(leak=1e-3),
    "float16 inside": lambda x, w, b: exact(*(a.astype("f2") for a in (x, w, b))).astype(x.dtype),
    "another type": lambda x, w, b: exact(x, w, b).astype("f2"),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
@pytest.mark.parametrize("name", GROSS)
def test_a_gross_mistake_is_found_in_every_type(name, dtype, seed):
    found = verification(GROSS[name], dtype, seed)
    assert found.verdict == "not equivalent"
    assert all("output 'y'" in sentence for sentence in found.failures)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FINE)
def test_a_fine_mistake_is_found(name, dtype, seed):
    assert verification(FINE[name], dtype, seed).verdict == "not equivalent"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_the_dense_form_is_equivalent(dtype, seed):
    assert verification(dense(), dtype, seed).verdict == "equivalent"


@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_an_honest_model_passes(dtype):
    """Its sums are made in another order; of 60 such pairs none comes near to failing."""
    for seed in range(60):
        found = verification(shuffled(np.random.default_rng([seed, 1])), dtype, seed)
        assert found.verdict == "equivalent", found.failures
        assert found.worst[1].used < 0.5
        assert [ratio.value < FACTOR / 3 for ratio in found.ratios] == [True]
