from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwr_rewrite.kernels.tile import Tile

POWERS = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256])
COUNTS = st.integers(1, 1000)
TILES = st.builds(
    Tile, st.sampled_from(["fma", "mma"]), POWERS, POWERS, COUNTS, COUNTS, COUNTS,
    st.sampled_from([1, 2, 4, 8]), COUNTS,
)  # fmt: skip


def test_text() -> None:
    assert str(Tile(rows=4, columns=2)) == "fma.c1.p128.d1.r4.v2.w4.s1"


@given(TILES)
def test_its_text_says_all_of_it(tile: Tile) -> None:
    assert Tile.parse(str(tile)) == tile


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a text such as"),
        ("fma.c1.p128", "a text such as fma.c1.p128.d1.r1.v1.w4.s1 expected"),
        ("dot.c1.p128.d1.r4.v2.w4.s1", "a text such as"),
        ("fma.c1.p128.d1.r-4.v2.w4.s1", "a text such as"),
        ("fma.c1.p128.d1.r4.v2.w4.s1.", "a text such as"),
        ("fma.c3.p128.d1.r4.v2.w4.s1", "channels out of range"),
        ("fma.c1.p100.d1.r4.v2.w6.s1", "positions, warps out of range"),
        ("fma.c1.p128.d0.r4.v2.w4.s0", "depth, splits out of range"),
    ],
)
def test_what_is_no_tile(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="tile") as caught:
        Tile.parse(text)
    assert says in str(caught.value)
