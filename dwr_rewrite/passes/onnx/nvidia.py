"""What the driver of an NVIDIA device tells of it; needs neither a CUDA toolkit nor torch."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"
"""Of the major version for which onnxruntime is built."""

L2_CACHE_SIZE = 38
"""CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE of cuda.h."""


@dataclass(frozen=True)
class Gpu:
    """A device.

    Attributes:
        name: as its maker calls it.
        l2_bytes: its second-level cache.
        cuda: newest CUDA version that the driver supports.
    """

    name: str
    l2_bytes: int
    cuda: str


def gpu(index: int) -> Gpu | None:
    """The device that CUDA programs know by this number; None where there is no such."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    device, l2_bytes, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    steps = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDriverGetVersion(ctypes.byref(version)),
        lambda: driver.cuDeviceGet(ctypes.byref(device), index),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(l2_bytes), L2_CACHE_SIZE, device),
    )
    if any(step() != 0 for step in steps):
        return None
    major, minor = version.value // 1000, version.value % 1000 // 10
    return Gpu(name.value.decode(), l2_bytes.value, f"{major}.{minor}")


def cudnn_version() -> str | None:
    """Of the cuDNN that this process can load; None where there is none."""
    try:
        library = ctypes.CDLL(CUDNN)
    except OSError:
        return None
    library.cudnnGetVersion.restype = ctypes.c_size_t
    version = int(library.cudnnGetVersion())
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"
