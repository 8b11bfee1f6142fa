"""The networks from `transformers` that tests also export to ONNX.

Sizes are cut where that keeps the set of operators: a smaller image, fewer layers, and the b0
variant of EfficientNet (the default configuration is b7).
"""

from __future__ import annotations

from models.entry import Entry
from models.from_transformers import architecture

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="hf_mobilenet_v1",
        architecture=architecture("MobileNetV1Config", "MobileNetV1ForImageClassification"),
        shapes=((1, 3, 96, 96),),
        depthwise=13,
        family="MobileNetV1",
        exported=True,
    ),
    Entry(
        name="hf_mobilenet_v2",
        architecture=architecture("MobileNetV2Config", "MobileNetV2ForImageClassification"),
        shapes=((1, 3, 96, 96),),
        depthwise=17,
        family="MobileNetV2: inverted residuals",
        exported=True,
    ),
    Entry(
        name="hf_efficientnet_b0",
        architecture=architecture(
            "EfficientNetConfig",
            "EfficientNetForImageClassification",
            width_coefficient=1.0,
            depth_coefficient=1.0,
            hidden_dim=1280,
            image_size=96,
        ),
        shapes=((1, 3, 96, 96),),
        depthwise=16,
        family="EfficientNet: SE",
        exported=True,
    ),
    Entry(
        name="hf_convnext",
        architecture=architecture(
            "ConvNextConfig",
            "ConvNextForImageClassification",
            depths=[1, 1, 2, 1],
            # the default of 1e-6 would hide every depthwise convolution behind the residual
            layer_scale_init_value=0.5,
        ),
        shapes=((1, 3, 96, 96),),
        depthwise=5,
        family="ConvNeXt: 7x7 before LayerNorm",
        exported=True,
    ),
    Entry(
        name="hf_segformer",
        architecture=architecture(
            "SegformerConfig", "SegformerForSemanticSegmentation", num_labels=19
        ),
        shapes=((1, 3, 64, 64),),
        depthwise=8,
        family="SegFormer: 3x3 in the MLP",
        exported=True,
    ),
    Entry(
        name="hf_mobilevit",
        architecture=architecture(
            "MobileViTConfig", "MobileViTForImageClassification", image_size=128
        ),
        shapes=((1, 3, 128, 128),),
        depthwise=7,
        family="MobileViT",
        exported=True,
    ),
    Entry(
        name="hf_wav2vec2_conformer",
        architecture=architecture(
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
        family="Wav2Vec2-Conformer: k31",
        exported=True,
    ),
)
