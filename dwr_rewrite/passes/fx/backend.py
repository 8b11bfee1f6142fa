"""``torch.compile(model, backend="dwr")``: the pass with linked weights, then Inductor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from dwr_rewrite.passes.fx.api import fx_rewrite, record


def dwr(model: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """The backend: Dynamo's graphs take their parameters as inputs, so the weights are linked."""
    from torch._inductor.compile_fx import compile_fx

    compiled: Any = compile_fx(fx_rewrite(model, weights="linked"), list(example_inputs))
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
