"""The table of networks: what each runs is what it states, and together they hold every kind."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dwr_rewrite.errors import Rejection
from dwr_rewrite.report import SiteReport
from dwr_rewrite.spec import ConvSpec
from models import coverage
from models.calls import Call, describe, run
from models.entry import Entry, count_depthwise
from models.zoo import EXPORTED, ZOO

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@cache
def ran(name: str) -> tuple[torch.Tensor, list[Call]]:
    net = ZOO[name].build()
    return run(net.module, net.inputs)


@pytest.mark.parametrize("name", ZOO)
def test_a_network_runs_the_calls_that_it_states(name: str) -> None:
    output, calls = ran(name)
    assert len(calls) == ZOO[name].depthwise
    assert output.isfinite().all()
    assert output.std() > 0.01
    assert ZOO[name].family


@pytest.mark.parametrize("name", ZOO)
def test_a_network_follows_its_seed(name: str) -> None:
    first, again = ran(name)[0], ZOO[name].build()
    with torch.no_grad():
        assert torch.equal(again.module(*again.inputs), first)
        assert not torch.equal(again.module(*(-x for x in again.inputs)), first)


class Flipped(TorchDispatchMode):
    """Reverses the channels that one depthwise call gives, which no norm or gate undoes."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            groups, (_, channels, *_), (_, _, *kernel) = args[8], args[0].shape, args[1].shape
            if groups == channels > 1 and set(kernel) != {1}:
                self.index -= 1
                return result.flip(1) if self.index == -1 else result
        return result


@pytest.mark.parametrize("name", ZOO)
def test_every_call_shows_in_the_output(name: str) -> None:
    """Otherwise a wrong rewrite of it would go unseen."""
    net = ZOO[name].build()
    exact = ran(name)[0]
    for index in range(ZOO[name].depthwise):
        with torch.no_grad(), Flipped(index) as mode:
            output = net.module(*net.inputs)
        assert mode.index < 0
        assert (output - exact).norm() > 3 * coverage.WRONG * exact.norm()


def test_the_exported_networks() -> None:
    assert list(EXPORTED) == [
        "mobilenet_v1", "hf_mobilenet_v1", "hf_mobilenet_v2", "hf_efficientnet_b0", "hf_convnext",
        "hf_segformer", "hf_mobilevit", "hf_wav2vec2_conformer",
    ]  # fmt: skip
    for entry in EXPORTED.values():
        assert count_depthwise(entry.build().module) == entry.depthwise
    assert len(ZOO) >= 40


