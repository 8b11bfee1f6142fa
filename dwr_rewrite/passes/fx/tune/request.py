"""What is asked of the policy ``auto``, and what is known of the model's use."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map_only

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.decide import Options
from dwr_rewrite.passes.fx.tune.whole import Step, Work
from dwr_rewrite.passes.fx.verify.calling import as_arguments


@dataclass(frozen=True)
class Wish:
    """What the policy ``auto`` is to reach; see :func:`fx_rewrite`."""

    target: str | None = None
    budget: float = 60.0
    min_speedup: float = 1.02
    step: Step | None = None
    compiled: bool = False
    noted: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            DwrError: one is out of range.
        """
        target: Any = self.target
        for name, least in (("budget", 0.0), ("min_speedup", 1.0)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and isfinite(value)
            if not number or value < least:
                raise DwrError(f"{name} {value!r}: a number of at least {least:g} expected")
        if not isinstance(target, str | None):
            raise DwrError(f"target {self.target!r}: the name of a device expected, such as 'H200'")
        if self.step is not None and not callable(self.step):
            raise DwrError(f"step {self.step!r}: a function that runs the model once expected")


@dataclass(frozen=True)
class Request:
    """What is asked of the policy ``auto``.

    Attributes:
        work: what is run of the model; None where nothing is known of that.
        target: the device that it is to be fast on; None for the GPU that it is on.
        budget: seconds for measuring convolutions.
        min_speedup: how many times faster a form, and the whole model, has to be.
        max_growth: bytes that a packed weight may have more than its compact one.
        noted: the model is a graph in which Dynamo noted every value: it is not run.
    """

    work: Work | None
    target: str | None
    budget: float
    min_speedup: float
    max_growth: int
    noted: bool = False


def request_for(
    model: nn.Module | ExportedProgram, example_inputs: Any, chosen: Options, wish: Wish
) -> Request:
    """The request for a model.

    Args:
        model: the model.
        example_inputs: arguments of its forward, or None; an ExportedProgram has its own.
        chosen: whether its weights are linked, and how large they may become.
        wish: what the user said.
    """
    if example_inputs is None and isinstance(model, ExportedProgram):
        given = model.example_inputs
    else:
        given = None if example_inputs is None else as_arguments(example_inputs)
    work = None
    if given is not None or wish.step is not None:
        args, named = given or ((), {})
        if not wish.noted:  # a model may write into its inputs
            args, named = tree_map_only(Tensor, _own, (args, named))
        trains = chosen.linked and any(p.requires_grad for p in model.parameters())
        work = Work(tuple(args), dict(named), wish.step, trains, wish.compiled)
    return Request(work, wish.target, wish.budget, wish.min_speedup, chosen.max_growth, wish.noted)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
