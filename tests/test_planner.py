"""Policies and the size budget."""

from __future__ import annotations

import pytest

from dwr_rewrite.errors import DwrError
from dwr_rewrite.planner import Policy, decide, format_bytes
from dwr_rewrite.spec import ConvSpec, Site


def site(name: str, channels: int = 64, weight: str | None = None, weight_bytes: int = 4) -> Site:
    return Site(name, "Conv", ConvSpec(channels, (3, 3)), weight or f"{name}.w", weight_bytes)


TILE = "fma.c1.p128.d1.r4.v2.w4.s1"


@pytest.mark.parametrize(
    "text", ["keep", "dense", "blocks:8", "blocks:32", "kernel", f"kernel:{TILE}"]
)
def test_a_policy_prints_as_it_is_read(text):
    assert str(Policy.parse(text)) == text


@pytest.mark.parametrize("text", [
    "", "fast", "dense:4", "keep:1", "blocks:", "blocks:1", "blocks:x", "blocks:-4", "blocks:4:4",
    f"blocks:{1 << 40}",
])  # fmt: skip
def test_an_unknown_policy_is_refused_with_the_known_ones(text):
    with pytest.raises(DwrError, match="use auto, keep, dense, blocks"):
        Policy.parse(text)


@pytest.mark.parametrize("tile", ["", "fma", f"{TILE}.x1", TILE.replace("p128", "p100")])
def test_a_tile_that_is_none_is_refused_with_one_that_is(tile):
    with pytest.raises(DwrError, match=f"policy 'kernel:{tile}'.*tile '{tile}'"):
        Policy.parse(f"kernel:{tile}")


@pytest.mark.parametrize("text", ["keep", "dense", "blocks", "kernel", f"kernel:{TILE}"])
def test_a_policy_knows_whether_it_is_a_kernel(text):
    assert Policy.parse(text).is_kernel is text.startswith("kernel")


FORMS = [
    ("blocks", 64, "blocks:32", 31),
    ("blocks:8", 64, "blocks:8", 7),
    ("blocks", 24, "dense", 23),  # the width is all channels: one group
    ("dense", 64, "dense", 63),
    ("dense", 997, "dense", 996),
    ("blocks", 997, "keep", 0),
    ("keep", 64, "keep", 0),
    ("kernel", 64, "kernel", 0),
    (f"kernel:{TILE}", 997, f"kernel:{TILE}", 0),
]


@pytest.mark.parametrize(("policy", "channels", "form", "extra"), FORMS)
def test_form_and_growth(policy, channels, form, extra):
    (decision,) = decide([site("a", channels)], Policy.parse(policy), 1 << 40)
    assert decision.form == form
    assert decision.growth == extra * channels * 9 * 4
    assert (decision.kept is None) == (form != "keep")


def test_a_shared_weight_is_counted_once():
    first, second = decide([site("a", weight="w"), site("b", weight="w")], Policy("dense"), 1 << 40)
    assert (first.growth, second.growth) == (63 * 64 * 9 * 4, 0)


def test_the_budget_keeps_what_goes_past_it_and_names_the_flag():
    growth = 63 * 64 * 9 * 4
    decisions = decide(
        [site("a"), site("b"), site("c", 8)], Policy("dense"), growth + 7 * 8 * 9 * 4
    )
    assert [d.form for d in decisions] == ["dense", "keep", "dense"]
    assert decisions[1].kept.code == "over-budget"
    assert "--max-growth" in decisions[1].kept.reason


def test_an_int8_weight_counts_one_byte_each():
    (decision,) = decide([site("a", weight_bytes=1)], Policy("dense"), 1 << 40)
    assert decision.growth == 63 * 64 * 9


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (256 << 20, "256.0 MiB")]
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text
