"""Settings of a provider that change the speed of a model without any rewrite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dwr_rewrite.equivalence.plan import Settings
from dwr_rewrite.passes.onnx import child
from dwr_rewrite.passes.onnx.child import Progress
from dwr_rewrite.passes.onnx.device import JOBS
from dwr_rewrite.passes.onnx.provider import CUDA, TENSORRT, Provider
from dwr_rewrite.timing import FreeSetting, Paired, Speedup

SECONDS = 15.0
"""For all of them together, without loading."""

WORTHWHILE = 1.02
"""How many times faster a setting has to make the original before both models are given it: two
sessions of one model may differ by about 1 %."""


@dataclass(frozen=True)
class Setting:
    """An option of a provider.

    Attributes:
        option: its name.
        value: what it is set to.
        rounds_alike: whether products stay as precise as they are.
    """

    option: str
    value: str
    rounds_alike: bool = True

    @property
    def name(self) -> str:
        """``prefer_nhwc=1``."""
        return f"{self.option}={self.value}"

    def told(self, speedup: Speedup | None, failure: str = "") -> FreeSetting:
        """As a report has it."""
        how = f"provider option {self.name} (--provider-option {self.name})"
        return FreeSetting(self.name, how, self.rounds_alike, speedup, failure)


POSSIBLE = {
    CUDA: (
        Setting("cudnn_conv_algo_search", "EXHAUSTIVE"),
        Setting("cudnn_conv_algo_search", "HEURISTIC"),
        Setting("prefer_nhwc", "1"),
        Setting("use_tf32", "0"),
        Setting("use_tf32", "1", rounds_alike=False),
        Setting("enable_cuda_graph", "1"),
    ),
    TENSORRT: (Setting("trt_fp16_enable", "1", rounds_alike=False),),
}
"""What is tried. ``cudnn_conv_algo_search=DEFAULT`` is not: cuDNN's fallback may be very slow."""

DEFAULTS = {
    CUDA: {"cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": "0", "use_tf32": "1",
           "enable_cuda_graph": "0"},
    TENSORRT: {"trt_fp16_enable": "0"},
}  # fmt: skip
"""What a provider does where nothing is said."""


def possible(provider: Provider) -> list[Setting]:
    """The settings that this provider does not have already."""
    now = {**DEFAULTS.get(provider.name, {}), **provider.options}
    return [s for s in POSSIBLE.get(provider.name, ()) if now[s.option] != s.value]


def best(found: Sequence[FreeSetting], provider: Provider) -> tuple[str, Provider]:
    """The setting that helps most of those that round alike, and the provider that has it.

    Args:
        found: what was measured.
        provider: as it was given.

    Returns:
        Its name, empty for none.
    """
    by_name = {setting.name: setting for setting in possible(provider)}
    helpful = {
        told.name: told.speedup.median
        for told in found
        if told.rounds_alike and told.speedup is not None and told.speedup.low > WORTHWHILE
    }
    if not helpful:
        return "", provider
    name = max(helpful, key=lambda name: helpful[name])
    return name, provider.having({by_name[name].option: by_name[name].value})


@dataclass(frozen=True)
class Free:
    """A job: times a model under every setting, side by side."""

    model: Path
    settings: Settings
    provider: Provider

    def __call__(self) -> tuple[FreeSetting, ...]:
        """What every setting gives.

        Raises:
            DwrError: the model does not run as the provider was given.
        """
        from dwr_rewrite.errors import DwrError
        from dwr_rewrite.passes.onnx.bound import Bound
        from dwr_rewrite.passes.onnx.loading import Loader
        from dwr_rewrite.timing import Repeated, measure_all

        reference, feeds = Loader(self.provider, self.settings).first(self.model)
        bounds, failures = dict[Setting, Bound](), dict[Setting, str]()
        for setting in possible(self.provider):
            child.tell(f"loading the reference with {setting.name}")
            having = self.provider.having({setting.option: setting.value})
            try:
                bounds[setting] = Loader(having, self.settings).load("reference", self.model, feeds)
            except DwrError as error:
                failures[setting] = str(error)
        child.tell("timing the settings that need no rewrite")
        samplers = [Repeated(call) for call in (reference, *bounds.values())]
        base, *timings = measure_all(samplers, budget=SECONDS)
        found = dict(zip(bounds, timings, strict=True))
        return tuple(
            setting.told(None, failures[setting])
            if setting in failures
            else setting.told(Speedup.of(Paired(base, found[setting])))
            for setting in possible(self.provider)
        )


def measure_free(
    model: Path, settings: Settings, provider: Provider, progress: Progress
) -> tuple[FreeSetting, ...]:
    """How much faster each setting makes a model; nothing where the provider has none to try.

    A crash of the process is told as the failure of every setting.

    Raises:
        DwrError: the model does not run as the provider was given.
    """
    if not possible(provider):
        return ()
    found: tuple[FreeSetting, ...]
    try:
        job = Free(model.resolve(), settings, provider)
        found, _ = child.run(JOBS, job, settings.timeout, progress)
    except child.ChildError as error:
        why = f"the process that timed the settings {error}"
        found = tuple(setting.told(None, why) for setting in possible(provider))
    return found
