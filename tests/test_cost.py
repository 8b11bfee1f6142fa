"""The cost model: its arithmetic against real arrays, its targets, and its roofline by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks._layers_shapes import load
from dwr_rewrite.cost import Model, Target, load_model, targets, work_of
from dwr_rewrite.cost.efficiency import (
    UNFITTED_MARGIN,
    Efficiency,
    Factors,
    Key,
    as_json,
    keys,
    shipped,
)
from dwr_rewrite.cost.model import FMA_BLOCK, share_of_waves, thread_blocks
from dwr_rewrite.lowerings import candidates, dense, keep, kernel
from dwr_rewrite.lowerings.diagonal import diagonal
from dwr_rewrite.planner.auto import Sites, modelled
from dwr_rewrite.recipe import run
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.workload import DIRECTIONS, Workload

SPECS = {
    "1d": ConvSpec(4, (3,), padding=((1, 1),), spatial=(9,)),
    "2d-stride": ConvSpec(6, (3, 2), stride=(2, 1), padding=((0, 1), (2, 0)), spatial=(9, 8)),
    "2d-multiplier": ConvSpec(4, (3, 3), multiplier=3, dilation=(2, 1), spatial=(9, 8)),
    "3d": ConvSpec(4, (3, 1, 2), multiplier=2, spatial=(5, 4, 6)),
    "transposed-1d": ConvSpec(
        4, (4,), stride=(2,), padding=((1, 1),), transposed=True, spatial=(7,)
    ),
    "transposed-2d": ConvSpec(
        6, (3, 2), multiplier=2, stride=(2, 3), transposed=True, output_padding=(1, 2),
        spatial=(4, 5),
    ),
}  # fmt: skip


def arrays(spec: ConvSpec, batch: int, width: int):
    """Input, output and packed weight as the interpreter makes them."""
    recipe = diagonal(spec, width)
    x = np.zeros((batch, spec.channels, *(n or 0 for n in spec.spatial)), np.float32)
    compact = np.zeros(spec.weight_shape, np.float32)
    return x, run(recipe, x, compact), compact, recipe.packing.pack(compact)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("spec", [pytest.param(s, id=n) for n, s in SPECS.items()])
def test_work_is_that_of_real_arrays(spec: ConvSpec, width: int, direction: str):
    x, y, compact, packed = arrays(spec, 2, width)
    workload = Workload(spec, 2, direction, stored=False)
    found = work_of(workload, diagonal(spec, width))
    # Each element of the side that is not summed over meets its row of the packed weight.
    row = packed.size // (spec.channels if spec.transposed else spec.out_channels)
    assert found.flops == 2 * (x if spec.transposed else y).size * row
    moved = x.nbytes + y.nbytes + packed.nbytes
    if width > 1 and direction == "grad_weight":
        moved += 2 * compact.nbytes  # reads the diagonal, writes it
    elif width > 1:
        moved += compact.nbytes + packed.nbytes  # packs
    assert (found.bytes, found.weight_bytes) == (moved, packed.nbytes)
    assert found.launches == (1 if width == 1 else 2)


def test_work_agrees_with_the_layer_study():
    for layer in load():
        spec = layer.spec
        for batch in (1, 64):
            for recipe in candidates(spec).values():
                width = recipe.packing.width
                found = work_of(Workload(spec, batch), recipe)
                assert found.flops == layer.flops(batch, width)
                assert found.bytes == 4 * layer.elements(batch, width)


def test_a_stored_weight_is_not_packed():
    spec = SPECS["2d-stride"]
    stored, packed = (
        work_of(Workload(spec, 1, stored=s), dense.lower(spec)) for s in (True, False)
    )
    weight = prod(spec.weight_shape) * 4
    assert (stored.launches, stored.reread_bytes) == (1, 0)
    assert packed.bytes - stored.bytes == weight * (1 + spec.channels)
    assert packed.reread_bytes == weight * spec.channels


RATES = {
    "copy": 1e12, "launch": 2e-6, "l2_bytes": 1e6, "multiprocessors": 10.0, "fma.float32": 1e12,
    "matrix.float16": 1e13,
}  # fmt: skip


TOY = Target.measured("toy", RATES)
"""1 TB/s, 1 and 10 Tflop/s, 2 us a step, 10 multiprocessors."""


def toy(width: int, dtype: str = "float16", **kind: object) -> float:
    """Microseconds, without the steps, of 40 x 1024 results of 8 channels: forty blocks of FMA
    kernels and ten of matrix products, so that all multiprocessors are busy."""
    spec = ConvSpec(8, (3, 3), padding=((1, 1), (1, 1)), spatial=(64, 80), dtype=dtype)
    workload, recipe = Workload(spec, 1, **kind), diagonal(spec, width)
    steps = work_of(workload, recipe).launches
    return 1e6 * Model(TOY).seconds(workload, recipe) - 2 * steps


RESULTS = 40 * 1024
TAPS = 9


@pytest.mark.parametrize(
    ("found", "microseconds"),
    [
        # 2 bytes in and out, and the weight's; the flops at 1 Tflop/s take 9 * 2 bytes' time.
        (toy(1), RESULTS * TAPS * 2 / 1e6),
        (toy(8), RESULTS * TAPS * 2 * 8 / 1e7),
        (toy(2), (2 * 2 * RESULTS + 2 * 8 * TAPS * 2) / 1e6),
        # bfloat16, float32 and float64 have no matrix unit here.
        (toy(8, "bfloat16"), RESULTS * TAPS * 2 * 8 / 1e6),
        (toy(8, "float32"), RESULTS * TAPS * 2 * 8 / 1e6),
        (toy(8, "float32", tf32=True), RESULTS * TAPS * 2 * 8 / 1e6),
        (toy(8, "float64"), RESULTS * TAPS * 2 * 8 / 1e6),
        # Packed in every call: reads the compact weight, writes the packed one, has it in L2.
        (toy(2, stored=False), (2 * 2 * RESULTS + 2 * 8 * TAPS * (1 + 2)) / 1e6),
        (toy(1, direction="grad_input", stored=False), RESULTS * TAPS * 2 / 1e6),
    ],
)
def test_the_roofline_by_hand(found: float, microseconds: float):
    assert found == pytest.approx(microseconds, rel=1e-9)


def test_a_packed_weight_beyond_the_cache_is_read_from_memory():
    spec = ConvSpec(64, (3, 3), padding=((1, 1), (1, 1)), spatial=(64, 80))
    workload, recipe = Workload(spec, 1, stored=False), dense.lower(spec)
    work = work_of(workload, recipe)
    small = replace(TOY, l2_bytes=work.weight_bytes - 1)
    more = Model(small).bounds(workload, recipe).memory - Model(TOY).bounds(workload, recipe).memory
    assert more == pytest.approx(work.weight_bytes / 1e12)


@pytest.mark.parametrize(
    ("blocks", "share"), [(1, 0.1), (9, 0.9), (10, 1.0), (11, 0.55), (20, 1.0), (1001, 0.991089)]
)
def test_the_share_of_full_waves(blocks: int, share: float):
    assert share_of_waves(blocks, 10) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_unfilled_wave_stretches_both_limits(dtype: str):
    """One block of depthwise kernels, on one of ten multiprocessors."""
    spec = ConvSpec(8, (3, 3), padding=((1, 1), (1, 1)), spatial=(8, 16), dtype=dtype)
    workload, recipe = Workload(spec, 1), keep.lower(spec)
    work, found = work_of(workload, recipe), Model(TOY).bounds(workload, recipe)
    assert found.memory == pytest.approx(10 * work.bytes / 1e12)
    assert found.arithmetic == pytest.approx(10 * work.flops / 1e12)


def test_thread_blocks():
    spec = ConvSpec(4, (3, 3), multiplier=2, padding=((1, 1), (1, 1)), spatial=(64, 64))
    counts = {
        (direction, kind): thread_blocks(Workload(spec, 2, direction, stored=False), kind)
        for direction in DIRECTIONS
        for kind in ("keep", "kernel", "blocks")
    }
    inputs, outputs = 2 * 4 * 64 * 64, 2 * 8 * 64 * 64
    assert counts == {
        ("forward", "keep"): outputs // 1024, ("forward", "blocks"): outputs // 4096,
        ("grad_input", "keep"): inputs // 1024, ("grad_input", "blocks"): inputs // 4096,
        ("grad_weight", "keep"): 8 * 9, ("grad_weight", "blocks"): outputs // 4096,
        ("forward", "kernel"): outputs // 1024, ("grad_input", "kernel"): inputs // 1024,
        ("grad_weight", "kernel"): outputs // 1024,
    }  # fmt: skip
    for other in ({"layout": "channels_last"}, {"spec": replace(spec, dtype="float16")}):
        workload = replace(Workload(spec, 2, "grad_weight", stored=False), **other)
        assert thread_blocks(workload, "keep") == outputs // FMA_BLOCK


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 300), size=st.integers(1, 64), kernel=st.integers(1, 9),
    batch=st.integers(1, 64), target=st.sampled_from(targets()),
    direction=st.sampled_from(DIRECTIONS),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)  # fmt: skip
def test_no_form_is_faster_than_the_peaks_allow(
    channels: int, size: int, kernel: int, batch: int, target: Target, direction: str, dtype: str
):
    pads = ((kernel // 2, kernel // 2),) * 2
    spec = ConvSpec(channels, (kernel, kernel), padding=pads, spatial=(size, size), dtype=dtype)
    workload = Workload(spec, batch, direction, stored=False)
    best = max(*target.fma.values(), *target.matrix.values())
    for recipe in candidates(spec).values():
        work, seconds = work_of(workload, recipe), Model(target).seconds(workload, recipe)
        assert seconds * best >= work.flops * (1 - 1e-9)
        assert seconds * target.bandwidth >= (work.bytes - work.reread_bytes) * (1 - 1e-9)


def test_factors_come_from_the_narrowest_key():
    spec = ConvSpec(48, (3, 3), spatial=(8, 8))
    workload = Workload(spec, 1, "grad_input", "channels_last", tf32=True, stored=False)
    narrow = list(keys(workload, diagonal(spec, 12)))
    assert narrow == [
        Key("blocks:16", "grad_input", "tf32", "channels_last"),
        Key("blocks", "grad_input", "tf32", "channels_last"),
        Key("blocks", "grad_input", "tf32"), Key("blocks", "grad_input"), Key("blocks"),
    ]  # fmt: skip
    assert next(keys(workload, diagonal(spec, 6))).form == "blocks:8"
    assert next(keys(workload, diagonal(replace(spec, channels=50), 10))).form == "blocks:8"
    assert next(keys(workload, keep.lower(spec))).form == "keep"
    assert next(keys(workload, dense.lower(spec))).form == "dense"
    table: dict[Key, Factors] = {}
    for rate, key in enumerate(reversed(narrow), 2):
        assert Efficiency(table).of(workload, diagonal(spec, 12)).rate == max(1, rate - 1)
        table[key] = Factors(rate=rate)


def test_factors_change_the_time():
    spec = ConvSpec(8, (3, 3), padding=((1, 1), (1, 1)), spatial=(64, 80), dtype="float16")
    workload, recipe = Workload(spec, 1), keep.lower(spec)
    launches, memory, arithmetic = Model(TOY).bounds(workload, recipe)
    for factors in (Factors(0.01, 0.5, 7e-6), Factors(0.5, 0.25), Factors()):
        model = Model(TOY, Efficiency({Key("keep"): factors}))
        step = 2e-6 if factors.launch is None else factors.launch
        limits = memory / factors.bandwidth, arithmetic / factors.rate
        assert model.seconds(workload, recipe) == pytest.approx(launches * step + max(limits))


def test_the_file_of_factors_is_read_as_it_was_written():
    errors = {"observations": 100, "layers": 9, "median": 1.2, "p90": 1.7}
    narrow = Key("blocks:8", "forward", "tf32", "nchw")
    factors = {Key("keep"): Factors(0.5, 0.25, 1e-6), narrow: Factors()}
    sources = ({"file": "results/x/layers.json", "torch": "2.13"},)
    first = Efficiency(factors, 1.3, errors, sources)
    rows = json.loads(as_json({"H200": first, "T4": Efficiency()}))
    assert rows["schema"] == 1
    found = {name: Efficiency.from_dict(row) for name, row in rows["devices"].items()}
    assert found == {"H200": first, "T4": Efficiency()}
    assert "error of 1.20 times (90 % within 1.70)" in Model(TOY, first).sentence
    assert "1.3 times as fast" in Model(TOY, first).sentence


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("spec", [pytest.param(s, id=n) for n, s in SPECS.items()])
def test_a_kernel_moves_every_byte_once_on_the_ordinary_units(spec: ConvSpec, direction: str):
    tile = "fma.c1.p128.d1.r4.v2.w4.s1"
    ours, theirs = kernel.lower(spec, tile), keep.lower(spec)
    for stored in (True, False) if direction == "forward" else (False,):
        workload = Workload(spec, 2, direction, stored=stored)
        assert work_of(workload, ours) == work_of(workload, theirs)
        if direction != "grad_weight":  # for which PyTorch's own kernel has few blocks
            assert Model(TOY).bounds(workload, ours) == Model(TOY).bounds(workload, theirs)


def test_all_tiles_of_a_kernel_share_their_factors():
    spec = ConvSpec(48, (3, 3), spatial=(8, 8))
    workload = Workload(spec, 1, "grad_input", stored=False)
    for tile in ("", "fma.c1.p128.d1.r4.v2.w4.s1"):
        found = list(keys(workload, kernel.lower(spec, tile)))
        assert {key.form for key in found} == {"kernel"}
        assert found[0] == Key("kernel", "grad_input", "float32", "nchw")
    assert Efficiency({found[-1]: Factors()}).covers("kernel")
    assert not Efficiency({Key("keep"): Factors()}).covers("kernel")


def test_what_is_shipped_says_what_it_rests_on():
    assert set(shipped()) <= {target.name for target in targets()}
    for target in targets():
        model = load_model(target.name)
        assert model.sentence.startswith(f"modelled for {target.title}, not measured: ")
        if target.name in shipped():
            assert model.efficiency.sources
            assert model.margin > 1
        else:
            assert model.efficiency.factors == {}
            assert model.margin == UNFITTED_MARGIN == 2
            assert "no measured layer has been fitted for this device yet" in model.sentence


def test_the_planner_takes_a_model():
    # A gradient of a weight of 36 elements keeps 36 of the 132 multiprocessors busy.
    few = ConvSpec(4, (3, 3), padding=((1, 1), (1, 1)), spatial=(112, 112))
    many = replace(few, channels=256)
    sites = Sites({
        "few": (Workload(few, 64, "grad_weight", stored=False),),
        "many": (Workload(many, 64, "grad_weight", stored=False),),
    })  # fmt: skip
    plan = modelled(sites, load_model("H200"))
    assert plan.basis.sentence == load_model("H200").sentence
    assert {name: choice.form for name, (choice,) in plan.choices.items()} == {
        "few": "dense", "many": "keep",
    }  # fmt: skip
