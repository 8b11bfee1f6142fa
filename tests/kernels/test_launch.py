from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dwr_rewrite.errors import DwrError
from dwr_rewrite.kernels import banded, gather, launch, layout, ops, tiles, weight

LAST = torch.channels_last
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What kernels were launched with, in place of launching them."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    calls: Calls = []

    def record(*arguments: Any, **options: Any) -> None:
        calls.append((arguments, options))

    for module, name in ((gather, "run"), (weight, "run"), (banded, "run"), (banded, "run_weight")):
        monkeypatch.setattr(module, name, record)
    return calls


def conv(x: Tensor, filters: Tensor, tile: str = "", **vectors: Tensor) -> Tensor:
    rank = x.dim() - 2
    return ops.depthwise(
        x, filters, vectors.get("scale"), vectors.get("bias"), x.shape[2:], [1] * rank, [1] * rank,
        [1] * rank, x.shape[1], False, False, "none", tile,
    )  # fmt: skip


def gradient_of(x: Tensor, gradient: Tensor, *, adjoint: bool = False, tile: str = "") -> Any:
    return ops.depthwise_weight(
        x, gradient, [x.shape[1], 1, 3, 3], [1, 1], [1, 1], [1, 1], x.shape[1], adjoint, True, tile
    )


FORMATS: dict[str, tuple[Tensor, bool]] = {
    "NCHW": (torch.empty(2, 3, 4, 5), False),
    "channels_last": (torch.empty(2, 3, 4, 5).to(memory_format=LAST), True),
    "3-D": (torch.empty(2, 3, 4, 5, 2).to(memory_format=torch.channels_last_3d), True),
    "a slice of channels": (torch.empty(2, 8, 4, 5).to(memory_format=LAST)[:, :3], True),
    "NLC": (torch.empty(2, 7, 3).transpose(1, 2), True),
    "NCL": (torch.empty(2, 3, 7), False),
    "one pixel": (torch.empty(2, 3, 1, 1), False),
    "one channel": (torch.empty(2, 1, 4, 5).to(memory_format=LAST), False),
    "turned": (torch.empty(2, 3, 4, 5).transpose(2, 3), False),
    "expanded": (torch.empty(2, 3, 1, 1).expand(2, 3, 4, 5), False),
    "empty": (torch.empty(0, 3, 4, 5).to(memory_format=LAST), True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str) -> None:
    x, last = FORMATS[name]
    assert layout.channels_last(x) == last
    y = layout.empty(x, 6, [2] * (x.dim() - 2))
    assert y.shape == (x.shape[0], 6, *[2] * (x.dim() - 2)) and y.dtype == x.dtype
    assert layout.channels_last(y) == last
    assert (y.movedim(1, -1) if last else y).is_contiguous()
    assert layout.like(y, x).data_ptr() == y.data_ptr()
    other = torch.randn(y.shape) if last else torch.randn(y.shape).movedim(1, -1).contiguous()
    other = other if last else other.movedim(-1, 1)
    laid = layout.like(other, x)
    assert torch.equal(laid, other)
    assert laid.stride() == y.stride() or not y.numel()  # which lies nowhere


@pytest.mark.parametrize("name", FORMATS)
def test_a_volume_is_a_view(name: str) -> None:
    x, _ = FORMATS[name]
    found = layout.volume(x)
    spatial = (*(1,) * (5 - x.dim()), *x.shape[2:])
    assert found.shape == (*x.shape[:2], *spatial)
    assert found.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    strides = [s for n, s in zip(found.shape, found.stride(), strict=True) if n > 1]
    assert strides == [s for n, s in zip(x.shape, x.stride(), strict=True) if n > 1]


@pytest.mark.parametrize("name", ["NCHW", "channels_last", "a slice of channels", "turned",
                                  "expanded"])  # fmt: skip
def test_activations_are_never_copied(name: str, launched: Calls) -> None:
    x, _ = FORMATS[name]
    filters = torch.ones(3, 1, 3, 3).to(memory_format=LAST)
    y = conv(x, filters)
    ((given, flat, scale, bias, out, *_), _) = launched[0]
    assert given.data_ptr() == x.data_ptr() and out.data_ptr() == y.data_ptr()
    assert flat.data_ptr() == filters.data_ptr() and flat.shape == (3, 9)
    assert scale is None and bias is None
    weights, sums = gradient_of(x, y)
    ((given, gradient, out, bias_out, *_), _) = launched[1]
    assert given.data_ptr() == x.data_ptr() and gradient.data_ptr() == y.data_ptr()
    assert out.data_ptr() == weights.data_ptr() and bias_out.data_ptr() == sums.data_ptr()


def test_what_is_small_is_made_contiguous(launched: Calls) -> None:
    every_second = torch.arange(6.0)[::2]
    filters = torch.arange(27.0).reshape(3, 3, 3).transpose(1, 2)[:, None]
    conv(torch.ones(1, 3, 4, 4), filters, scale=every_second, bias=every_second)
    ((_, flat, scale, bias, *_), _) = launched[0]
    assert flat.is_contiguous() and torch.equal(flat, filters.reshape(3, 9))
    for vector in (scale, bias):
        assert vector.is_contiguous() and torch.equal(vector, every_second)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0, 3, 4), (0, 3, 4, 4, 4)])
