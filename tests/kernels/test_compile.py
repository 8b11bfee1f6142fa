"""Kernels compile for GPUs that are not here, without spills; and a check of that fails if not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import check_kernels
from benchmarks._compile import read
from benchmarks._compile_cases import REPRESENTATIVE, cases, layers, per_output, per_position
from benchmarks.check_kernels import LIMIT, faults, summary, table
from dwr_rewrite.workload import DIRECTIONS, LAYOUTS

ROOT = Path(check_kernels.__file__).parents[1]
PLAIN = "C128m1 k3x3 s1x1 p1x1 d1x1 on 56x56"


def checked(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.check_kernels", "--jobs", "1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_a_few_kernels_compile_without_spills() -> None:
    done = checked("--quick")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "no spills, no failures" in done.stdout
    rows = rows_of(done.stdout)
    assert {(row[1], row[3]) for row in rows if row[0] == PLAIN} == {
        (direction, layout) for direction in DIRECTIONS for layout in LAYOUTS
    }
    for row in rows:
        _, _, _, _, _, arch, kernel, registers, spilled, _, sass, *_ = row
        assert (arch, spilled) == ("90", "0") and "." in kernel
        assert 0 < int(registers) <= 255 and int(sass) > 0


def test_a_tile_that_spills_makes_it_fail() -> None:
    """64 sums of a lane, where 32 warps leave a thread 64 registers."""
    layer, tile = "C512m1 k9 s1 p4 d1 on 1500 bias", "fma.c1.p1024.d1.r1.v64.w32.s1"
    narrowed = ["--directions", "forward", "--layers", layer, "--arch", "90", "--dtypes", "fp32"]
    done = checked(*narrowed, "--tile", tile)
    assert done.returncode == 1
    fault = rf"FAIL: {layer}, forward, fp32, nchw, {tile}, sm_90: \S+ spills \d+ bytes a thread"
    assert re.search(fault, done.stdout)


# Reading


SASS = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0020*/                   FFMA R4, R5, R6, R4 ;
        /*0030*/               @P1 BRA `(.L_x_{target}) ;
.L_x_3:
        /*0040*/                   EXIT ;
.L_x_2:
        /*0050*/                   BRA `(.L_x_2);
        /*0060*/                   NOP;
"""


@pytest.mark.parametrize(("target", "loop"), [("1", 2), ("3", 0)], ids=["back", "on"])
def test_instructions_are_counted_and_loops_seen(target: str, loop: int) -> None:
    counts = {"LDC": 1, "LDG": 1, "FFMA": 1, "BRA": 1, "EXIT": 1}
    assert read(SASS.replace("{target}", target)) == (counts, loop)


def row(**changes: Any) -> dict[str, Any]:
    kernel = {"kernel": "gather.kernel", "registers": 40, "spilled": 0, "shared": 0,
              "instructions": {"FFMA": 90, "LDG": 10}, "loop": 0, "threads": 128,
              "seconds": 1.0, "grid": [4, 2]} | changes  # fmt: skip
    return {"layer": "a layer", "direction": "forward", "dtype": "bf16", "layout": "nchw",
            "tile": "fma.c2.p64.d1.r4.v2.w4.s1", "default": True, "arch": 80, "outputs": 2048,
            "kernels": [kernel]}  # fmt: skip


def shown(*rows: dict[str, Any]) -> str:
    return "\n".join(table(rows))


def test_instructions_of_an_output() -> None:
    assert per_output(row()) == 100 * 128 * 8 / 2048
    assert per_output(row(loop=80)) is None


def test_instructions_of_a_position() -> None:
    """A program has 128 threads and 2 * 64 boxes of 8, so a thread has one box in every turn."""
    weight = row(loop=80) | {"direction": "grad_weight"}
    assert per_position(weight) == 10
    assert per_position(row(loop=80)) is None
    assert "| 10.0 a position |" in shown(weight)
    assert "| loop of 80 |" in shown(row(loop=80))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"spilled": 8}, "gather.kernel spills 8 bytes a thread"),
        ({"shared": 200 << 10}, "204800 bytes of shared memory"),
        ({"seconds": LIMIT + 1}, "compiling took 6.0 s; 5 s is the limit"),
    ],
)
def test_faults(changes: dict[str, Any], said: str | None) -> None:
    found = faults(row(**changes))
    assert found == [] if said is None else said in found[0]
    assert ("FAIL: a layer, forward, bf16" in summary([row(**changes)])) is (said is not None)


def test_tuning_may_wait_for_longer() -> None:
    assert faults(row(seconds=LIMIT + 1) | {"default": False}) == []


def test_the_seconds_of_a_call_are_those_of_all_its_kernels() -> None:
    both = row(seconds=3.0)
    both["kernels"] *= 2
    assert "compiling took 6.0 s" in faults(both)[0]
    assert len(rows_of(shown(both))) == 2


def test_a_failure_is_a_fault_and_a_row() -> None:
    failed = {k: v for k, v in row().items() if k not in ("kernels", "outputs")}
    failed["failed"] = "ValueError: no"
    assert faults(failed) == ["ValueError: no"]
    assert rows_of(shown(failed))[0][6] == "ValueError: no"


# Cases


def test_every_kind_of_geometry_is_compiled_in_every_way() -> None:
    found = [case for case in cases(layers(), [90, 80, 100]) if case.default]
    flat = sum(len(layer.kernel) == 1 for layer in layers())
    shapes = 2 * len(REPRESENTATIVE) - flat
    for (arch, dtype), count in {(90, "fp32"): 3, (90, "fp16"): 3, (80, "bf16"): 3}.items():
        of_these = [case for case in found if (case.arch, case.dtype) == (arch, dtype)]
        assert len(of_these) == shapes * count and all(case.tile for case in of_these)
    assert not [case for case in found if (case.arch, case.dtype) == (80, "fp32")]
    everything = cases(layers(), [90, 80, 100], thorough=True)
    assert sum(case.default for case in everything) == shapes * 3 * 3 * 3


def test_the_others_are_compiled_once_more() -> None:
    (layer,) = layers(PLAIN)
    with_others = cases([layer], [90, 80], ["bf16"])
    assert {case.arch for case in with_others if not case.default} == {90}
    assert len(set(with_others)) == len(with_others)
    (other,) = layers("C240m1 k5x5 s1x1")
    assert all(case.default for case in cases([other], [90, 80], ["bf16"]))
