"""A session whose inputs and outputs lie ready on its device, so that only its run is timed."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto

from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.equivalence.samples import Arrays
from dwr_rewrite.equivalence.statistics import Array
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.provider import CPU, Provider
from dwr_rewrite.passes.onnx.providers import open_session

MOST_COPIES = 16
"""Of the inputs and outputs of one session."""

_LEFT = "assigned to the default CPU EP"
"""In the message of a session that may not leave operators to the CPU and would have to."""


class Bound:
    """A model with its inputs and outputs in place; calling it runs one inference to its end.

    There are several copies of inputs and outputs, used by turns, where a device's cache would
    otherwise serve the inputs of every run but the first. The lengths that the model leaves open
    are fixed, so that what computes shapes is folded.

    Args:
        path: the model.
        provider: what runs it. Unless it is the CPU, all operators must run there.
        feeds: the inputs.
        cache_bytes: size of the device's cache; 0 for one copy.

    Raises:
        DwrError: the provider leaves operators to the CPU, or the model does not load or run; the
            message lacks its subject.
    """

    def __init__(self, path: Path, provider: Provider, feeds: Arrays, cache_bytes: int) -> None:
        """Loads the model and runs it once on each copy."""
        self.provider = provider
        lengths = free_lengths(onnx.load(path, load_external_data=False), feeds)
        try:
            options = _options(lengths, strict=provider.name != CPU)
            self.session = open_session(str(path), provider, options)
            count = copies(feeds, cache_bytes)
            self._inputs = self._place(feeds)
            slots = [
                self._bind(self._place(feeds) if index else self._inputs, index)
                for index in range(count)
            ]
        except Exception as error:
            if _LEFT in str(error):
                left = left_to_cpu(path, provider, lengths)
                raise DwrError(f"has operators that {provider.name} leaves to the CPU ({left}): a "
                               f"time would not be the device's") from error  # fmt: skip
            raise DwrError(f"does not run on {provider.name}: {first_line(error)}") from error
        self._slots = cycle(slots)

    def __call__(self) -> None:
        """Runs one inference and waits for its end."""
        binding, options = next(self._slots)
        self.session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()

    def outputs(self) -> dict[str, Array]:
        """What the model computes, brought to the host."""
        binding = self._binding(self._inputs)
        names = [output.name for output in self.session.get_outputs()]
        for name in names:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding, _run_options(-1))
        return dict(zip(names, map(_array, binding.get_outputs()), strict=True))

    def _place(self, feeds: Arrays) -> dict[str, ort.OrtValue]:
        """A copy of the inputs on the device."""
        place = self.provider.memory, self.provider.device_id
        return {name: _value(array, *place) for name, array in feeds.items()}

    def _bind(self, inputs: Mapping[str, ort.OrtValue], index: int) -> tuple[Any, Any]:
        """Outputs in buffers of their own, and what a run is told.

        A captured CUDA graph keeps the addresses of its buffers, so each copy has its own graph.
        """
        place = self.provider.memory, self.provider.device_id
        outputs = {output.name: _is_numeric(output.type) for output in self.session.get_outputs()}
        trial = self._binding(inputs)
        for name, numeric in outputs.items():
            trial.bind_output(name, *(place if numeric else ("cpu", 0)))
        self.session.run_with_iobinding(trial, _run_options(-1))  # which allocates the outputs
        trial.synchronize_outputs()
        final = self._binding(inputs)
        for (name, numeric), value in zip(outputs.items(), trial.get_outputs(), strict=True):
            if numeric:
                final.bind_ortvalue_output(name, value)
            else:
                final.bind_output(name)
        return final, _run_options(index + 1)

    def _binding(self, inputs: Mapping[str, ort.OrtValue]) -> Any:
        binding: Any = self.session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.synchronize_inputs()
        return binding


def copies(feeds: Arrays, cache_bytes: int) -> int:
    """So many that the inputs together exceed the cache twice, within reason; at least one."""
    used = sum(array.nbytes for array in feeds.values())
    return min(MOST_COPIES, max(1, -(-2 * cache_bytes // max(used, 1))))


def free_lengths(model: ModelProto, feeds: Arrays) -> dict[str, int]:
    """What the inputs make of the named lengths that a model leaves open.

    A name that stands for two lengths is left out.
    """
    found: dict[str, set[int]] = {}
    for value in model.graph.input:
        if value.name in feeds:
            dims = value.type.tensor_type.shape.dim
            for dim, length in zip(dims, feeds[value.name].shape, strict=False):
                if dim.dim_param:
                    found.setdefault(dim.dim_param, set()).add(length)
    return {name: next(iter(lengths)) for name, lengths in found.items() if len(lengths) == 1}


def left_to_cpu(path: Path, provider: Provider, lengths: dict[str, int]) -> str:
    """The operators of a model that a provider leaves to the CPU, for a person."""
    options = _options(lengths, strict=False)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session: Any = open_session(str(path), provider, options)
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before onnxruntime 1.24
        return "some operators"
    parts = session.get_provider_graph_assignment_info()
    left = {node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes()}
    return ", ".join(sorted(left))


def _options(lengths: dict[str, int], strict: bool) -> Any:
    """Of a session; a strict one refuses to leave operators to the CPU."""
    options = ort.SessionOptions()
    # Else the idle session's threads spin on after its run and slow the other one down.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if strict:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for name, length in lengths.items():
        options.add_free_dimension_override_by_name(name, length)
    return options


def _run_options(graph: int) -> Any:
    """Which CUDA graph a run captures or replays, if they are switched on; -1 for none."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _value(array: Array, memory: str, device_id: int) -> ort.OrtValue:
    """A copy on the device; on the host the array itself."""
    array = np.ascontiguousarray(array)
    if array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(array, memory, device_id)
    element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)  # bfloat16 and the like
    host = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element)
    value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, element, memory, device_id)
    value.update_inplace(host)
    return value


def _array(value: ort.OrtValue) -> Array:
    """A tensor in the host's memory, copied; onnxruntime gives numpy no bfloat16 itself."""
    found: Any = value
    content = ctypes.string_at(found.data_ptr(), found.tensor_size_in_bytes())
    dtype = onnx.helper.tensor_dtype_to_np_dtype(found.element_type())
    return np.frombuffer(content, dtype).reshape(found.shape())


def _is_numeric(kind: str) -> bool:
    """Whether a type, as onnxruntime writes it, can lie on a device: no sequence, no text."""
    return kind.startswith("tensor(") and kind != "tensor(string)"
