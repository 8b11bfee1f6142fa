"""What the torch pass costs, and what its forms cost or gain in eager mode on a CPU.

`python -m benchmarks.fx_cost` times fx_rewrite itself on two networks and on chains of up to 10,000
nodes, and one training step and one inference of MobileNetV1 under each policy, paired with the
original. A CPU is not the target: the second table shows the price there, nothing more.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks import _measure
from dwr_rewrite import __version__, fx_rewrite
from models import mobilenet_v1
from models.zoo import ZOO

LIMITS = {"hf_mobilenet_v2": 0.2, "hf_efficientnet_b0": 0.4}
"""Seconds that fx_rewrite may take."""

POLICY = "blocks:32"
"""Where only the work of rewriting counts."""

CHAINS = (100, 1000, 10_000)
POLICIES = ("blocks:8", "blocks:32", "dense")
ROUNDS = 7


def seconds(function: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Wall seconds of each call after one for warm-up."""
    function()
    samples: list[float] = []
    for _ in range(rounds):
        gc.collect()
        start = time.perf_counter()
        function()
        samples.append(time.perf_counter() - start)
    return samples


def paired(one: Callable[[], object], other: Callable[[], object]) -> list[tuple[float, float]]:
    """ABBA: seconds of both, interleaved."""
    one(), other()
    pairs: list[tuple[float, float]] = []
    for count in range(ROUNDS):
        order = (one, other) if count % 2 == 0 else (other, one)
        timed: dict[Callable[[], object], float] = {}
        for function in order:
            start = time.perf_counter()
            function()
            timed[function] = time.perf_counter() - start
        pairs.append((timed[one], timed[other]))
    return pairs


def chain(nodes: int) -> torch.fx.GraphModule:
    """Every tenth node a depthwise call, the others ReLU."""
    graph, root = torch.fx.Graph(), nn.Module()
    value = graph.placeholder("x")
    for index in range(nodes):
        if index % 10 == 9:
            setattr(root, f"w{index}", nn.Parameter(torch.randn(16, 1, 3, 3)))
            weight = graph.get_attr(f"w{index}")
            value = graph.call_function(torch.conv2d, (value, weight), {"padding": 1, "groups": 16})
        else:
            value = graph.call_function(torch.relu, (value,))
    graph.output(value)
    return torch.fx.GraphModule(root, graph)


def rewriting() -> tuple[Table, dict[str, Any]]:
    table = Table("model", "weights", "median s", "limit", title="fx_rewrite, the copy included")
    data: dict[str, Any] = {}
    for name, limit in LIMITS.items():
        module = ZOO[name].build().module
        for weights in ("precomputed", "linked"):
            samples = seconds(lambda m=module, w=weights: fx_rewrite(m, policy=POLICY, weights=w))
            data[f"{name} {weights}"] = samples
            table.add_row(name, weights, f"{np.median(samples):.3f}", f"{limit} s")
    for nodes in CHAINS:
        graph = chain(nodes)
        samples = seconds(lambda g=graph: fx_rewrite(g, policy=POLICY, weights="linked"), rounds=3)
        data[f"chain {nodes}"] = samples
        each = f"{np.median(samples) / nodes * 1e6:.0f} us a node"
        table.add_row(f"chain of {nodes:,} nodes", "linked", f"{np.median(samples):.3f}", each)
    return table, data


def training_step(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def step() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    return step


def forms() -> tuple[Table, dict[str, Any]]:
    table = Table("MobileNetV1, batch 8, 3x96x96, float32", "inference", "training step",
                  title="times the original's time, on a CPU, not the target")  # fmt: skip
    x, data = torch.randn(8, 3, 96, 96), dict[str, Any]()
    original = mobilenet_v1.build(width=0.5, size=96)
    for policy in POLICIES:
        evaluated = fx_rewrite(original.eval(), policy=policy)
        with torch.inference_mode():
            inference = paired(lambda: original(x), lambda m=evaluated: m(x))
        trained = fx_rewrite(original.train().requires_grad_(), policy=policy)
        training = paired(training_step(original, x), training_step(trained, x))
        data[policy] = {"inference": inference, "training": training}
        ratios = [float(np.median([b / a for a, b in pairs])) for pairs in (inference, training)]
        table.add_row(policy, *(f"{ratio:.2f}" for ratio in ratios))
    return table, data


def peak() -> int:
    """Peak resident KiB of this process."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def grow(result: Any) -> None:
    """In a child: peak resident bytes that fx_rewrite adds, and the bytes of the new weights."""
    channels, layers = 1024, 8
    model = nn.Sequential(
        *(nn.Conv2d(channels, channels, 21, groups=channels) for _ in range(layers))
    )
    fx_rewrite(
        nn.Conv2d(8, 8, 3, groups=8).eval(), policy=POLICY
    )  # what the first call loads is not counted
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here
    before = peak()
    fx_rewrite(model.eval(), policy=POLICY, inplace=True)
    after = peak()
    new = sum(layer.weight.numel() * layer.weight.element_size() for layer in model)
    result.put(((after - before) * _measure.KIB, new))


def memory() -> tuple[Table, dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    child = context.Process(target=grow, args=(result,))
    child.start()
    added, new = result.get()
    child.join()
    table = Table("8 x depthwise 21x21, 1024 channels, blocks:32", "MiB", title="memory, in place")
    table.add_row("new weights", f"{new / 2**20:.0f}")
    table.add_row("peak above the model", f"{added / 2**20:.0f}")
    return table, {"new": new, "added": added}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fx_cost", description=__doc__.partition("\n")[0]
    )
    parser.parse_args()
    console, facts = Console(), _measure.host()
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": facts,
        "versions": {"dwr-rewrite": __version__, **_measure.versions("torch", "transformers")},
    }
    for name, section in (("rewriting", rewriting), ("memory", memory), ("forms", forms)):
        table, results[name] = section()
        console.print(table)
    console.print(f"written: {_measure.write('fx_cost', facts, results)}")


if __name__ == "__main__":
    main()
