"""Where a model is, and which device a name means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dwr_rewrite.passes.fx.tune.device import ENGINE
from dwr_rewrite.passes.fx.tune.whole import Model, Work, runnable
from dwr_rewrite.tuning import Device


def place(model: Model, work: Work) -> torch.device | None:
    """The device that a model and its inputs are on; None if they are on several."""
    module = runnable(model)
    inputs = tree_leaves((work.inputs, work.named))
    values = [*module.parameters(), *module.buffers(), *inputs]
    found = {value.device for value in values if isinstance(value, Tensor)}
    return None if len(found) > 1 else next(iter(found), torch.device("cpu"))


def is_here(device: torch.device, target: str) -> bool:
    """Whether a target is the device that the model is on."""
    if device.type != "cuda":
        return plain(target) == device.type
    return plain(target) in ("cuda", "gpu") or (
        plain(target) in plain(torch.cuda.get_device_name(device))
    )


def recorded(devices: Sequence[Device], target: str) -> Device | None:
    """The device of this name that has answered; of several, one with this version of torch."""
    found = [d for d in devices if d.engine == ENGINE and plain(target) in plain(d.name)]
    return max(found, key=lambda d: d.facts.get("torch") == torch.__version__, default=None)


def plain(name: str) -> str:
    """Only its letters and digits, in lower case."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())
