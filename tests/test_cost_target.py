"""The targets of the cost model: their figures, their names, and those that are measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dwr_rewrite.cost import Model, Target, find_target, load_model, targets
from dwr_rewrite.errors import DwrError

DOCS = Path(__file__).parent.parent / "docs" / "cost.md"

# What one multiprocessor does a cycle, and the clock, from the makers' architecture documents:
# the data sheets' rates have to be their product. Fused operations a cycle: float32, float16.
UNITS = {
    "H200": (128, 1.98e9, 2048, 1.83e9),
    "H100": (128, 1.98e9, 2048, 1.83e9),
    "A100": (64, 1.41e9, 1024, 1.41e9),
    "L4": (128, 2.04e9, 512, 2.04e9),
    "T4": (64, 1.59e9, 512, 1.59e9),
    "RTX 4090": (128, 2.52e9, 256, 2.52e9),
    "Jetson Orin": (128, 1.3e9, 1024, 1.3e9),
}


def test_rates_are_those_of_the_units():
    assert set(UNITS) == {target.name for target in targets()}
    for target in targets():
        fma, clock, matrix, matrix_clock = UNITS[target.name]
        cores = 2 * target.multiprocessors
        # The documents round rates and clocks to two or three digits: 1 % each.
        assert target.fma["float32"] == pytest.approx(cores * fma * clock, rel=0.02)
        assert target.matrix["float16"] == pytest.approx(cores * matrix * matrix_clock, rel=0.02)
        if "tf32" in target.matrix:
            assert target.matrix["tf32"] == pytest.approx(target.matrix["float16"] / 2, rel=0.01)


def test_every_figure_has_a_source():
    for target in targets():
        figures = {"bandwidth", "l2_bytes", "multiprocessors", "fma", "matrix"}
        assert set(target.source) == figures
        assert any("https://" in text for text in target.source.values())
        assert target.launch == 0  # no maker states one
        assert not target.calibrated


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h200", "H200"), ("NVIDIA H200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"), ("nvidia l4", "L4"), ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("rtx4090", "RTX 4090"), ("Orin", "Jetson Orin"),
        ("jetson-agx-orin", "Jetson Orin"),
    ],
)  # fmt: skip
def test_a_target_is_found_by_the_name_of_its_device(name: str, expected: str):
    assert find_target(name).name == expected


@pytest.mark.parametrize(
    "name",
    # Variants with another bandwidth or another number of multiprocessors, and nothing at all.
    ["NVIDIA H200 NVL", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA L40S", "", "A10"],
)
def test_another_device_is_not_taken_for_a_target(name: str):
    with pytest.raises(DwrError, match="known: H200, H100, A100, L4, T4, RTX 4090, Jetson Orin"):
        load_model(name)


def test_a_t4_multiplies_bfloat16_and_tf32_on_its_ordinary_units():
    t4 = find_target("T4")
    assert t4.rate("float16", matrix=True) == 65e12
    assert [t4.rate(n, matrix=True) for n in ("bfloat16", "tf32", "float32")] == [8.1e12] * 3


RATES = {
    "copy": 1e12, "launch": 2e-6, "l2_bytes": 1e6, "multiprocessors": 10.0, "fma.float32": 1e12,
    "matrix.float16": 1e13,
}  # fmt: skip


def test_a_target_is_made_of_measured_rates():
    made = Target.measured("NVIDIA X", {**RATES, "fma.float64": 5e11})
    assert (made.bandwidth, made.launch, made.l2_bytes, made.multiprocessors) == (
        1e12,
        2e-6,
        1e6,
        10,
    )
    assert (made.fma, made.matrix) == ({"float32": 1e12, "float64": 5e11}, {"float16": 1e13})
    assert "rates measured on it" in Model(made).sentence


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({}, "the rates of X lack copy, launch, l2_bytes, multiprocessors, fma.float32"),
        ({n: r for n, r in RATES.items() if n != "launch"}, "the rates of X lack launch"),
        ({**RATES, "matrix.int8": 1e12}, "have matrix.int8, which no model knows; known: copy"),
        ({**RATES, "copy": 0.0}, "copy of X is 0.0, where a positive finite number is expected"),
        ({**RATES, "copy": float("nan")}, "copy of X is nan"),
        ({**RATES, "launch": float("inf")}, "launch of X is inf"),
        ({**RATES, "fma.float32": "fast"}, "fma.float32 of X is 'fast'"),
        ({**RATES, "l2_bytes": True}, "l2_bytes of X is True"),
        ({**RATES, "multiprocessors": 0.5}, "multiprocessors of X is 0.5"),
    ],
)
def test_damaged_rates_are_refused(rates: dict[str, float], message: str):
    with pytest.raises(DwrError, match=re.escape(message)):
        Target.measured("X", rates)


def test_the_documentation_has_the_figures_of_the_targets():
    text = DOCS.read_text(encoding="utf-8")
    for target in targets():
        tf32 = f"{target.matrix['tf32'] / 1e12:g}" if "tf32" in target.matrix else "none"
        bf16 = f"{target.matrix['bfloat16'] / 1e12:g}" if "bfloat16" in target.matrix else "none"
        cells = [
            target.title, f"{target.bandwidth / 1e9:g}", f"{target.l2_bytes / 2**20:g}",
            str(target.multiprocessors), f"{target.fma['float32'] / 1e12:g}",
            f"{target.matrix['float16'] / 1e12:g}", bf16, tf32,
        ]  # fmt: skip
        assert f"| {' | '.join(cells)} |" in text
        for source in target.source.values():
            for address in re.findall(r"https://[^\s,;]+", source):
                assert address in text
