"""Padding, lengths and validation, against torch and against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dwr_rewrite import cost
from dwr_rewrite.spec import ConvSpec, resolve_padding, same_padding

SAME = [
    # mode, length, kernel, stride, dilation, (before, after)
    ("same_upper", 10, 3, 1, 1, (1, 1)),
    ("same_upper", 10, 4, 1, 1, (1, 2)),
    ("same_lower", 10, 4, 1, 1, (2, 1)),
    ("same_upper", 10, 3, 2, 1, (0, 1)),
    ("same_upper", 11, 3, 2, 1, (1, 1)),
    ("same_upper", 14, 3, 1, 2, (2, 2)),  # dilation 2 reaches over 5
    ("same_lower", 14, 2, 1, 3, (2, 1)),
    ("same_upper", 7, 1, 3, 1, (0, 0)),  # the last window ends before the input does
]


@pytest.mark.parametrize(("mode", "length", "kernel", "stride", "dilation", "expected"), SAME)
def test_same_padding(mode, length, kernel, stride, dilation, expected):
    assert same_padding(mode, length, kernel, stride, dilation) == expected


@given(
    length=st.integers(1, 40),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    mode=st.sampled_from(["same_upper", "same_lower"]),
)
def test_same_padding_gives_the_promised_length(length, kernel, stride, dilation, mode):
    spec = ConvSpec(
        2, (kernel,), stride=(stride,), dilation=(dilation,), padding=mode, spatial=(length,)
    )
    assert spec.output_spatial() == (-(-length // stride),)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(kernel=st.integers(1, 6), dilation=st.integers(1, 3), length=st.integers(16, 30))
def test_torch_same_is_same_upper(kernel, dilation, length):
    # Small whole numbers, so that every order of summation gives the same bits.
    x = torch.randint(-8, 8, (1, 2, length)).double()
    weight = torch.randint(-8, 8, (2, 1, kernel)).double()
    expected = torch.nn.functional.conv1d(x, weight, padding="same", dilation=dilation, groups=2)
    before, after = same_padding("same_upper", length, kernel, 1, dilation)
    padded = torch.nn.functional.pad(x, (before, after))
    got = torch.nn.functional.conv1d(padded, weight, dilation=dilation, groups=2)
    assert torch.equal(got, expected)


RESOLVED = [
    ("NOTSET", (1, 2, 3, 4), ((1, 3), (2, 4))),
    ("NOTSET", (), ((0, 0), (0, 0))),
    ("", (1, 0, 0, 1), ((1, 0), (0, 1))),
    ("VALID", (), ((0, 0), (0, 0))),
    ("valid", (), ((0, 0), (0, 0))),
    ("same", (), "same_upper"),
    ("SAME_UPPER", (), "same_upper"),
    ("SAME_LOWER", (), "same_lower"),
]


@pytest.mark.parametrize(("auto_pad", "pads", "expected"), RESOLVED)
def test_resolve_padding(auto_pad, pads, expected):
    assert resolve_padding(auto_pad, pads, 2) == expected


@pytest.mark.parametrize(
    ("auto_pad", "pads", "message"),
    [("NOTSET", (1, 2, 3), "3 entries; 4 expected"), ("MIRROR", (), "'MIRROR'")],
)
def test_resolve_padding_refuses(auto_pad, pads, message):
    with pytest.raises(ValueError, match=message):
        resolve_padding(auto_pad, pads, 2)


INVALID = [
    ({"kernel": (3, 3, 3, 3)}, "4 spatial axes"),
    ({"stride": (1,)}, "stride"),
    ({"dilation": (0, 1)}, "dilation"),
    ({"padding": ((1, 1),)}, "padding"),
    ({"channels": 0}, "channels"),
    ({"multiplier": 0}, "multiplier"),
    ({"output_padding": (1, 0)}, "transposed"),
    ({"dtype": "int8"}, "dtype"),
]


@pytest.mark.parametrize(("change", "message"), INVALID)
def test_an_impossible_spec_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ConvSpec(**{"channels": 4, "kernel": (3, 3), **change})


def test_macs_count_every_product_once():
    forward = ConvSpec(
        8, (3, 3), multiplier=2, stride=(2, 2), padding=((1, 1),) * 2, spatial=(8, 8)
    )
    assert cost.macs(forward) == 16 * 4 * 4 * 9
    assert cost.macs(forward, 4) == 4 * 16 * 4 * 4 * 9
    transposed = ConvSpec(8, (4,), stride=(2,), transposed=True, spatial=(10,))
    assert cost.macs(transposed) == 8 * 10 * 4
    assert cost.macs(ConvSpec(8, (3, 3), spatial=(None, 8))) is None
