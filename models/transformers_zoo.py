"""Networks built from `transformers` configurations; transformers is imported when one is built.

Sizes are cut where that keeps the set of operators: a smaller image, fewer layers, and the b0
variant of EfficientNet (the default configuration is b7).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from models.entry import Entry


class Logits(nn.Module):
    """Takes tensors and returns the logits tensor of a transformers model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


def _architecture(config: str, model: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return Logits(getattr(transformers, model)(getattr(transformers, config)(**options)))

    return build


ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="hf_mobilenet_v1",
        architecture=_architecture("MobileNetV1Config", "MobileNetV1ForImageClassification"),
        shapes=((1, 3, 96, 96),),
        depthwise=13,
    ),
    Entry(
        name="hf_mobilenet_v2",
        architecture=_architecture("MobileNetV2Config", "MobileNetV2ForImageClassification"),
        shapes=((1, 3, 96, 96),),
        depthwise=17,
    ),
    Entry(
        name="hf_efficientnet_b0",
        architecture=_architecture(
            "EfficientNetConfig",
            "EfficientNetForImageClassification",
            width_coefficient=1.0,
            depth_coefficient=1.0,
            hidden_dim=1280,
            image_size=96,
        ),
        shapes=((1, 3, 96, 96),),
        depthwise=16,
    ),
    Entry(
        name="hf_convnext",
        architecture=_architecture(
            "ConvNextConfig",
            "ConvNextForImageClassification",
            depths=[1, 1, 2, 1],
            # the default of 1e-6 would hide every depthwise convolution behind the residual
            layer_scale_init_value=0.5,
        ),
        shapes=((1, 3, 96, 96),),
        depthwise=5,
    ),
    Entry(
        name="hf_segformer",
        architecture=_architecture(
            "SegformerConfig", "SegformerForSemanticSegmentation", num_labels=19
        ),
        shapes=((1, 3, 64, 64),),
        depthwise=8,
    ),
    Entry(
        name="hf_mobilevit",
        architecture=_architecture(
            "MobileViTConfig", "MobileViTForImageClassification", image_size=128
        ),
        shapes=((1, 3, 128, 128),),
        depthwise=7,
    ),
    Entry(
        name="hf_wav2vec2_conformer",
        architecture=_architecture(
            "Wav2Vec2ConformerConfig",
            "Wav2Vec2ConformerForCTC",
            hidden_size=256,
            num_attention_heads=4,
            intermediate_size=512,
            num_hidden_layers=2,
            conv_dim=(128,) * 7,
            vocab_size=32,
        ),
        shapes=((1, 8000),),
        depthwise=2,
    ),
)
