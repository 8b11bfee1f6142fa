"""What the driver of an NVIDIA device tells of it; needs neither a CUDA toolkit nor torch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"
"""Of the major version for which onnxruntime is built."""

L2_CACHE_SIZE = 38
"""CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE of cuda.h."""

ENERGY_METHOD = (
    "NVML's energy counter of the whole GPU (millijoules since the driver was loaded), read before "
    "and after many runs; NVIDIA does not say how often it is updated, ml.energy found about every "
    "100 ms"
)
"""How :func:`joules` is sampled, for a report; what is measured with it has to last for seconds.
The counter is ``nvmlDeviceGetTotalEnergyConsumption`` (of Volta or newer) of NVIDIA's NVML API
reference; the interval is that of https://ml.energy/blog/energy/measurement, in "Thermally stable
profiling for accurate GPU energy measurement"."""

T = TypeVar("T")


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
    found = _device(index)
    if found is None:
        return None
    driver, device = found
    l2_bytes, version = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    results = (
        driver.cuDriverGetVersion(ctypes.byref(version)),
        driver.cuDeviceGetName(name, len(name), device),
        driver.cuDeviceGetAttribute(ctypes.byref(l2_bytes), L2_CACHE_SIZE, device),
    )
    if any(results):
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


def driver_version() -> str | None:
    """``580.82.07``; None where there is no driver."""
    nvml = _nvml()
    return None if nvml is None else _told(nvml, nvml.nvmlSystemGetDriverVersion)


def state(index: int) -> dict[str, str]:
    """Clocks, power and temperature of a device at this moment, where it tells them.

    Args:
        index: by which CUDA programs know it.
    """
    nvml, handle = _nvml(), _handle(index)
    if nvml is None or handle is None:
        return {}
    queries: dict[str, tuple[Callable[[], int], Callable[[int], str]]] = {
        f"{kind} {what}": (lambda read=read, clock=clock: read(handle, clock), "{} MHz".format)
        for kind, clock in (("SM", nvml.NVML_CLOCK_SM), ("memory", nvml.NVML_CLOCK_MEM))
        for what, read in (
            ("clock", nvml.nvmlDeviceGetClockInfo),
            ("clock at most", nvml.nvmlDeviceGetMaxClockInfo),
        )
    }
    queries["power limit"] = (
        lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
        lambda milliwatts: f"{milliwatts / 1000:g} W",
    )
    queries["temperature"] = (
        lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "{} °C".format,
    )
    told = {name: (_told(nvml, read), show) for name, (read, show) in queries.items()}
    return {name: show(value) for name, (value, show) in told.items() if value is not None}


def joules(index: int) -> float | None:
    """What a device has taken since its driver was loaded; see :data:`ENERGY_METHOD`.

    Args:
        index: by which CUDA programs know it.

    Returns:
        Joules; None where it does not count them.
    """
    nvml, handle = _nvml(), _handle(index)
    if nvml is None or handle is None:
        return None
    millijoules = _told(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    return None if millijoules is None else millijoules / 1000


def _device(index: int) -> tuple[Any, Any] | None:
    """The CUDA driver, and its handle of the device with this number."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    device = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index):
        return None
    return driver, device


@cache
def _nvml() -> Any:
    """The module that talks to NVML; None where either is missing."""
    try:
        import pynvml
    except ImportError:  # the benchmarks run from a checkout, beside torch and little else
        return None
    return None if _told(pynvml, lambda: pynvml.nvmlInit() or pynvml) is None else pynvml


@cache
def _handle(index: int) -> Any:
    """NVML's handle of the device that CUDA knows by this number; None without.

    NVML counts every device of the machine, CUDA those that ``CUDA_VISIBLE_DEVICES`` names and in
    its order; the address on the bus is the same for both.
    """
    nvml, found = _nvml(), _device(index)
    if nvml is None or found is None:
        return None
    driver, device = found
    address = ctypes.create_string_buffer(32)
    if driver.cuDeviceGetPCIBusId(address, len(address), device):
        return None
    return _told(nvml, lambda: nvml.nvmlDeviceGetHandleByPciBusId(address.value))


def _told(nvml: Any, query: Callable[[], T]) -> T | None:
    """What NVML answers; None where it does not."""
    try:
        return query()
    except nvml.NVMLError:
        return None
