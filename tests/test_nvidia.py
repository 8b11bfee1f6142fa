"""The driver's side of the seam is written in C here, so that ctypes and pynvml do their real work.

``CUDA_VISIBLE_DEVICES`` has turned the order of the two devices round: CUDA's 0 is NVML's 1.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from dwr_rewrite import nvidia

DRIVER = r"""
#include <stdio.h>
#include <string.h>
int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int *device, int index) { *device = 70 + index; return index > 1; }
int cuDeviceGetPCIBusId(char *id, int size, int device)
{ return snprintf(id, size, "0000:%02X:00.0", device == 70 ? 0xB1 : 0x3A) >= size; }

int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned size)
{ strncpy(version, "580.82.07", size); return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device)
{ *device = (void *)(strcmp(id, "0000:B1:00.0") ? 1L : 2L); return 0; }
int nvmlDeviceGetClockInfo(void *device, int type, unsigned *mhz)
{ *mhz = type == 1 ? 1755 : type == 2 ? 3201 : 0; return 0; }
int nvmlDeviceGetMaxClockInfo(void *device, int type, unsigned *mhz)
{ *mhz = type == 1 ? 1980 : 3201; return device == (void *)1L ? 3 : 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts)
{ *milliwatts = 712500; return 0; }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius)
{ *celsius = sensor == 0 ? 41 : 0; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules)
{ *millijoules = 5123456789012ULL; return device == (void *)1L ? 3 : 0; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "driver.so", "driver.c"], cwd=folder,
                   check=True)  # fmt: skip
    return str(folder / "driver.so")


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is remembered from before, nor afterwards."""
    import pynvml

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    for remembered in (nvidia._nvml, nvidia._handle):
        remembered.cache_clear()
    yield monkeypatch
    for remembered in (nvidia._nvml, nvidia._handle):
        remembered.cache_clear()


@pytest.fixture
def driver(fresh, library):
    import ctypes

    import pynvml

    fresh.setattr(nvidia, "DRIVER", library)
    fresh.setattr(pynvml, "nvmlLib", ctypes.CDLL(library))


@pytest.mark.usefixtures("driver")
def test_nvml_tells_of_the_device_that_cuda_means():
    assert nvidia.driver_version() == "580.82.07"
    assert nvidia.joules(0) == 5123456789.012
    assert nvidia.state(0) == {
        "SM clock": "1755 MHz", "SM clock at most": "1980 MHz",
        "memory clock": "3201 MHz", "memory clock at most": "3201 MHz",
        "power limit": "712.5 W", "temperature": "41 °C",
    }  # fmt: skip


@pytest.mark.usefixtures("driver")
def test_what_a_device_does_not_tell_is_left_out():
    assert nvidia.joules(1) is None
    assert nvidia.state(1) == {
        "SM clock": "1755 MHz", "memory clock": "3201 MHz",
        "power limit": "712.5 W", "temperature": "41 °C",
    }  # fmt: skip


@pytest.mark.usefixtures("driver")
def test_a_device_that_is_not_there_tells_nothing():
    assert (nvidia.state(2), nvidia.joules(2)) == ({}, None)


@pytest.mark.parametrize("lacking", ["the CUDA driver", "NVML"])
@pytest.mark.usefixtures("driver")
def test_one_library_alone_does_not_tell_the_device(fresh, lacking):
    import pynvml

    if lacking == "NVML":

        def init():
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

        fresh.setattr(pynvml, "nvmlInit", init)
    else:
        fresh.setattr(nvidia, "DRIVER", "libabacus.so.1")
    assert (nvidia.state(0), nvidia.joules(0)) == ({}, None)
    assert nvidia.driver_version() == (None if lacking == "NVML" else "580.82.07")


@pytest.mark.usefixtures("driver")
def test_without_the_module_nothing_is_told(fresh):
    fresh.setitem(sys.modules, "pynvml", None)
    assert nvidia.driver_version() is None
    assert (nvidia.state(0), nvidia.joules(0)) == ({}, None)


@pytest.mark.usefixtures("fresh")
def test_without_a_driver_nothing_is_told():
    try:
        subprocess.run(["nvidia-smi"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        assert nvidia.driver_version() is None
        assert (nvidia.state(0), nvidia.joules(0)) == ({}, None)
    else:
        assert nvidia.driver_version() is not None
