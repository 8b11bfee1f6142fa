"""Depthwise convolution modules for new models: torch's own, run by the kernels of this package.

Each is a subclass of torch's module with the same parameters, so state dicts, initialization and
whatever looks for an ``nn.Conv2d`` work as before. A kernel runs where there is one
(:func:`dwr_rewrite.kernels.ops.available`), aten elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from dwr_rewrite.errors import DwrError
from dwr_rewrite.kernels import ops

Size = int | tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
"""(in front, behind) for each spatial axis."""
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

_Base = nn.Conv2d if TYPE_CHECKING else object


class _Depthwise(_Base):
    """What the three modules share; stands before one of torch's."""

    _torch: ClassVar[type[nn.Module]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Size | str | Pads = 0,
        dilation: Any = 1,
        groups: int | None = None,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Takes the arguments of torch's module.

        Args:
            in_channels: C.
            out_channels: C * m, a multiple of C.
            kernel_size: taps along each axis.
            stride: step along each.
            padding: as torch's, or for each axis a pair: in front and behind.
            dilation: distance between taps along each.
            groups: C, or left out.
            bias: whether one is learnt.
            padding_mode: as torch's.
            device: of the parameters.
            dtype: of the parameters.

        Raises:
            DwrError: ``groups`` is not C, ``out_channels`` no multiple of C, or a pair no pair.
        """
        name = type(self).__name__
        if groups not in (None, in_channels):
            raise DwrError(f"{name}: groups={groups} with {in_channels} input channels; as many "
                           f"groups as channels make a depthwise convolution: leave groups out, or "
                           f"use torch.nn")  # fmt: skip
        if in_channels < 1 or out_channels < 1 or out_channels % in_channels:
            raise DwrError(f"{name}: {out_channels} output channels are no multiple of "
                           f"{in_channels} input channels")  # fmt: skip
        pairs = isinstance(padding, tuple) and any(isinstance(p, Sequence) for p in padding)
        plain: Any = 0 if pairs else padding
        super().__init__(
            in_channels, out_channels, kernel_size, stride, plain, dilation, in_channels, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        if pairs:
            self.padding = _pairs(name, padding, len(self.kernel_size))

    @classmethod
    def from_conv(cls, conv: nn.Module) -> Any:
        """A module that shares the parameters of torch's depthwise ``conv``; hooks stay there.

        Raises:
            DwrError: ``conv`` is of another class, not depthwise, or computes its weight.
        """
        if type(conv) is not cls._torch:
            raise DwrError(f"{cls.__name__}.from_conv: {type(conv).__name__} found; an instance of "
                           f"{cls._torch.__name__} itself expected")  # fmt: skip
        found: Any = conv
        if dict(found.named_parameters(recurse=False)).keys() - {"bias"} != {"weight"}:
            raise DwrError(f"{cls.__name__}.from_conv: the weight is computed, not a parameter; "
                           f"remove the parametrization or the norm first")  # fmt: skip
        module: Any = cls(
            found.in_channels, found.out_channels, found.kernel_size, found.stride, found.padding,
            found.dilation, found.groups, found.bias is not None, found.padding_mode, device="meta",
        )  # fmt: skip
        module.weight, module.bias = found.weight, found.bias
        return module.train(found.training)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return _convolve(
            input, weight, bias, self.stride, self._pads(), self.dilation, self.groups,
            self.padding_mode,
        )  # fmt: skip

    def _pads(self) -> Pads:
        if self.padding == "valid":
            return ((0, 0),) * len(self.kernel_size)
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple((total // 2, total - total // 2) for total in totals)
        padding: Any = self.padding
        return tuple((p, p) if isinstance(p, int) else p for p in padding)


class DepthwiseConv1d(_Depthwise, nn.Conv1d):
    """:class:`torch.nn.Conv1d` with as many groups as input channels."""

    _torch = nn.Conv1d

    def __init__(self, *arguments: Any, causal: bool = False, **options: Any) -> None:
        """Takes the arguments of :class:`torch.nn.Conv1d`.

        Args:
            arguments: in its order.
            causal: pads in front alone, by ``dilation * (kernel_size - 1)``, so that no output
                sees a later input; without a state. There is no other padding then.
            options: by name.

        Raises:
            DwrError: both ``causal`` and a padding; or as the other modules.
        """
        super().__init__(*arguments, **options)
        if causal:
            if self.padding != (0,):
                raise DwrError(f"DepthwiseConv1d: causal=True pads by itself; padding="
                               f"{self.padding!r} found, leave it out")  # fmt: skip
            self.padding: Any = ((self.dilation[0] * (self.kernel_size[0] - 1), 0),)


class DepthwiseConv2d(_Depthwise, nn.Conv2d):
    """:class:`torch.nn.Conv2d` with as many groups as input channels."""

    _torch = nn.Conv2d


class DepthwiseConv3d(_Depthwise, nn.Conv3d):
    """:class:`torch.nn.Conv3d` with as many groups as input channels."""

    _torch = nn.Conv3d


@torch.fx.wrap
def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], pads: Pads,
    dilation: tuple[int, ...], groups: int, mode: str,
) -> Tensor:  # fmt: skip
    """One step to torch.fx, which could not trace what depends on the number of axes."""
    if x.dim() == weight.dim() - 1:
        return _convolve(
            x.unsqueeze(0), weight, bias, stride, pads, dilation, groups, mode
        ).squeeze(0)  # fmt: skip
    if mode != "zeros":
        x = F.pad(x, list(chain.from_iterable(reversed(pads))), mode)
        pads = ((0, 0),) * len(pads)
    axes = zip(x.shape[2:], weight.shape[2:], stride, pads, dilation, strict=True)
    size = [(n + a + b - d * (k - 1) - 1) // s + 1 for n, k, s, (a, b), d in axes]
    return ops.depthwise(
        x, weight, None, bias, size, stride, [front for front, _ in pads], dilation, groups, False,
        False, "none", "",
    )  # fmt: skip


def _pairs(name: str, padding: Any, rank: int) -> Any:
    """Checks the pairs of a padding."""
    pairs = tuple(tuple(p) if isinstance(p, Sequence) else (p,) for p in padding)
    if len(pairs) != rank or any(len(pair) != 2 for pair in pairs):
        raise DwrError(f"{name}: padding={padding!r}; {rank} pairs (in front, behind) expected")
    return pairs
