"""An execution provider of onnxruntime by name, without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dwr_rewrite.errors import DwrError
from dwr_rewrite.workload import Layout

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
DIRECTML = "DmlExecutionProvider"

MEMORY = {CUDA: "cuda", TENSORRT: "cuda", DIRECTML: "dml"}
"""Where a provider keeps its tensors; all others take them from the host's memory."""


@dataclass(frozen=True)
class Provider:
    """An execution provider and how it is set up.

    Attributes:
        name: as onnxruntime calls it.
        options: for it.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def memory(self) -> str:
        """Where its tensors lie: ``cpu``, ``cuda`` or ``dml``."""
        return MEMORY.get(self.name, "cpu")

    @property
    def device_id(self) -> int:
        """Which of its devices it uses.

        Raises:
            DwrError: the option ``device_id`` is no number.
        """
        text = self.options.get("device_id", "0")
        if not text.isdecimal():
            raise DwrError(f"provider option device_id={text!r}: a number expected")
        return int(text)

    @property
    def tf32(self) -> bool:
        """Whether it may round float32 factors to TF32: CUDA and TensorRT do by default."""
        return self.name == TENSORRT or (self.name == CUDA and self._is_on("use_tf32", "1"))

    @property
    def layout(self) -> Layout:
        """In which layout it convolves."""
        nhwc = self.name == CUDA and self._is_on("prefer_nhwc", "0")
        return "channels_last" if nhwc else "nchw"

    def having(self, options: Mapping[str, str]) -> Provider:
        """The same provider with further options."""
        return replace(self, options={**self.options, **options})

    def _is_on(self, option: str, default: str) -> bool:
        """A switch as onnxruntime reads it: 0, 1, true, false, True, False."""
        return self.options.get(option, default).lower() in ("1", "true")

    def __str__(self) -> str:
        """For a person."""
        return ", ".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])
