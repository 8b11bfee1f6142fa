"""A torch model as a :class:`~dwr_rewrite.equivalence.subject.Subject`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.equivalence.samples import Arrays
from dwr_rewrite.equivalence.subject import Evaluation, Observe
from dwr_rewrite.equivalence.tolerance import UNIT_ROUNDOFF, Rounding
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.verify.calling import Call, outputs_of, to_numpy, to_torch
from dwr_rewrite.passes.fx.verify.float64 import float64, wide, widened
from dwr_rewrite.passes.fx.verify.rounding import RoundingErrors
from dwr_rewrite.passes.fx.verify.running import (
    copied,
    device_of,
    eager,
    inference,
    site_of,
    untouched,
    watching_values,
)
from dwr_rewrite.passes.fx.verify.sites import as_module, convolutions, is_compiled
from dwr_rewrite.passes.fx.verify.types import Types, type_name

Shelf = dict[int, nn.Module]
"""The one float64 copy that is kept, by the ``id`` of whose it is."""


class TorchSubject:
    """A module, a graph module or an exported program.

    The value of a convolution has the name of its module or node; that of its second call in a run
    is ``name#2``, and so on.

    Args:
        model: it stays as it is.
        examples: a tensor, a sequence of positional arguments, or keyword arguments by name. They
            fix the shapes, but for the lengths that a program declares as dynamic.
        shelf: shared by subjects that take turns, so that only one has a float64 copy at a time.
        names: what to call the inputs, in order, instead of by the parameters of ``forward``.
        required: whether it has to run on the examples; if it does not, nothing is known of its
            outputs and values.

    Attributes:
        model: the module that runs.
        engine: what runs it.
        call: its arguments.
        declared: what it says of its inputs.
        outputs: names of its outputs.
        values: element type of each convolution's value, in the order in which they run.
        dtypes: floating-point types in which it computes.
        operators: how many it runs.
        rounding: of its operators: that of the shortest of these types.
        sites: names of the convolutions that :meth:`exact` looks at.

    Raises:
        DwrError: it has to run on the examples and does not.
    """

    def __init__(
        self,
        model: nn.Module | ExportedProgram,
        examples: Any,
        shelf: Shelf | None = None,
        names: Sequence[str] | None = None,
        *,
        required: bool = True,
    ) -> None:
        """Runs the model once."""
        self.model = as_module(model)
        self._runs: Any = model if is_compiled(model) else self.model
        program = model if isinstance(model, ExportedProgram) else None
        self.call = Call.of(self.model, examples, program, names)
        self.declared = self.call.declared
        if any(map(nn.parameter.is_lazy, self.model.parameters())):
            raise DwrError("the model has lazy parameters: run it once, so that it has its shapes")
        self.device = device_of(self.model)
        self.engine = _engine(self.device) + (", compiled" if is_compiled(model) else "")
        self.sites: Collection[str] = ()
        self._shelf: Shelf = {} if shelf is None else shelf
        self.values: dict[str, str] = {}
        self.outputs: Sequence[str] = ()
        types = Types()
        try:
            self._survey(types)
        except Exception as error:
            if required:
                what = f"{type(self.model).__name__} does not run on the example inputs"
                raise DwrError(f"{what}: {first_line(error)}") from error
        self.dtypes, self.operators = frozenset(types.found), types.count
        self.rounding = rounding_of(self.dtypes, self.device)

    def _survey(self, types: Types) -> None:
        """Runs the model: fills in the values and the outputs."""

        def note(value: str, output: Tensor) -> None:
            self.values[value] = type_name(output.dtype)

        names = [name for name, _ in convolutions(self.model)]
        args, kwargs = self.call.bind(self.tensors(self.call.examples))
        watch = watching_values(self.model, names, untouched, note)
        with inference(self.model), watch, eager(), types:
            self.outputs = [name for name, _ in outputs_of(self.model(*args, **kwargs))]

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs that are tensors, by name, in eval mode.

        Args:
            feeds: inputs by name.
        """
        args, kwargs = self.call.bind(self.tensors(feeds))
        with inference(self.model):
            return _arrays(self._runs(*args, **kwargs))

    def tap(self, feeds: Arrays, values: Sequence[str], observe: Observe) -> None:
        """Runs the model and gives the values of convolutions to ``observe``, one by one.

        What ``torch.compile`` made runs as it was before: it holds no such values.

        Args:
            feeds: inputs by name.
            values: which of them.
            observe: told each of them.
        """
        wanted = set(values)

        def tell(value: str, output: Tensor) -> None:
            if value in wanted:
                observe(value, to_numpy(output))

        sites = {site_of(value) for value in values}
        args, kwargs = self.call.bind(self.tensors(feeds))
        with inference(self.model), watching_values(self.model, sites, untouched, tell), eager():
            self.model(*args, **kwargs)

    def exact(
        self,
        feeds: Arrays,
        perturb: np.random.Generator | None = None,
        observe: Observe | None = None,
    ) -> Evaluation:
        """The outputs of a float64 copy in eval mode.

        Args:
            feeds: inputs by name.
            perturb: source of the signs of rounding errors, which every operator then commits.
            observe: told the value of every convolution in :attr:`sites`.

        Raises:
            DwrError: it cannot be copied, or nothing evaluates some operator.
        """
        peak: dict[str, float] = {}

        def see(value: str, x: Tensor) -> Tensor:
            peak[value] = float(x.abs().amax()) if x.numel() else 0.0
            return x

        def tell(value: str, output: Tensor) -> None:
            if observe is not None:
                observe(value, to_numpy(output))

        copy = self._widened()
        errors = None if perturb is None else RoundingErrors(self.rounding, perturb)
        watch = watching_values(copy, self.sites, see, tell)
        inputs = {name: widened(x) for name, x in self.tensors(feeds).items()}
        args, kwargs = self.call.bind(inputs)
        with inference(copy), watch, float64(errors) as mode:
            if errors is not None:
                errors.reach([*inputs.values(), *copy.parameters()])
            try:
                outputs = _arrays(copy(*args, **kwargs))
            except Exception as error:
                raise DwrError(f"no float64 evaluation: {first_line(error)}") from error
        return Evaluation(outputs, peak, tuple(sorted(mode.single_precision)))

    def release(self) -> None:
        """Lets go of the float64 copy."""
        self._shelf.pop(id(self), None)

    def tensors(self, feeds: Arrays) -> dict[str, Tensor]:
        """Inputs on the model's device, in memory of their own."""
        with torch.inference_mode(mode=False):
            return {name: to_torch(array).to(self.device) for name, array in feeds.items()}

    def _widened(self) -> nn.Module:
        if id(self) not in self._shelf:
            self._shelf.clear()
            copy = copied(self.model, lambda t: t.to(wide(t.dtype), copy=True))
            for tensor in (*copy.parameters(), *copy.buffers()):
                tensor.data = widened(tensor.data)  # TorchScript copied them by itself
            self._shelf[id(self)] = copy
        return self._shelf[id(self)]


def _arrays(result: Any) -> Arrays:
    """Outputs by name, in memory of their own: the model may give what it changes later."""
    return {name: np.array(to_numpy(tensor)) for name, tensor in outputs_of(result)}


def rounding_of(dtypes: Collection[str], device: torch.device) -> Rounding:
    """How operators round that compute in these types, on this device."""
    rounding = Rounding.of(name for name in dtypes if name in UNIT_ROUNDOFF)
    if device.type != "cuda":
        return rounding
    backends: Any = torch.backends  # allow_tf32 raises where these were set one by one
    found = backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision
    return rounding.on_gpu(tf32="tf32" in found)


def _engine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"torch CUDA ({torch.cuda.get_device_name(device)})"
    return f"torch {device.type.upper()}"
