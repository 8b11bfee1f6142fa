"""Speech, audio and language models from `transformers` configurations, at reduced sizes.

Language models are given embeddings, so that every input is a tensor of floats.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.entry import Entry, Shape
from models.transformers_vision import entry

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
WORDS: dict[str, Any] = {**SMALL, "vocab_size": 64, "pad_token_id": 0}
CODEC: dict[str, Any] = {
    "hidden_size": 32,
    "num_filters": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "upsample_groups": 32,
}


def language(name: str, kind: str, depthwise: int, family: str, **options: Any) -> Entry:
    options = {**WORDS, "shape": (1, 16, 64), "argument": "inputs_embeds", **options}
    return entry(name, f"{kind}Config", f"{kind}Model", depthwise, family, **options)


class SpeechSynthesizer(nn.Module):
    """The conformers of FastSpeech2 before and after the duration of each phoneme is known."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import FastSpeech2ConformerConfig as Config
        from transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer import (
            FastSpeech2ConformerEncoder as Encoder,
        )

        config = Config(
            hidden_size=64,
            encoder_layers=1,
            decoder_layers=1,
            encoder_num_attention_heads=2,
            decoder_num_attention_heads=2,
            encoder_linear_units=128,
            decoder_linear_units=128,
        )
        self.encoder = Encoder(config, config.encoder_config)
        self.decoder = Encoder(config, config.decoder_config)
        for name, parameter in self.named_parameters():
            if "pos_bias" in name:  # left uninitialized outside a whole model
                nn.init.normal_(parameter, std=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        phonemes = self.encoder(x)[0]
        return self.decoder(phonemes.repeat_interleave(2, 1))[0]


class DurationPredictor(nn.Module):
    """The dilated stack of VITS, of which nothing is masked."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import VitsConfig
        from transformers.models.vits.modeling_vits import VitsDilatedDepthSeparableConv

        self.stack = VitsDilatedDepthSeparableConv(VitsConfig(hidden_size=32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stack(x, torch.ones_like(x[:, :1]))


class AntiAliased(nn.Module):
    """Snake between two resamplings, whose one filter is expanded at every call."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

        self.activation = omni.Qwen2_5OmniAntiAliasedActivation1d(omni.Qwen2_5OmniSnakeBeta(24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x)


class AudioModel(nn.Module):
    """The audio encoder of Gemma 4, of which no frame is padding."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import Gemma4AudioConfig
        from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioModel

        config = Gemma4AudioConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
        self.model = Gemma4AudioModel(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return self.model(x, mask).last_hidden_state


MEL: Shape = (1, 128, 32)
ENTRIES: tuple[Entry, ...] = (
    language("hf_mamba", "Mamba", 2, "Mamba: causal k4, slice", state_size=8),
    language("hf_falcon_mamba", "FalconMamba", 2, "Falcon-Mamba: causal k4", state_size=8),
    language("hf_mamba2", "Mamba2", 2, "Mamba2: causal k4, states and gates",
             num_heads=8, head_dim=16, n_groups=1, state_size=8, chunk_size=16),
    language("hf_jamba", "Jamba", 1, "Jamba: causal k4",
             num_key_value_heads=2, attn_layer_offset=1, attn_layer_period=2, num_experts=2,
             expert_layer_offset=1, expert_layer_period=2, mamba_d_state=8),
    language("hf_zamba2", "Zamba2", 2, "Zamba2: causal k4, shared block",
             mamba_d_state=8, n_mamba_heads=4, chunk_size=16,
             layers_block_type=["mamba", "hybrid"]),
    language("hf_recurrent_gemma", "RecurrentGemma", 2, "RecurrentGemma: causal k4",
             num_key_value_heads=2, lru_width=64, use_cache=False),
    language("hf_qwen3_next", "Qwen3Next", 1, "Qwen3-Next: gated delta net, k4",
             num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
             moe_intermediate_size=32, shared_expert_intermediate_size=32,
             linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16,
             linear_value_head_dim=16, layer_types=["linear_attention", "full_attention"]),
    language("hf_lfm2", "Lfm2", 1, "LFM2: gated short convolution, k3",
             num_key_value_heads=2, layer_types=["conv", "full_attention"]),
    language("hf_nystromformer", "Nystromformer", 2, "Nystromformer: 65x1 over values",
             hidden_size=96, num_attention_heads=12, shape=(1, 64, 96)),
    language("hf_convbert", "ConvBert", 2, "ConvBERT: k9 over keys", embedding_size=64),
    entry("hf_parakeet", "ParakeetEncoderConfig", "ParakeetEncoder", 4,
          "Parakeet: k9, subsampling 3x3 s2", shape=MEL, num_mel_bins=32,
          subsampling_conv_channels=32, **SMALL),
    entry("hf_lasr", "LasrEncoderConfig", "LasrEncoder", 2,
          "LASR: even k32", shape=MEL, num_mel_bins=32, subsampling_conv_channels=32, **SMALL),
    entry("hf_wav2vec2_bert", "Wav2Vec2BertConfig", "Wav2Vec2BertModel", 2,
          "Wav2Vec2-BERT: causal k31", shape=MEL, feature_projection_input_dim=32, **SMALL),
    entry("hf_seamless_m4t_v2", "SeamlessM4Tv2Config", "SeamlessM4Tv2SpeechEncoder", 2,
          "SeamlessM4T v2: causal k31, adapter", shape=MEL, hidden_size=64,
          speech_encoder_layers=2, speech_encoder_attention_heads=4,
          speech_encoder_intermediate_size=128, feature_projection_input_dim=32),
    entry("hf_granite_speech", "GraniteSpeechEncoderConfig", "GraniteSpeechCTCEncoder", 2,
          "Granite-Speech: k15", shape=(1, 64, 32), hidden_dim=64, num_layers=2, num_heads=4,
          dim_head=16, input_dim=32, output_dim=16, context_size=32),
    entry("hf_granite_speech5", "GraniteSpeech5EncoderConfig", "GraniteSpeech5Encoder", 3,
          "Granite-Speech 5: k7 s2", shape=(1, 64, 320), vocab_size=32, context_size=16,
          **{**SMALL, "num_hidden_layers": 3}),
    entry("hf_phi4_audio", "Phi4MultimodalAudioConfig", "Phi4MultimodalAudioModel", 3,
          "Phi-4 audio: k3, subsampling 3x3 s2", shape=(1, 64, 32), output=None,
          constants={"mask": None}, hidden_size=64, num_blocks=1, num_attention_heads=4,
          intermediate_size=64, ext_pw_out_channel=64,
          depthwise_separable_out_channel=64, nemo_conv_channels=64, input_size=32),
    entry("hf_mimi_decoder", "MimiDecoderConfig", "MimiDecoderModel", 1,
          "Mimi: ConvTranspose1d k4 s2", shape=(1, 32, 12), output="audio_values", **CODEC),
    entry("hf_pocket_tts_decoder", "PocketTTSAudioTokenizerDecoderConfig",
          "PocketTTSAudioTokenizerDecoderModel", 1, "Pocket TTS: ConvTranspose1d k32 s16",
          shape=(1, 32, 12), output="audio_values", **CODEC),
    Entry("hf_fastspeech2", SpeechSynthesizer, ((1, 20, 64),), 2, family="FastSpeech2: k7, k31"),
    Entry("hf_vits", DurationPredictor, ((1, 32, 40),), 3, family="VITS: dilated k3"),
    Entry("hf_qwen2_5_omni", AntiAliased, ((1, 24, 40),), 2, family="Qwen2.5-Omni: buffer.expand"),
    Entry("hf_gemma4_audio", AudioModel, ((1, 64, 128),), 2, family="Gemma 4 audio: causal k5"),
)  # fmt: skip
