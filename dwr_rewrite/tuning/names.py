"""Which device a name means."""

from __future__ import annotations

import re

from dwr_rewrite.cost import find_target
from dwr_rewrite.errors import DwrError


def means(name: str, device: str) -> bool:
    """Whether a name that a user gave means a device, as CUDA or a provider calls it.

    It does where the cost model knows both as one target, and otherwise where its words are among
    the device's: ``A100`` means ``NVIDIA A100-SXM4-80GB``, and ``L4`` does not mean
    ``NVIDIA L40S``.
    """
    try:
        return find_target(name) == find_target(device)
    except DwrError:
        return bool(words(name)) and set(words(name)) <= set(words(device))


def words(name: str) -> list[str]:
    """Its runs of letters and digits, in lower case."""
    return re.findall(r"[a-z0-9]+", name.lower())
