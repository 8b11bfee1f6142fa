"""Seeded inputs hold what they say, and inputs that do not fit are refused with a sentence."""

from __future__ import annotations

import ml_dtypes  # registers bfloat16 with numpy
import numpy as np
import pytest

from dwr_rewrite.equivalence.samples import (
    BATCHES,
    KINDS,
    LENGTHS,
    Declared,
    InputError,
    Inputs,
    make_input,
)

FLOATS = ["float16", "bfloat16", "float32", "float64"]
DTYPES = [*FLOATS, "int64", "int32", "int8", "uint8", "bool"]
SHAPE = (3, 5, 16, 16)


def made(kind, dtype, shape=SHAPE, seed=5):
    return make_input(kind, dtype, shape, np.random.default_rng(seed))


def magnitudes(kind, dtype):
    return np.abs(made(kind, dtype).astype(np.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SHAPE, (3, 4), (4,), (), (0, 4), (2, 0), (2, 0, 3)], ids=str)
def test_inputs_are_seeded_finite_and_of_the_asked_type(kind, dtype, shape):
    one, two = made(kind, dtype, shape), made(kind, dtype, shape)
    assert isinstance(one, np.ndarray)
    assert one.tobytes() == two.tobytes()
    assert (one.dtype.name, one.shape) == (dtype, shape)
    assert np.isfinite(one.astype(np.float64)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_another_seed_gives_other_inputs(kind, dtype):
    assert made(kind, dtype).tobytes() != made(kind, dtype, seed=6).tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "uint8", "bool"])
def test_integers_are_zeros_and_ones(kind, dtype):
    assert {*made(kind, dtype).ravel().tolist()} == {0, 1}


@pytest.mark.parametrize("dtype", FLOATS)
def test_normal_is_standard_normal(dtype):
    """3840 draws: the mean is known to 1 / sqrt(3840) = 0.016, and the deviation to 0.011."""
    values = made("normal", dtype).astype(np.float64)
    assert values.mean() == pytest.approx(0, abs=0.08)
    assert values.std() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform_lies_between_zero_and_one(dtype):
    values = made("uniform", dtype).astype(np.float64)
    assert 0 <= values.min() < 0.01
    assert 0.99 < values.max() <= 1  # rounding to 16 bits may reach 1
    assert values.mean() == pytest.approx(0.5, abs=0.03)  # 5 sigma


@pytest.mark.parametrize("dtype", FLOATS)
def test_sparse_is_nine_tenths_zero(dtype):
    found = magnitudes("sparse", dtype)
    assert np.mean(found == 0) == pytest.approx(0.9, abs=0.025)  # 5 sigma
    assert np.std(found[found > 0]) > 0.3


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("kind", "sign"), [("large", 1), ("tiny", -1)])
def test_large_and_tiny_are_normal_times_a_power_of_two(dtype, kind, sign):
    power = sign * (4 if dtype == "float16" else 10)
    assert magnitudes(kind, dtype).mean() == pytest.approx(2.0**power * 0.8, rel=0.1)
    assert made(kind, dtype).astype(np.float64) == pytest.approx(
        made("normal", "float64") * 2.0**power, rel=2.0**-8, abs=2.0**-25
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_most_denormals_are_below_the_smallest_normal_and_not_zero(dtype):
    found = magnitudes("denormal", dtype)
    normal = float(ml_dtypes.finfo(dtype).smallest_normal)
    below = found[found > 0] < normal
    assert np.mean(found == 0) < 0.05
    assert np.mean(below) == pytest.approx(0.68, abs=0.04)  # within one standard deviation
    assert found.max() < 8 * normal


@pytest.mark.parametrize("dtype", FLOATS)
def test_constant_is_one_value(dtype):
    found = magnitudes("constant", dtype)
    assert found.min() == found.max()
    assert 0.5 <= found.max() <= 1.5


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 16), SHAPE, (7, 3, 4, 4), (2, 1, 8)], ids=str)
def test_one_hot_has_one_channel_for_each_batch_element(dtype, shape):
    found = made("one-hot", dtype, shape) != 0
    for element, channels in enumerate(found.reshape(*shape[:2], -1)):
        alone = element % shape[1]
        assert [bool(channel.any()) for channel in channels] == [
            channel == alone for channel in range(shape[1])
        ]
        assert channels[alone].mean() > 0.9


def test_one_hot_without_channels_is_normal():
    assert (made("one-hot", "float32", (9,)) == made("normal", "float32", (9,))).all()


IMAGE = Declared("float32", (None, 3, None, None))
MASK = Declared("bool", (None, 8))
FIXED = Declared("int64", (2, 4))


