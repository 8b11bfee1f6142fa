"""``torch.compile(model, backend="dwr")``: the pass with linked weights, then Inductor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.fx.api import fx_rewrite, record, rewrite_noted

_, _, *OPTIONS = signature(rewrite_noted).parameters
"""Names of the options that ``torch.compile`` may pass on."""


def dwr(
    model: GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """The backend: Dynamo's graphs take their parameters as inputs, so the weights are linked.

    Args:
        model: what Dynamo traced.
        example_inputs: what it is called with, or stand-ins.
        options: those of ``torch.compile``: arguments of
            :func:`~dwr_rewrite.passes.fx.api.rewrite_noted`.

    Raises:
        DwrError: an option is not known, or wrong.
    """
    from torch._inductor.compile_fx import compile_fx

    given = options or {}
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        raise DwrError(f"backend 'dwr' has no option {', '.join(unknown)}; it has "
                       f"{', '.join(OPTIONS)}")  # fmt: skip
    rewritten = rewrite_noted(model, example_inputs, **given)
    compiled: Any = compile_fx(rewritten, list(example_inputs))
    return compiled


class DepthwisePass(PassBase):
    """The pass for a ``torch.fx`` PassManager; it changes the graph that it is given.

    Args:
        options: those of :func:`~dwr_rewrite.passes.fx.api.fx_rewrite`, without ``inplace``.
    """

    def __init__(self, **options: Any) -> None:
        """Keeps the options for every call."""
        super().__init__()
        self.options = options

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrites a graph; ``modified`` tells whether a convolution was changed."""
        fx_rewrite(graph_module, inplace=True, **self.options)
        return PassResult(graph_module, any(site.changed for site in record(graph_module)))
