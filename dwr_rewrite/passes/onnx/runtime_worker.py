"""The child process of a timing: ``python -m dwr_rewrite.passes.onnx.runtime_worker FOLDER``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from dwr_rewrite.equivalence.plan import Plan
from dwr_rewrite.equivalence.samples import Arrays, InputError, Inputs
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx import nvidia
from dwr_rewrite.passes.onnx.bound import Bound
from dwr_rewrite.passes.onnx.child import serve, tell
from dwr_rewrite.passes.onnx.providers import CPU, choose
from dwr_rewrite.passes.onnx.runtime import RuntimeJob, RuntimeResult
from dwr_rewrite.passes.onnx.subject import declared
from dwr_rewrite.passes.onnx.whole import versions
from dwr_rewrite.timing import measure_pair

CACHE_BYTES = 128 << 20
"""What the cache of a device is taken for that does not tell; an RTX 5090 has an L2 of 96 MiB."""


class Timer:
    """Times the two models of a job.

    Args:
        job: what to time.

    Raises:
        DwrError: its provider cannot be used.
    """

    def __init__(self, job: RuntimeJob) -> None:
        """Finds the device."""
        self.job = job
        self.provider = choose(job.provider, job.options)
        on_gpu = self.provider.memory == "cuda"
        self.gpu = nvidia.gpu(self.provider.device_id) if on_gpu else None

    def run(self) -> RuntimeResult:
        """The times.

        Raises:
            DwrError: a model does not run there.
        """
        tell(f"loading the reference on {self.provider.name}")
        reference, feeds = self._first()
        tell(f"loading the candidate on {self.provider.name}")
        candidate = self._bound("candidate", self.job.candidate, feeds)
        tell("timing both models")
        return RuntimeResult(
            measure_pair(reference, candidate, budget=self.job.budget),
            self.device, self.job.provider is not None or self.provider.name != CPU,
            self.provider.name, self.provider.options,
            {name: array.shape for name, array in feeds.items()}, self.versions,
        )  # fmt: skip

    def _first(self) -> tuple[Bound, Arrays]:
        """The reference, on the first inputs on which it runs."""
        found: list[Bound] = []
        refusals: list[DwrError] = []

        def attempt(feeds: Arrays) -> None:
            try:
                found.append(self._bound("reference", self.job.reference, feeds))
            except DwrError as error:
                refusals.append(error)
                raise

        given = dict(list(self.job.settings.given.items())[:1])
        settings = replace(self.job.settings, kinds=() if given else ("normal",), given=given)
        model = onnx.load(self.job.reference, load_external_data=False)
        inputs = Inputs(dict(declared(model)), settings.shapes, settings.given)
        plan = Plan(inputs, settings, attempt)
        try:
            sample = next(iter(plan))
        except InputError:
            if len(refusals) == 1:  # there is no other size that would help
                raise refusals[0] from None
            raise
        return found[0], plan.feeds(sample)

    def _bound(self, role: str, path: Path, feeds: Arrays) -> Bound:
        try:
            return Bound(path, self.provider, feeds, self.cache_bytes)
        except DwrError as error:
            raise DwrError(f"the {role} {error}") from error

    @property
    def cache_bytes(self) -> int:
        """Of the device's cache; 0 on a host, whose inputs come from its cache in any case."""
        if self.provider.memory == "cpu":
            return 0
        return CACHE_BYTES if self.gpu is None else self.gpu.l2_bytes

    @property
    def device(self) -> str:
        """What runs the models, for a person."""
        if self.gpu is not None:
            return self.gpu.name
        return "CPU" if self.provider.name == CPU else f"device {self.provider.device_id}"

    @property
    def versions(self) -> dict[str, str]:
        """Of onnxruntime, the driver and cuDNN, on which a time may depend."""
        found = versions()
        if self.gpu is not None:
            found["CUDA driver"] = self.gpu.cuda
            found["cuDNN"] = nvidia.cudnn_version() or "unknown"
        return found


def measure(job: RuntimeJob) -> RuntimeResult:
    """The times of a job.

    Raises:
        DwrError: there are none, for the reason it says.
    """
    tell("choosing the device")
    return Timer(job).run()


if __name__ == "__main__":
    serve(measure)