def inputs(shapes=None, given=None, **declared):
    return Inputs(declared or {"x": IMAGE, "mask": MASK}, shapes or {}, given or {})


def test_every_size_is_tried_once_and_the_best_first():
    found = list(inputs(x=IMAGE).shapes())
    assert found[0] == {"x": (2, 3, 64, 64)}
    assert [s["x"] for s in found] == [(b, 3, n, n) for b in BATCHES for n in LENGTHS]


@pytest.mark.parametrize(
    ("declared", "wanted"),
    [
        (FIXED, [(2, 4)]),
        (Declared("float32", ()), [()]),
        (Declared("float32", (None, 8)), [(b, 8) for b in BATCHES]),
        (Declared("float32", (4, None)), [(4, n) for n in LENGTHS]),
        (Declared("float32", (0, None, 2)), [(0, n, 2) for n in LENGTHS]),
        (Declared("float32", None), [()]),
    ],
)
def test_only_what_is_open_varies(declared, wanted):
    assert [s["x"] for s in inputs(x=declared).shapes()] == wanted


def test_a_wanted_shape_stays():
    found = list(inputs({"x": (1, 3, 5, 7)}).shapes())
    assert {s["x"] for s in found} == {(1, 3, 5, 7)}
    assert [s["mask"] for s in found] == [(2, 8), (1, 8)]
    assert [*inputs({"x": (4, 3, 5, 7), "mask": (4, 8)}).shapes()] == [
        {"x": (4, 3, 5, 7), "mask": (4, 8)}
    ]
    assert [*inputs({"x": (7,)}, x=Declared("float32", None)).shapes()] == [{"x": (7,)}]


def test_a_given_array_keeps_its_own_shape_in_its_own_case():
    image = np.ones((1, 3, 9, 9), "f4")
    both = inputs({"x": (4, 3, 5, 5)}, {"photo": {"x": image}})
    assert {s["x"] for s in both.shapes("photo")} == {(1, 3, 9, 9)}
    assert {s["x"] for s in both.shapes()} == {(4, 3, 5, 5)}


def test_feeds_are_the_given_arrays_and_normal_for_the_rest():
    image = np.ones((1, 3, 9, 9), "f4")
    both = inputs(given={"photo": {"x": image}}, x=IMAGE, z=IMAGE)
    shapes = {"x": (1, 3, 9, 9), "z": (1, 3, 9, 9)}
    found = both.feeds("photo", shapes, np.random.default_rng(0))
    assert found["x"] is image
    assert (found["z"] == made("normal", "float32", (1, 3, 9, 9), 0)).all()
    tiny = both.feeds("tiny", shapes, np.random.default_rng(0))
    assert (tiny["x"] == made("tiny", "float32", (1, 3, 9, 9), 0)).all()
    assert list(tiny) == ["x", "z"]
    assert not (tiny["x"] == tiny["z"]).all()


def test_the_description_is_what_the_option_takes():
    every = inputs(x=IMAGE, mask=MASK, n=Declared("int64", ()), any=Declared("float32", None))
    assert every.describe() == "x:?x3x?x?, mask:?x8, n:, any:?"


REFUSED = {
    "a shape for no input": (
        dict(shapes={"y": (1,)}),
        "the model has no input 'y'; its inputs are 'x', 'mask'",
    ),
    "an array for no input": (
        dict(given={"photo": {"y": np.ones(1)}}),
        "the model has no input 'y'; its inputs are 'x', 'mask'",
    ),
    "another rank": (
        dict(shapes={"x": (3, 8, 8)}),
        "--shape x:3x8x8 does not fit the input, which is ?x3x?x?",
    ),
    "another length": (
        dict(shapes={"mask": (1, 9)}),
        "--shape mask:1x9 does not fit the input, which is ?x8",
    ),
    "another type": (
        dict(given={"photo": {"x": np.ones((1, 3, 8, 8))}}),
        "the given input 'x' is float64; float32 expected",
    ),
    "an array of another shape": (
        dict(given={"photo": {"x": np.ones((1, 4, 8, 8), "f4")}}),
        "the given input 'x' is 1x4x8x8, and the model's is ?x3x?x?",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    wrong, sentence = REFUSED[name]
    with pytest.raises(InputError) as refusal:
        inputs(**wrong)
    assert str(refusal.value) == sentence


def test_a_model_without_inputs_takes_none():
    with pytest.raises(InputError, match="no input 'x'; its inputs are none"):
        Inputs({}, {"x": (1,)}, {})
    assert list(Inputs({}, {}, {}).shapes()) == [{}]
    assert Inputs({}, {}, {}).feeds("normal", {}, np.random.default_rng(0)) == {}
