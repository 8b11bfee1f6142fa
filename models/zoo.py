"""The table of all networks, by name, and of those that tests also export to ONNX."""

from __future__ import annotations

from models import (
    dense_prediction,
    large_kernel,
    mobile,
    mobilenet_v1,
    padding,
    sequence,
    torchvision_zoo,
    transformers_sequence,
    transformers_vision,
    transformers_zoo,
    video,
    weights,
)

ZOO = {
    entry.name: entry
    for entry in (
        mobilenet_v1.entry(),
        *transformers_zoo.ENTRIES,
        *transformers_vision.ENTRIES,
        *transformers_sequence.ENTRIES,
        *mobile.ENTRIES,
        *large_kernel.ENTRIES,
        *dense_prediction.ENTRIES,
        *video.ENTRIES,
        *sequence.ENTRIES,
        *weights.ENTRIES,
        *padding.ENTRIES,
        *torchvision_zoo.entries(),
    )
}
EXPORTED = {name: entry for name, entry in ZOO.items() if entry.exported}
