"""Which device a name means."""

from __future__ import annotations

import pytest

from dwr_rewrite.tuning.names import means


@pytest.mark.parametrize(
    ("name", "device", "same"),
    [
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("RTX 4090", "NVIDIA GeForce RTX 4090", True),
        ("L4", "NVIDIA L40S", False),
        ("H100", "NVIDIA H200", False),
        ("abacus", "NVIDIA Abacus 9", True),
        ("Abacus 9", "NVIDIA Abacus 90", False),
        ("nvidia-h200", "NVIDIA H200", True),
        ("", "NVIDIA H200", False),
    ],
)
def test_a_name_means_a_device_by_its_words(name, device, same):
    assert means(name, device) == same
