"""Where a model is, and which device a name means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dwr_rewrite.passes.fx.tune.device import ENGINE
from dwr_rewrite.passes.fx.tune.whole import Model, Work, runnable
from dwr_rewrite.tuning import Device
from dwr_rewrite.tuning.names import means


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
        return target.strip().lower() == device.type
    generic = target.strip().lower() in ("cuda", "gpu")
    return generic or means(target, torch.cuda.get_device_name(device))


def recorded(devices: Sequence[Device], target: str) -> Device | None:
    """The device of this name that has answered; of several, one with this version of torch."""
    found = [d for d in devices if d.engine == ENGINE and means(target, d.name)]
    return max(found, key=lambda d: d.facts.get("torch") == torch.__version__, default=None)
