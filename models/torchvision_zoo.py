"""Networks of torchvision and timm, where these are installed; nothing is downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from torch import nn

from models.entry import Entry

# package, name there, calls of depthwise convolutions, image size
NETWORKS = (
    ("torchvision", "mobilenet_v3_small", 11, 64),
    ("torchvision", "shufflenet_v2_x0_5", 19, 64),
    ("torchvision", "mnasnet0_5", 17, 64),
    ("timm", "mobilenetv4_conv_small", 15, 64),
    ("timm", "tf_efficientnet_lite0", 16, 64),
    ("timm", "repvit_m0_9", 26, 64),
)


def _architecture(package: str, name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        if package == "timm":
            import timm

            return timm.create_model(name)
        import torchvision

        options: dict[str, Any] = {"weights": None}
        return torchvision.models.get_model(name, **options)

    return build


def entries() -> tuple[Entry, ...]:
    """Those of an installed package."""
    return tuple(
        Entry(
            f"{package}_{name}",
            _architecture(package, name),
            ((1, 3, size, size),),
            calls,
            family=f"{package} {name}",
        )
        for package, name, calls, size in NETWORKS
        if importlib.util.find_spec(package)
    )
