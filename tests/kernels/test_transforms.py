"""The operators under torch.vmap, torch.func, torch.autocast, torch.compile and torch.export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from dwr_rewrite.kernels import ops
from tests.kernels.calls import LAST, C, conv, draw, plain, tensors, wanting, weight_arguments

OF_TORCH = "ignore:.torch.jit.script:DeprecationWarning"  # which its own imports call


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (1, 2, 0), (None, None, 1),
                                  (4, None, 0)])  # fmt: skip
def test_vmap(axes: tuple[int | None, ...]) -> None:
    x, weight, bias = tensors()
    given = [
        item if axis is None else torch.stack([item, 2 * item, item - 1]).movedim(0, axis)
        for item, axis in zip((x, weight, bias), axes, strict=True)
    ]

    def loss(step: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return F.silu(step(*inputs)).square().sum()

    def fused(*inputs: Tensor) -> Tensor:
        return conv(*inputs, activation="silu").square().sum()

    mapped = torch.vmap(conv, axes)(*given)
    torch.testing.assert_close(mapped, torch.vmap(plain, axes)(*given))
    for argument in range(3):
        found = torch.vmap(torch.func.grad(fused, argument), axes)(*given)
        of_plain = torch.func.grad(lambda *inputs: loss(plain, *inputs), argument)
        torch.testing.assert_close(found, torch.vmap(of_plain, axes)(*given))


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("axes", [(0, None), (1, 0), (None, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_vmap_of_the_gradient_of_the_weight(axes: tuple[int | None, ...], bias: bool) -> None:
    x, gradient, *rest = weight_arguments("convolution", bias)

    def call(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return ops.depthwise_weight(x, gradient, *rest)

    given = [
        item if axis is None else torch.stack([item, 2 * item, item - 1]).movedim(0, axis)
        for item, axis in zip((x.detach(), gradient.detach()), axes, strict=True)
    ]
    mapped = torch.vmap(call, axes)(*given)
    for i in range(3):
        one = [
            t if axis is None else t.select(axis, i) for t, axis in zip(given, axes, strict=True)
        ]
        torch.testing.assert_close(tuple(part[i] for part in mapped), call(*one))


def test_vmap_runs_the_kernels_on_an_empty_batch_too(path: str) -> None:
    x, weight, bias = tensors(torch.float32)
    many = torch.stack([x, -x])
    found = torch.vmap(conv, (0, None, None))(many, weight, bias)
    torch.testing.assert_close(found[1], plain(-x, weight, bias))
    assert torch.vmap(conv, (0, None, None))(many[:, :0], weight, bias).shape == (2, 0, 4, 3, 3)


@pytest.mark.usefixtures("aten")
@pytest.mark.filterwarnings(OF_TORCH)
def test_forward_mode_and_hessians() -> None:
    x, weight, bias = tensors()
    _, found = torch.func.jvp(lambda x: conv(x, weight, bias, activation="silu"), (x,), (x,))
    _, expected = torch.func.jvp(lambda x: F.silu(plain(x, weight, bias)), (x,), (x,))
    torch.testing.assert_close(found, expected)
    with forward_ad.dual_level():
        y = conv(forward_ad.make_dual(x, x), weight)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, plain(x, weight))
    by_kernel = torch.func.hessian(lambda w: conv(x, w).pow(3).sum())(weight)
    torch.testing.assert_close(
        by_kernel, torch.func.hessian(lambda w: plain(x, w).pow(3).sum())(weight)
    )


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    x, weight, bias = wanting(*tensors(torch.float32))
    with torch.autocast("cpu", dtype=dtype):
        y = conv(x, weight, bias, activation="relu")
        assert y.dtype == dtype
        assert conv(x.double(), weight.double()).dtype == torch.float64
    y.sum().backward()
    assert {t.grad.dtype for t in (x, weight, bias) if t.grad is not None} == {torch.float32}
    narrow = [t.detach().to(dtype) for t in (x, weight)]
    assert torch.equal(y, conv(*narrow, bias, activation="relu"))
    assert conv(x, weight).dtype == torch.float32  # outside again


@pytest.mark.usefixtures("aten", "fresh_dynamo")
@pytest.mark.filterwarnings(OF_TORCH)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_compile_has_one_graph_for_all_sizes(backend: str, layout: torch.memory_format) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(module)
        return torch._dynamo.lookup_backend(backend)(module, inputs)

    _, weight, bias = tensors(torch.float32)

    def model(x: Tensor, step: Callable[..., Tensor]) -> Tensor:
        return step(x * 2, weight, bias).sin()

    compiled = torch.compile(lambda x: model(x, conv), fullgraph=True, backend=count, dynamic=True)
    # no two lengths of the first call are equal: torch would take them for one
    for shape in ((7, C, 6, 5), (4, C, 9, 8), (5, C, 7, 12), (8, C, 20, 17)):
        x = draw(*shape, dtype=torch.float32).to(memory_format=layout).requires_grad_()
        y, expected = compiled(x), model(x, plain)
        torch.testing.assert_close(y, expected)
        assert y.stride() == expected.stride()
        (found,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), x)[0])
    assert len(graphs) == 1


@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_runs_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, weight, bias = tensors(torch.float32)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), plain(x, weight, bias))


class Network(torch.nn.Module):
    def __init__(self, front: int) -> None:
        super().__init__()
        _, weight, bias = tensors(torch.float32)
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        self.front = front

    def forward(self, x: Tensor) -> Tensor:
        return ops.depthwise(
            x, self.weight, None, self.bias, [n - 2 + 2 * self.front // 2 for n in x.shape[2:]],
            [1, 1], [self.front] * 2, [1, 1], C, False, False, "relu6", "",
        )  # fmt: skip


@pytest.mark.usefixtures("aten")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of torch.export itself
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("front", [0, 2], ids=["aten pads", "padded before"])
def test_export_keeps_the_operator_and_decomposes_to_aten(strict: bool, front: int) -> None:
    x, other = draw(2, C, 6, 5, dtype=torch.float32), draw(3, C, 9, 11, dtype=torch.float32)
    model = Network(front)
    axes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4, max=99),
            3: torch.export.Dim("w", min=4, max=99)}  # fmt: skip
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": axes}, strict=strict)
    assert targets(exported) - SIZES == {"dwr::depthwise"}
    torch.testing.assert_close(exported.module()(other), model(other))
    lowered = exported.run_decompositions(ops.decompositions())
    pads = {"aten::constant_pad_nd"} if front else set()
    assert targets(lowered) - SIZES == {"aten::convolution", "aten::relu6", *pads}
    torch.testing.assert_close(lowered.module()(other), model(other))


SIZES = {"aten::sym_size"}


def targets(program: torch.export.ExportedProgram) -> set[str]:
    return {
        node.target.name().split(".")[0]
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    }
