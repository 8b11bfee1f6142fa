"""A copy of a model that learns: its gradients, and a short training run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from dwr_rewrite.equivalence.samples import Arrays
from dwr_rewrite.equivalence.statistics import Array
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.functional import pack, unpack
from dwr_rewrite.passes.fx.geometry import packing_of
from dwr_rewrite.passes.fx.verify.calling import outputs_of, to_numpy
from dwr_rewrite.passes.fx.verify.float64 import float64, wide, widened
from dwr_rewrite.passes.fx.verify.rounding import RoundingErrors
from dwr_rewrite.passes.fx.verify.running import (
    Enter,
    copied,
    seeded,
    untouched,
    watching_values,
)
from dwr_rewrite.passes.fx.verify.sites import Place, is_linked, undo_of, weight_of
from dwr_rewrite.passes.fx.verify.subject import TorchSubject
from dwr_rewrite.recipe import Packing

Draw = Callable[[str, tuple[int, ...]], Tensor]
"""Gives a fixed tensor for an output's name and shape, with values that every type holds."""

Direction = Literal["grad_input", "grad_weight", "parameter", "input"]

Gradients = dict[tuple[Direction, str], Array]
"""By direction and the name of the site, parameter or input."""

DECREASE = 0.01
"""Part of the first loss that a step along the gradient would take away, were the loss linear."""


class Learner:
    """A copy of a model in training mode, without dropout.

    Every floating-point parameter and input has a gradient, frozen ones too.

    Args:
        subject: whose model; it stays as it is.
        feeds: inputs by name.
        places: the sites in the subject's model, by name.
        exact: in float64.
        errors: with these rounding errors, when exact.
    """

    def __init__(
        self,
        subject: TorchSubject,
        feeds: Arrays,
        places: Mapping[str, Place],
        *,
        exact: bool = False,
        errors: RoundingErrors | None = None,
    ) -> None:
        """Copies the model."""
        self.subject, self.feeds = subject, feeds
        self.exact, self.errors = exact, errors
        self.places = places
        self.weights = dict(_weights(subject.model, places))
        self.model: nn.Module = copied(
            subject.model, lambda t: t.to(wide(t.dtype) if exact else t.dtype, copy=True)
        )
        for module in self.model.modules():
            module.training = not is_dropout(module)
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.is_floating_point()
        }
        for parameter in self.parameters.values():
            parameter.requires_grad_()

    def gradients(self, draw: Draw, *, inputs: bool = True) -> Gradients:
        """Gradients of the sum of all outputs, each multiplied by what is drawn for it.

        Args:
            draw: gives the factors.
            inputs: whether the inputs have gradients.
        """
        found: Gradients = {}

        def keep(value: str, gradient: Tensor) -> None:
            found["grad_input", value] = to_numpy(gradient)

        def enter(value: str, x: Tensor) -> Tensor:
            if x.requires_grad:
                x = x.view_as(x)  # the gradient of what else reads x is not this convolution's
                x.register_hook(partial(keep, value))
            return x

        with self._running(enter) as given:
            for x in given.values():
                x.requires_grad_(inputs and x.is_floating_point())
            outputs = self._forward(given)
            torch.autograd.backward(
                list(outputs.values()),
                [draw(name, tuple(y.shape)).to(y) for name, y in outputs.items()],
            )
        for name, x in given.items():
            if x.grad is not None:
                found["input", name] = to_numpy(x.grad)
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                site, packing = self.weights.get(name, ("", None))
                compact = unpack(parameter.grad, packing) if packing else parameter.grad
                found["grad_weight" if site else "parameter", site or name] = to_numpy(compact)
        return found

    def losses(
        self, draw: Draw, steps: int, rate: float | None = None
    ) -> tuple[list[float], float]:
        """The loss after each of some steps of plain gradient descent.

        It is the mean square of the outputs' distances from what is drawn for them. Of a packed
        weight only the diagonal learns.

        Args:
            draw: gives the targets.
            steps: how many.
            rate: the learning rate; None for one that would lower this learner's loss by
                :data:`DECREASE` in the first step, were the loss linear.

        Returns:
            The losses, and the learning rate.
        """
        found: list[float] = []
        with self._running(untouched) as inputs:
            for step in range(steps + 1):
                outputs = self._forward(inputs).items()
                squares = [(y.float() - draw(n, tuple(y.shape)).to(y)).square() for n, y in outputs]
                loss = torch.stack([square.mean() for square in squares]).sum()
                found.append(loss.item())
                if step < steps:
                    self.model.zero_grad()
                    loss.backward()
                    gradients = dict(self._steepest())
                    rate = _rate(found[0], gradients.values()) if rate is None else rate
                    with torch.no_grad():
                        for name, gradient in gradients.items():
                            self.parameters[name].add_(gradient, alpha=-rate)
        return found[1:], rate or 0.0

    def _steepest(self) -> Iterator[tuple[str, Tensor]]:
        """The gradients of the parameters, without what is off a diagonal."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                _, packing = self.weights.get(name, ("", None))
                whole = parameter.grad
                yield name, pack(unpack(whole, packing), packing) if packing else whole

    def _forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The floating-point outputs that depend on what learns."""
        args, kwargs = self.subject.call.bind(inputs)
        outputs = {
            name: y
            for name, y in outputs_of(self.model(*args, **kwargs))
            if y.is_floating_point() and y.requires_grad
        }
        if not outputs:
            raise DwrError("no output depends on a parameter or on a floating-point input")
        return outputs

    @contextmanager
    def _running(self, enter: Enter) -> Generator[dict[str, Tensor]]:
        """Gives the inputs, within what the model has to run in."""
        inputs = {
            name: widened(x) if self.exact else x
            for name, x in self.subject.tensors(self.feeds).items()
        }
        if self.errors is not None:
            self.errors.reach([*inputs.values(), *self.parameters.values()])
        watch = watching_values(self.model, self.places, enter, lambda _, __: None)
        mode = float64(self.errors) if self.exact else nullcontext()
        with torch.inference_mode(mode=False), torch.enable_grad(), seeded(self.model), watch, mode:
            yield inputs


def is_dropout(module: nn.Module) -> bool:
    """Whether a module drops values at random, by the name of its class."""
    return "drop" in type(module).__name__.lower()


def _weights(
    model: nn.Module, places: Mapping[str, Place]
) -> Iterator[tuple[str, tuple[str, Packing | None]]]:
    """For the parameters that are weights of sites: which site's, and how they are packed."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for site, place in places.items():
        undo, name = undo_of(place), names.get(id(weight_of(place)))
        if name is not None:
            packing = None
            if undo is not None and not is_linked(place):
                packing = packing_of(undo.spec, undo.forms)
            yield name, (site, packing)


def _rate(loss: float, gradients: Iterable[Tensor]) -> float:
    steepness = sum(float(gradient.square().sum()) for gradient in gradients)
    return DECREASE * loss / steepness if steepness else 0.0
