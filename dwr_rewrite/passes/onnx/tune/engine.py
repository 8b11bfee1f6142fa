"""What measures: the only place where a choice touches a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.passes.onnx.child import Progress
from dwr_rewrite.passes.onnx.provider import Provider
from dwr_rewrite.passes.onnx.runtime import RuntimeResult, time_models
from dwr_rewrite.passes.onnx.tune.bench import OnnxBench
from dwr_rewrite.passes.onnx.tune.free import measure_free
from dwr_rewrite.timing import FreeSetting
from dwr_rewrite.tuning import Bench


class ProviderBench(Bench, Protocol):
    """A bench that knows its provider."""

    @property
    def provider(self) -> Provider:
        """What runs the models."""
        ...


class Engine(Protocol):
    """Measures convolutions and models; a test gives one that makes times up."""

    def bench(self, provider: str | None, options: Mapping[str, str]) -> ProviderBench:
        """The bench of a provider; None for that of a GPU if one loads, else of the CPU."""
        ...

    def free(
        self, model: Path, settings: Settings, provider: Provider, progress: Progress
    ) -> tuple[FreeSetting, ...]:
        """How much faster the settings of a provider make a model."""
        ...

    def time(
        self, models: tuple[Path, Path], settings: Settings, provider: Provider, progress: Progress
    ) -> RuntimeResult:
        """The times of an original and of the model in question."""
        ...


@dataclass(frozen=True)
class Onnxruntime:
    """onnxruntime, in child processes."""

    def bench(self, provider: str | None, options: Mapping[str, str]) -> ProviderBench:
        """See :class:`Engine`."""
        return OnnxBench(provider, options)

    def free(
        self, model: Path, settings: Settings, provider: Provider, progress: Progress
    ) -> tuple[FreeSetting, ...]:
        """See :class:`Engine`."""
        return measure_free(model, settings, provider, progress)

    def time(
        self, models: tuple[Path, Path], settings: Settings, provider: Provider, progress: Progress
    ) -> RuntimeResult:
        """See :class:`Engine`."""
        return time_models(
            *models, settings, provider=provider.name, provider_options=provider.options,
            progress=progress,
        )  # fmt: skip
