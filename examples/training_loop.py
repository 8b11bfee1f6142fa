"""Training: rewrite, train, save a checkpoint that the original model loads, restore.

python examples/training_loop.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

import dwr_rewrite as dwr
from models import mobilenet_v1

STEPS = 5


def main(folder: Path) -> None:
    model = mobilenet_v1.build(width=0.25, size=32, classes=10).train().requires_grad_(True)

    # In train mode the parameters stay as they are. Each convolution of a training step may take a
    # form of its own: here the forward stays depthwise, and both gradients are taken in blocks.
    policy = {"forward": "keep", "grad_input": "blocks:8", "grad_weight": "blocks:8"}
    fast = dwr.fx_rewrite(model, policy=policy)
    rewritten = [site for site in dwr.record(fast) if site.changed]
    print(f"rewrote {len(rewritten)} depthwise convolutions: {rewritten[0].form}")

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (16,), generator=generator)
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(fast(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print("loss", *(f"{loss:.3f}" for loss in losses))

    checkpoint = folder / "checkpoint.pt"
    torch.save(fast.state_dict(), checkpoint)
    model.load_state_dict(torch.load(checkpoint))  # strict: the same names and shapes
    print(f"the original model loads all {len(model.state_dict())} tensors of the checkpoint")

    restored = dwr.restore(fast).eval()
    with torch.no_grad():
        same = torch.equal(restored(images), model.eval()(images))
    print(f"restored: {restored.features[1][0]}; outputs equal: {same}")
    if not same or losses[-1] >= losses[0]:
        raise SystemExit("the training went wrong")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
