from __future__ import annotations

import pytest
import torch

from dwr_rewrite.kernels import ops


@pytest.fixture(params=["aten", "kernels"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By aten, and by the kernels in Triton's interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1" if request.param == "kernels" else "0")
    assert ops.available(torch.device("cpu")) == (request.param == "kernels")
    return request.param


@pytest.fixture
def aten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
