"""What a choice rests on, as a table."""

from __future__ import annotations

import pytest

from dwr_rewrite.errors import DwrError
from dwr_rewrite.passes.onnx.provider import CPU, CUDA, Provider
from dwr_rewrite.passes.onnx.tune.ground import (
    Elsewhere,
    Here,
    Nowhere,
    Target,
    ground,
)
from dwr_rewrite.tuning import Device

H200 = Device("NVIDIA H200", CUDA, {})
L40S = Device("NVIDIA L40S", CUDA, {})
HOST = Device("CPU", CPU, {})
UNASKED = Device("CPU", CPU, {}, target=False)
T4 = [Device("Tesla T4", CUDA, {"driver": "1"}), Device("Tesla T4", CUDA, {"driver": "2"})]


class Bench:
    def __init__(self, device: Device) -> None:
        self.device, self.provider = device, Provider(device.engine)

    def measure(self, questions):
        raise AssertionError("nobody should ask")


TABLE = [
    # provider, target, the GPU here, what was recorded -> what it rests on
    (None, None, H200, [], H200),
    (None, None, None, T4, Nowhere()),
    ("cuda", None, H200, [], H200),
    ("cpu", None, H200, [], HOST),
    ("cpu", None, None, [], HOST),
    (None, "cpu", H200, [], HOST),
    (None, "CPU", None, [], HOST),
    (None, "H200", H200, [], H200),
    (None, "nvidia h200", H200, [], H200),
    (None, "H200", None, [], Elsewhere("H200")),
    (None, "T4", H200, [], Elsewhere("T4")),
    (None, "T4", H200, [H200, *T4], Elsewhere("T4", T4)),
    (None, "T4", None, [*T4, H200], Elsewhere("T4", T4)),
    (None, "L4", L40S, [], Elsewhere("L4")),
    ("cuda", "H200", H200, T4, H200),
    ("cpu", "cpu", H200, [], HOST),
]


@pytest.mark.parametrize(("provider", "name", "gpu", "recorded", "rests_on"), TABLE)
def test_the_order_of_what_a_choice_rests_on(provider, name, gpu, recorded, rests_on):
    def look(wanted):
        if wanted == "cpu":
            return Bench(HOST)
        return Bench(gpu or UNASKED)

    found = ground(Target(provider, name=name), look, lambda: recorded)
    if isinstance(rests_on, Device):
        assert isinstance(found, Here)
        assert found.bench.device == rests_on
    elif isinstance(rests_on, Elsewhere):
        assert (found.name, [*found.devices]) == (rests_on.name, [*rests_on.devices])
    else:
        assert found == rests_on


def test_a_provider_on_another_device_than_the_target_is_refused():
    target = Target("cuda", name="T4")
    with pytest.raises(DwrError, match=r"measures on NVIDIA H200 .*not the target T4"):
        ground(target, lambda wanted: Bench(H200), list)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(min_speedup=float("nan")), "--min-speedup nan: a finite number"),
        (dict(budget=float("inf")), "--budget inf: a finite number"),
        (dict(budget=-1.0), "--budget -1: a finite number, 0 or more"),
        (dict(name=" -"), "--target ' -': the name of a device"),
    ],
)
def test_a_target_that_makes_no_sense_is_a_sentence(fields, message):
    with pytest.raises(DwrError, match=message):
        Target(**fields)