def test_an_empty_batch_launches_nothing(shape: tuple[int, ...], launched: Calls) -> None:
    x = torch.empty(shape)
    assert conv(x, torch.ones(3, 1, *(3,) * (len(shape) - 2))).shape == shape
    assert launched == []


def test_the_gradients_of_an_empty_batch_are_zero(launched: Calls) -> None:
    x = torch.empty(0, 3, 4, 4)
    weights, sums = gradient_of(x, x)
    assert torch.equal(weights, torch.zeros(3, 1, 3, 3)) and torch.equal(sums, torch.zeros(3))
    assert launched == []


def test_sums_of_a_transposed_map_are_atens(launched: Calls) -> None:
    x, gradient = torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    _, sums = gradient_of(x, gradient, adjoint=True)
    assert torch.equal(sums, torch.full((3,), 32.0))
    assert launched[0][0][3] is None


def tile_of(calls: Calls) -> str:
    arguments, _ = calls[-1]
    (tile,) = [str(a) for a in arguments if type(a).__name__ == "Tile"]
    return tile


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_tile_is_the_one_asked_for(dtype: torch.dtype, launched: Calls) -> None:
    text = "fma.c1.p64.d1.r3.v2.w2.s1"
    x = torch.ones(1, 3, 4, 4, dtype=dtype)
    conv(x, torch.ones(3, 1, 3, 3, dtype=dtype), text)
    assert tile_of(launched) == text
    gradient_of(x, x, tile=text)
    assert tile_of(launched) == text


def test_without_one_the_heuristic_chooses(launched: Calls) -> None:
    x = torch.ones(1, 3, 4, 4)
    conv(x, torch.ones(3, 1, 3, 3))
    problem = next(a for a in launched[0][0] if type(a).__name__ == "Problem")
    sizes = (problem, 1, (1, 4, 4), (1, 4, 4), 4, False, 132)
    assert tile_of(launched) == str(tiles.default(*sizes))
    gradient_of(x, x)
    assert tile_of(launched) == str(tiles.default_weight(*sizes))


@pytest.mark.parametrize("text", ["fma", "fma.c3.p64.d1.r3.v2.w2.s1", "wide"])
def test_a_bad_tile_is_refused(text: str, launched: Calls) -> None:
    with pytest.raises(DwrError, match=f"tile {text!r}"):
        conv(torch.ones(1, 3, 4, 4), torch.ones(3, 1, 3, 3), text)
    assert launched == []


def test_a_tile_that_cannot_cut_the_problem_is_refused(launched: Calls) -> None:
    x, filters = torch.ones(1, 3, 4, 4), torch.ones(3, 1, 3, 3)
    sizes = ([8, 8], [2, 2], [1, 1], [1, 1], 3, True, True, "none")
    with pytest.raises(DwrError, match="columns in multiples of the stride 2"):
        ops.depthwise(x, filters, None, None, *sizes, "fma.c1.p64.d1.r2.v1.w2.s1")
    assert launched == []


def test_a_tile_for_16_bits_leaves_32_to_the_heuristic(launched: Calls) -> None:
    x = torch.ones(1, 3, 4, 4)
    gradient_of(x, x, tile="mma.c1.p64.d1.r1.v1.w2.s1")
    assert tile_of(launched).startswith("fma")


def test_atomics_are_off_until_allowed_and_where_determinism_is_asked(launched: Calls) -> None:
    x = torch.ones(1, 3, 4, 4)

    def atomic() -> bool:
        gradient_of(x, x)
        return launched[-1][1]["atomic"]

    assert not atomic()
    try:
        assert ops.allow_atomics(True) is False
        assert atomic()
        torch.use_deterministic_algorithms(True)
        assert not atomic()
    finally:
        torch.use_deterministic_algorithms(False)
        assert ops.allow_atomics(False) is True
    assert not atomic()


def test_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert launch.available(cpu) and not launch.available(torch.device("meta"))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert not launch.available(cpu)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not launch.available(cpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, device.index))
    launch._capable.cache_clear()
    assert launch.available(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not launch.available(torch.device("cuda", 1))
    launch._capable.cache_clear()
