"""Loads model files on a device, fed alike; only a child process imports this."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from dwr_rewrite.equivalence.plan import Plan, Settings
from dwr_rewrite.equivalence.samples import Arrays, InputError, Inputs
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.bound import Bound
from dwr_rewrite.passes.onnx.child import tell
from dwr_rewrite.passes.onnx.device import cache_bytes
from dwr_rewrite.passes.onnx.provider import Provider
from dwr_rewrite.passes.onnx.types import declared


@dataclass(frozen=True)
class Loader:
    """Loads models.

    Attributes:
        provider: what runs them.
        settings: inputs, shapes and seed.
    """

    provider: Provider
    settings: Settings

    def first(self, reference: Path) -> tuple[Bound, Arrays]:
        """The reference, on the first inputs on which it runs.

        Raises:
            DwrError: it runs on none.
        """
        tell(f"loading the reference on {self.provider.name}")
        found: list[Bound] = []
        refusals: list[DwrError] = []

        def attempt(feeds: Arrays) -> None:
            try:
                found.append(self.load("reference", reference, feeds))
            except DwrError as error:
                refusals.append(error)
                raise

        given = dict(list(self.settings.given.items())[:1])
        settings = replace(self.settings, kinds=() if given else ("normal",), given=given)
        model = onnx.load(reference, load_external_data=False)
        inputs = Inputs(dict(declared(model)), settings.shapes, settings.given)
        plan = Plan(inputs, settings, attempt)
        try:
            sample = next(iter(plan))
        except InputError:
            if len(refusals) == 1:  # there is no other size that would help
                raise refusals[0] from None
            raise
        return found[0], plan.feeds(sample)

    def load(self, role: str, path: Path, feeds: Arrays) -> Bound:
        """A model on these inputs.

        Args:
            role: what to call it in messages.
            path: its file.
            feeds: the inputs.

        Raises:
            DwrError: it does not run.
        """
        try:
            return Bound(path, self.provider, feeds, cache_bytes(self.provider))
        except DwrError as error:
            raise DwrError(f"the {role} {error}") from error