KINDS = (
    "3x3", "3x3 s2", "3x3 s4", "3x3 s2 m2", "3x3 d2", "3x3 d12", "5x5", "5x5 s2", "5x5 d2", "7x7",
    "7x7 s2", "7x7 s2 m2", "9x9", "9x9 d2", "11x11 s2", "13x13", "29x29", "31x31", "2x2", "2x2 s2",
    "4x4 s4", "1x5", "5x1", "1x11", "11x1", "65x1", "51x5", "3x3 s(2,1)", "3x3 s(1,2)", "k3",
    "k3 d9", "k4", "k5", "k7", "k7 s2", "k9", "k11 s2", "k15", "k31", "k32", "k4 s2 transposed",
    "k32 s16 transposed", "k12 s2", "k12 s2 transposed", "4x4 s2 transposed", "3x3x3",
    "3x3x3 s(1,2,2)", "3x3x3 s(1,8,8)", "5x1x1",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_has_every_kind(kind: str) -> None:
    assert any(str(call) == kind for name in ZOO for call in ran(name)[1])


# --- the count ------------------------------------------------------------------------------------


class Calls(nn.Module):
    """Convolutions that no module shows, and some that are not depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.never_called = nn.Conv2d(4, 4, 3, groups=4)
        self.inner = nn.Conv2d(4, 8, 3, stride=(2, 1), dilation=(1, 2), groups=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, torch.ones(4, 1, 3, 3), padding="same", groups=4)
        x = F.conv2d(x, torch.ones(4, 1, 1, 1), groups=4)  # scales
        x = F.conv2d(x, torch.ones(4, 2, 3, 3), groups=2)  # grouped
        x = F.conv2d(x, torch.ones(4, 4, 3, 3))  # standard
        F.conv2d(x[:, :1], torch.ones(1, 1, 3, 3), groups=1)  # one channel
        F.conv_transpose1d(x[0, :, 0], torch.ones(4, 3, 5), stride=2, groups=4)  # no batch axis
        return self.inner(x)


def test_the_count_is_of_calls() -> None:
    _, calls = run(Calls(), (torch.ones(2, 4, 12, 12),))
    assert [(call.channels, str(call), call.where) for call in calls] == [
        (4, "3x3", ""),
        (4, "k5 s2 m3 transposed", ""),
        (4, "3x3 s(2,1) d(1,2) m2", "inner"),
    ]
    assert describe([calls[0], calls[2], calls[0]]) == "2 of 3x3, 1 of 3x3 s(2,1) d(1,2) m2"


# --- coverage -------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, groups=4)
        self.second = nn.Conv2d(4, 4, 5, groups=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.second(self.first(x)))


TWO = Entry("two", Two, ((1, 4, 16, 16),), 3, family="test")
DENSE = SiteReport("first", "Conv2d", "dense", weights="precomputed", spec=ConvSpec(4, (3, 3)))


def densified(model: nn.Module, _inputs: object = None, factor: float = 1) -> nn.Module:
    model = copy.deepcopy(model)
    diagonal = torch.eye(4)[:, :, None, None] * model.first.weight * factor
    bias, model.first = model.first.bias, nn.Conv2d(4, 4, 3)
    model.first.weight, model.first.bias = nn.Parameter(diagonal), bias
    return model


def cover(rewrite=densified, sites: tuple[SiteReport, ...] = ()) -> coverage.Row:
    return coverage.cover(TWO, "modules", rewrite, lambda _: list(sites))


def left(name: str, code: str = "why", spec: ConvSpec | None = None) -> SiteReport:
    return SiteReport(name, "Conv2d", "keep", reason=Rejection(code, "because"), spec=spec)


SECOND = ConvSpec(4, (5, 5))
EXPLAINED = {
    "by the name of the module": [left("second")],
    "by geometry, call by call": [left("a", spec=SECOND), left("b", spec=SECOND)],
    "by any reason": [left("a"), left("b", spec=SECOND)],
}
NOT_EXPLAINED = {
    "no report": ([], 2),
    "one reason for two calls": ([left("a", spec=SECOND)], 1),
    "another geometry": ([left("a", spec=ConvSpec(4, (3, 3)))] * 2, 2),
    "another multiplier": ([left("a", spec=ConvSpec(4, (5, 5), 2))] * 2, 2),
    "no depthwise convolutions": ([left("a", "grouped"), left("b", "pointwise")], 2),
    "claims to be rewritten": ([SiteReport("second", "", "dense", weights="linked")], 2),
}


@pytest.mark.parametrize("sites", EXPLAINED.values(), ids=EXPLAINED)
def test_a_call_that_is_left_for_a_reason(sites: list[SiteReport]) -> None:
    row = cover(sites=(DENSE, *sites))
    assert (len(row.calls), len(row.left), row.missed, row.faults) == (3, 2, [], "")
    line = coverage.cells(row)
    assert line[:6] == ("two", "test", "2 of 5x5, 1 of 3x3", "3", f"{1 + len(sites)}", "1 dense")
    assert line[6:8] == (f"{len(sites)} why", "2")
    assert row.error < 1e-6


@pytest.mark.parametrize(("sites", "missed"), NOT_EXPLAINED.values(), ids=NOT_EXPLAINED)
def test_a_call_without_a_reason_is_missed(sites: list[SiteReport], missed: int) -> None:
    row = cover(sites=(DENSE, *sites))
    assert len(row.missed) == missed
    assert row.faults == f"MISSED: {missed} of 5x5 in second"


def test_a_wrong_rewrite_and_a_failing_one_are_faults() -> None:
    explained = (DENSE, left("second"))
    assert cover(lambda m, *_: densified(m, factor=1.01), explained).faults.startswith("WRONG: ")
    assert cover(lambda m, *_: densified(m, factor=float("nan")), explained).faults == "WRONG: nan"
    assert cover(lambda *_: 1 // 0).faults.startswith("FAILED: ZeroDivisionError: ")


def test_markdown() -> None:
    rows = [cover(sites=(DENSE, left("second", "a|b"))), cover()]
    lines = coverage.markdown(rows).splitlines()
    assert all(
        line.replace("\\|", "").count("|") == len(coverage.HEADERS) + 1 for line in lines[:4]
    )
    assert lines[5] == (
        "2 networks, 6 depthwise calls: 2 rewritten, 4 left, of which 2 without a reason; "
        "0 networks failed or differ."
    )
    assert lines[-1] == "- `a|b`: because"


def test_the_command_line_reports_faults(monkeypatch, capsys) -> None:
    monkeypatch.setitem(coverage.ZOO, "two", TWO)
    table = {"good": cover(sites=(DENSE, left("second"))), "bad": cover()}
    for name, code in (("good", 0), ("bad", 1)):
        monkeypatch.setattr(coverage, "cover", lambda *_, name=name: table[name])
        for flags in ([], ["--markdown"]):
            monkeypatch.setattr(sys, "argv", ["coverage", "two", *flags])
            assert coverage.main() == code
            assert ("MISSED" in capsys.readouterr().out) == bool(code)


def test_an_unknown_network_is_named() -> None:
    command = [sys.executable, "-m", "models.coverage", "nothing"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "no network nothing" in result.stderr
