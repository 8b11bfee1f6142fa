"""The networks that are timed as wholes, at the sizes at which they are used; random weights."""

from __future__ import annotations

from dataclasses import replace

from models import mobilenet_v1
from models.entry import Entry, Shape
from models.from_transformers import architecture
from models.mobile import separable
from models.zoo import ZOO

IMAGE: Shape = (1, 3, 224, 224)
BATCHES = (64, 1, 8)
"""Of inference; the first is that of training too."""


def _of_zoo(name: str, shape: Shape = IMAGE) -> Entry:
    return replace(ZOO[name], shapes=(shape,))


NETWORKS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        mobilenet_v1.entry(),
        _of_zoo("hf_mobilenet_v2"),
        _of_zoo("mobilenet_v3"),
        _of_zoo("hf_efficientnet_b0"),
        replace(
            _of_zoo("hf_convnext"),
            architecture=architecture(
                "ConvNextConfig", "ConvNextForImageClassification", layer_scale_init_value=0.5
            ),
            depthwise=18,
        ),
        _of_zoo("replknet"),
        _of_zoo("hf_segformer", (1, 3, 512, 512)),
        replace(
            _of_zoo("hf_mobilevit", (1, 3, 256, 256)),
            architecture=architecture(
                "MobileViTConfig", "MobileViTForImageClassification", image_size=256
            ),
        ),
        _of_zoo("x3d", (1, 3, 13, 160, 160)),
        replace(
            _of_zoo("hf_wav2vec2_conformer", (1, 16000)),
            architecture=architecture(
                "Wav2Vec2ConformerConfig", "Wav2Vec2ConformerForCTC",
                hidden_size=512, num_attention_heads=8, intermediate_size=2048,
                num_hidden_layers=6, vocab_size=32,
                # a step that skips layers at random has no time of its own
                layerdrop=0.0, apply_spec_augment=False,
            ),
            depthwise=6,
        ),
        _of_zoo("fastvit"),
        _of_zoo("convmixer"),
    )
}  # fmt: skip
"""MobileNetV3, RepLKNet, X3D, FastViT and ConvMixer at the reduced width and depth of `models/`."""

SMALL: dict[str, Entry] = {
    "one block": Entry("one block", lambda: separable(16, 24), ((1, 16, 8, 8),), 1)
}
"""What `--quick` runs: no network that anybody uses."""
