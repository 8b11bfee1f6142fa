"""torch's own module test cases, run through the rewrite.

``torch.testing._internal`` is private and imports expecttest: where either is missing, or a name
has changed, these tests are skipped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import dwr_rewrite as dwr
from tests.passes.fx.test_modules import MIXED, close

CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d",
                "ConvTranspose3d")  # fmt: skip

Case = tuple[str, Callable[[], nn.Module], Callable[[], torch.Tensor]]


def quietly(load: Callable[[], list[Case]]) -> list[Case]:
    """Cases of a private module of torch; none where it is not as expected."""
    with warnings.catch_warnings():  # those of its imports
        warnings.simplefilter("ignore")
        try:
            return load()
        except (ImportError, AttributeError, TypeError, KeyError):
            return []


def module_infos() -> list[Case]:
    from torch.testing._internal.common_modules import module_db

    cases: list[Case] = []
    for info in module_db:
        if info.module_cls.__name__ not in CONVOLUTIONS:
            continue
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
        )
        for number, case in enumerate(inputs):
            made, given = case.constructor_input, case.forward_input.args[0]
            name = f"{info.module_cls.__name__}-{number}-{case.desc or 'batch'}"
            cases.append((
                name, lambda cls=info.module_cls, made=made: cls(*made.args, **made.kwargs),
                lambda given=given: given.clone(),
            ))  # fmt: skip
    return cases


def module_tests() -> list[Case]:
    from torch.testing._internal import common_nn

    cases: list[Case] = []
    for test in (*common_nn.module_tests, *common_nn.get_new_module_tests()):
        name = test.get("fullname") or test["module_name"] + "_" + test.get("desc", "")
        make = test.get("constructor")
        if make is None and test["module_name"] in CONVOLUTIONS:
            cls, arguments = getattr(nn, test["module_name"]), test["constructor_args"]
            make = lambda cls=cls, arguments=arguments: cls(*arguments)  # noqa: E731
        if not name.startswith(CONVOLUTIONS) or make is None:
            continue
        size, given = test.get("input_size"), test.get("input_fn")
        cases.append((name, make, given or (lambda size=size: torch.randn(size))))
    return cases


CASES = {name: (make, given) for name, make, given in quietly(module_infos) + quietly(module_tests)}


def test_there_are_cases():
    if not CASES:
        pytest.skip("torch.testing._internal is not as it was, or expecttest is not installed")
    assert len(CASES) >= 40


def depthwise(module: Any) -> nn.Module:
    """The same module with as many groups as channels, and a multiple of them as outputs."""
    channels, cls = module.in_channels, type(module)
    transposed = cls.__name__.startswith("ConvTranspose")
    options = {"output_padding": module.output_padding} if transposed else {}
    outputs = -(-module.out_channels // channels) * channels
    return cls(
        channels, outputs, module.kernel_size, stride=module.stride, padding=module.padding,
        dilation=module.dilation, groups=channels, bias=module.bias is not None,
        padding_mode=module.padding_mode, **options,
    )  # fmt: skip


def run(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    y.square().sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"y": y, "x": x.grad if x.grad is not None else x, **gradients}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("as_depthwise", [False, True], ids=["as it is", "depthwise"])
@pytest.mark.parametrize("name", CASES)
def test_a_case_of_torch_s_own(name, as_depthwise):
    make, given = CASES[name]
    torch.manual_seed(0)
    model: Any = make().double()
    x = given().double()
    if as_depthwise:
        model = depthwise(model).double()
    expected = run(model, x)
    rewritten = dwr.fx_rewrite(model, weights="linked", policy=MIXED)
    stored = dwr.fx_rewrite(model, weights="precomputed", policy="dense")
    for result in (rewritten, stored):
        sites = dwr.record(result)
        if as_depthwise and max(model.kernel_size) > 1:
            assert [(site.changed, site.reason) for site in sites] == [(True, None)]
        elif model.groups == 1:
            assert sites == []
        else:
            assert len(sites) == 1
    close(run(rewritten, x), expected)
    close({"y": stored(x)}, {"y": expected["y"]})
    assert torch.equal(dwr.restore(stored)(x), expected["y"])
