"""DDP and FSDP2 on two processes: training a linked model is training the original.

Run as a script by torch's launcher, this file is one of the two processes.
"""

from __future__ import annotations

import copy
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[3]
PROCESSES, STEPS, RATE = 2, 3, 0.02
LONG = 200  # steps of the curves that are compared under DDP
SAMPLES = 4  # of all processes together
EPS = 2.0**-53


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, groups=1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Tanh(),
            nn.Conv2d(8, 16, 3, 2, 1, groups=8, bias=False),
            nn.Tanh(),
            nn.ConvTranspose2d(16, 16, 2, 2, groups=16),
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def network() -> Net:
    torch.manual_seed(0)
    return Net().double()


def changed(share: float) -> Net:
    """One filter is off by a share of itself."""
    model = network()
    model.blocks[1].weight.data[0] *= 1 + share
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)


def train(model: nn.Module, x: Tensor, target: Tensor, steps: int = STEPS) -> Tensor:
    """The loss of every step."""
    optimizer, losses = torch.optim.SGD(model.parameters(), RATE, momentum=0.9), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def apart(one: Tensor, other: Tensor) -> float:
    """Largest relative difference of two curves."""
    return float(((one - other).abs() / one.abs()).max())


def bound(state: dict[str, Tensor]) -> float:
    """What two float64 trainings may differ by in a parameter.

    No sum has more than n = 4 * 64 + 1 terms, and five layers, the loss and their backward round it
    in turn: 12 n u of a gradient, which the clipped gain of tanh and weights below 1 keep below 10;
    each of the steps adds RATE times that, momentum 1 / (1 - 0.9) times, and one rounding.
    """
    largest = max(float(value.abs().max()) for value in state.values())
    return STEPS * (RATE * 10 * 12 * (SAMPLES * 64 + 1) * EPS * 10 + 2 * EPS * largest)


def worker() -> None:
    """Wraps the original and the linked model alike, trains both, and compares everything."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    import dwr_rewrite as dwr

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    x, target = batch()
    own = slice(rank * SAMPLES // PROCESSES, (rank + 1) * SAMPLES // PROCESSES)
    single = network()
    start = {name: value.clone() for name, value in single.state_dict().items()}
    train(single, x, target)
    expected, allowed = single.state_dict(), bound(single.state_dict())

    def shard(model: nn.Module) -> nn.Module:
        for module in model.blocks:
            if list(module.parameters()):
                fully_shard(module)
        return fully_shard(model)

    def shard_then_rewrite(model: nn.Module) -> nn.Module:
        return dwr.fx_rewrite(shard(model), policy="blocks:4", weights="linked", inplace=True)

    def linked(model: nn.Module) -> nn.Module:
        return dwr.fx_rewrite(model.train(), policy="blocks:4")

    cases: dict[str, Callable[[], nn.Module]] = {
        "DDP": lambda: DistributedDataParallel(network()),
        "DDP linked": lambda: DistributedDataParallel(linked(network())),
        "FSDP2": lambda: shard(network()),
        "FSDP2 linked": lambda: shard(linked(network())),
        "FSDP2, then linked": lambda: shard_then_rewrite(network()),
    }
    for name, wrap in cases.items():
        model = wrap()
        if "linked" in name:
            inner = model.module if name.startswith("DDP") else model
            assert sum(type(m).__name__.find("Linked") >= 0 for m in inner.modules()) == 3, name
        train(model, x[own], target[own])
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            assert list(state) == list(start), name
            worst = max(float((state[k] - v).abs().max()) for k, v in expected.items())
            moved = min(float((state[k] - v).abs().max()) for k, v in start.items())
            assert worst <= allowed < moved, (name, worst, allowed, moved)
            copy.deepcopy(single).load_state_dict(state)
            print(f"{name}: {worst:.1e} of {allowed:.1e}", flush=True)
        dist.barrier()
    curves = [
        train(DistributedDataParallel(wrap()), x[own], target[own], LONG)
        for wrap in (network, lambda: linked(network()), lambda: linked(changed(1e-4)))
    ]
    assert apart(curves[0][:1], curves[0][-1:]) > 1e-2, "the training moves the loss"
    assert apart(curves[0], curves[1]) <= 1e-9 < apart(curves[0], curves[2])
    if rank == 0:
        print(f"DDP, {LONG} steps: {apart(curves[0], curves[1]):.1e}", flush=True)
    if rank == 0:  # the twin: one filter that is off in the ninth digit is seen
        wrong = changed(1e-9)
        train(wrong, x, target)
        worst = max(float((wrong.state_dict()[k] - v).abs().max()) for k, v in expected.items())
        assert worst > allowed, (worst, allowed)
        print("done", flush=True)
    del model  # a wrapper that outlives its group makes torch abort now and then at the exit
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def loopback() -> bool:
    try:
        with socket.create_server(("127.0.0.1", 0)):
            return True
    except OSError:
        return False


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch has no gloo",
)
@pytest.mark.skipif(not loopback(), reason="no port can be opened on the loopback device")
def test_two_processes() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1",
                f"--nproc-per-node={PROCESSES}", "--rdzv-backend=c10d",
                "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", __file__]  # fmt: skip
    environment: dict[str, Any] = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    result = subprocess.run(
        launcher, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.splitlines()[-1] == "done", result.stdout


if __name__ == "__main__":
    worker()
