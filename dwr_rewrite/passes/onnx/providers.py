"""Which execution provider of onnxruntime runs the models, and whether it really loads."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import onnx
import onnxruntime as ort

from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.provider import CPU, CUDA, DIRECTML, Provider

PREFERRED = (CUDA, DIRECTML)
"""Tried in this order where none is named; the CPU is what remains."""

_TINY = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,1,8,8] x) => (float[1,1,8,8] y) { y = Relu (x) }"""

_ERROR = re.compile(r"\[E:onnxruntime[^\]]*\] (?:.*(?:with error|FAIL) ?: )?(.*)")


def choose(wanted: str | None, options: Mapping[str, str]) -> Provider:
    """The provider of a name, or the best one that loads here.

    Args:
        wanted: as onnxruntime calls it, or short (``cuda``, ``tensorrt``, ``openvino``, ``dml``,
            ``cpu``), in any case; None for a GPU if there is one, else the CPU.
        options: for it.

    Raises:
        DwrError: this onnxruntime has no such provider, or it does not load here.
    """
    available = ort.get_available_providers()
    if wanted is None:
        loading = (n for n in PREFERRED if n in available and not refusal(Provider(n, options)))
        provider = Provider(next(loading, CPU), options)
    else:
        known = {_short(name): name for name in available}
        if _short(wanted) not in known:
            raise DwrError(f"provider {wanted!r}: this onnxruntime has {', '.join(known)}; "
                           f"install a build of onnxruntime that has it")  # fmt: skip
        provider = Provider(known[_short(wanted)], options)
        if why := refusal(provider):
            raise DwrError(f"{provider.name} does not load here: {why}")
    if provider.name == CPU and options:
        raise DwrError(f"{CPU} takes no options; found {', '.join(options)}: name the provider "
                       f"that they are for")  # fmt: skip
    return provider


def _short(name: str) -> str:
    return name.lower().removesuffix("executionprovider")


def refusal(provider: Provider) -> str:
    """Why a provider does not load; empty where it does.

    onnxruntime lists what it was built for. Where a library or a driver is missing, it writes that
    to standard error and goes on with the CPU.
    """
    if provider.memory == "cuda":
        with redirect_stdout(sys.stderr):  # it prints
            ort.preload_dlls()  # CUDA and cuDNN from where pip puts them
    tiny = onnx.parser.parse_model(_TINY).SerializeToString()
    why = ""
    with _standard_error() as written:
        try:
            session = open_session(tiny, provider, ort.SessionOptions())
            if provider.name in session.get_providers():
                return ""
        except Exception as error:  # noqa: BLE001  onnxruntime raises many types
            why = first_line(error)
    reasons = _ERROR.findall("".join(written))
    return str(reasons[0]).strip() if reasons else why or "onnxruntime does not say why"


def open_session(model: str | bytes, provider: Provider, options: Any) -> ort.InferenceSession:
    """A session on this provider alone, save for what onnxruntime leaves to the CPU.

    Args:
        model: a file or its content.
        provider: what runs it.
        options: SessionOptions of onnxruntime.

    Raises:
        Exception: whatever onnxruntime raises when it cannot load the model.
    """
    return ort.InferenceSession(
        model, options, providers=[(provider.name, dict(provider.options))], enable_fallback=0
    )


@contextmanager
def _standard_error() -> Generator[list[str]]:
    """What is written to standard error, by C++ code too; filled in at the end."""
    written: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield written
            finally:
                sys.stderr.flush()
                os.dup2(kept, 2)
                file.seek(0)
                written.append(file.read().decode(errors="replace"))
    finally:
        os.close(kept)
