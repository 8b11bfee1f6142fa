"""Vision networks from `transformers` configurations, at reduced width, depth and image size."""

from __future__ import annotations

from typing import Any

from models.entry import Entry, Shape
from models.from_transformers import architecture

STAGES: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
PYRAMID: dict[str, Any] = {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]}
HIDDEN, FEATURES = "last_hidden_state", "feature_maps"


def entry(
    name: str,
    config: str,
    model: str,
    depthwise: int,
    family: str,
    *,
    shape: Shape = (1, 3, 64, 64),
    output: str | None = HIDDEN,
    **options: Any,
) -> Entry:
    build = architecture(config, model, output=output, **options)
    return Entry(name, build, (shape,), depthwise, family=family)


ENTRIES: tuple[Entry, ...] = (
    entry("hf_convnext_v2", "ConvNextV2Config", "ConvNextV2Model", 4,
          "ConvNeXtV2: 7x7, GRN", **STAGES),
    entry("hf_dinov3_convnext", "DINOv3ConvNextConfig", "DINOv3ConvNextModel", 4,
          "DINOv3-ConvNeXt: 7x7", layer_scale_init_value=0.5, **STAGES),
    entry("hf_pvt_v2", "PvtV2Config", "PvtV2Model", 4,
          "PVTv2: 3x3 in the MLP", **PYRAMID),
    entry("hf_glpn", "GLPNConfig", "GLPNModel", 4,
          "GLPN: 3x3 in the MLP", **PYRAMID),
    entry("hf_cvt", "CvtConfig", "CvtModel", 18,
          "CvT: 3x3 s1/s2 projections", depth=[1, 2, 3], embed_dim=[16, 32, 64],
          num_heads=[1, 2, 4]),
    entry("hf_focalnet", "FocalNetConfig", "FocalNetModel", 8,
          "FocalNet: focal 3x3 and 5x5", embed_dim=24, depths=[1, 1, 1, 1], image_size=64),
    entry("hf_hgnet_v2", "HGNetV2Config", "HGNetV2Backbone", 27,
          "HGNetV2: 5x5 light blocks", output=FEATURES, out_features=["stage4"]),
    entry("hf_mobilevit_v2", "MobileViTV2Config", "MobileViTV2Model", 9,
          "MobileViTV2", width_multiplier=0.5),
    entry("hf_swiftformer", "SwiftFormerConfig", "SwiftFormerModel", 4,
          "SwiftFormer: 3x3", depths=[1, 1, 1, 1], embed_dims=[16, 24, 32, 48]),
    entry("hf_florence2", "Florence2VisionConfig", "Florence2VisionBackbone", 16,
          "Florence2 (DaViT): 3x3 twice per block", embed_dim=(16, 24, 32, 48),
          depths=(1, 1, 1, 1), num_heads=(2,) * 4, num_groups=(2,) * 4, window_size=4),
    entry("hf_efficient_loftr", "EfficientLoFTRConfig", "EfficientLoFTRModel", 12,
          "EfficientLoFTR: 4x4 s4", shape=(1, 2, 1, 64, 64), output=FEATURES, pick=0),
    entry("hf_sam2_memory_fuser", "Sam2VideoConfig", "Sam2VideoMemoryFuser", 2,
          "SAM2 memory fuser: 7x7", shape=(1, 32, 16, 16), output=None,
          memory_fuser_embed_dim=32, memory_fuser_intermediate_dim=64,
          memory_fuser_layer_scale_init_value=0.5),
    entry("hf_pp_lcnet", "PPLCNetConfig", "PPLCNetBackbone", 13,
          "PP-LCNet: 3x3, then 5x5", shape=(1, 3, 48, 96), output=FEATURES),
    entry("hf_pp_lcnet_v3", "PPLCNetV3Config", "PPLCNetV3Backbone", 56,
          "PP-LCNetV3: four branches + 1x1", shape=(1, 3, 48, 96), output=FEATURES),
    entry("hf_pp_lcnet_v4", "PPLCNetV4Config", "PPLCNetV4Backbone", 13,
          "PP-LCNetV4: stride (2, 1)", shape=(1, 3, 48, 96), output=FEATURES),
)  # fmt: skip
