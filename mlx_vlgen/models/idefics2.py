"""Idefics2: SigLIP on pictures of any size, a perceiver that makes a fixed number of features of each, and Mistral.

Source: Laurençon et al. 2024 (arXiv 2405.02246); Jaegle et al. 2021 (arXiv 2103.03206) on the perceiver; transformers'
Idefics2ForConditionalGeneration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from .._runtime import mx, nn
from ..inputs.prompt import Media
from .attention import GATED, MLP, attention, linear_without_bias, merge_heads, split_heads
from .base import Features
from .configuration import BaseConfig
from .idefics3 import Embeddings, Idefics3
from .vision_language import VisionLanguageModel, join_pixels, tower_input
from .vit import SiglipVision, SiglipVisionConfig


@dataclass(frozen=True)
class Idefics2VisionConfig(SiglipVisionConfig):
    patch_size: int = 32


@dataclass(frozen=True)
class PerceiverConfig(BaseConfig):
    hidden_act: str = "silu"
    hidden_size: int = 4096
    rms_norm_eps: float = 1e-6
    resampler_n_latents: int = 64
    resampler_depth: int = 3
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    num_key_value_heads: int = 4


class PerceiverAttention(nn.Module):
    """Latents (B, n, d) attend to the context (B, N, d) and to themselves."""

    def __init__(self, config: PerceiverConfig):
        super().__init__()
        hidden, size = config.hidden_size, config.resampler_head_dim
        self.heads, self.groups = config.resampler_n_heads, config.num_key_value_heads
        self.q_proj = linear_without_bias(hidden, self.heads * size)
        self.k_proj = linear_without_bias(hidden, self.groups * size)
        self.v_proj = linear_without_bias(hidden, self.groups * size)
        self.o_proj = linear_without_bias(self.heads * size, hidden)

    def __call__(self, latents: mx.array, context: mx.array) -> mx.array:
        x = mx.concatenate([context, latents], axis=1)
        q = split_heads(self.q_proj(latents), self.heads)
        k, v = split_heads(self.k_proj(x), self.groups), split_heads(self.v_proj(x), self.groups)
        return self.o_proj(merge_heads(attention(q, k, v, q.shape[-1] ** -0.5)))


class PerceiverLayer(nn.Module):
    def __init__(self, config: PerceiverConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_latents_norm, self.input_context_norm = nn.RMSNorm(hidden, eps), nn.RMSNorm(hidden, eps)
        self.self_attn = PerceiverAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
        self.mlp = MLP(hidden, 4 * hidden, config.hidden_act, GATED, linear_without_bias)

    def __call__(self, latents: mx.array, context: mx.array) -> mx.array:
        latents = latents + self.self_attn(self.input_latents_norm(latents), self.input_context_norm(context))
        return latents + self.mlp(self.post_attention_layernorm(latents))


class Perceiver(nn.Module):
    """(B, N, d) -> (B, latents, d)."""

    def __init__(self, config: PerceiverConfig):
        super().__init__()
        self.latents = mx.zeros((config.resampler_n_latents, config.hidden_size))
        self.layers = [PerceiverLayer(config) for _ in range(config.resampler_depth)]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, context: mx.array) -> mx.array:
        latents = mx.broadcast_to(self.latents, (len(context), *self.latents.shape))
        for layer in self.layers:
            latents = layer(latents, context)
        return self.norm(latents)


class Connector(nn.Module):
    """Of each picture: (B, N, vision d) -> (B, latents, text d)."""

    def __init__(self, vision: int, text: Mapping[str, Any], perceiver: PerceiverConfig):
        super().__init__()
        inner, activation = text["intermediate_size"], text.get("hidden_act", "silu")
        self.modality_projection = MLP(vision, inner, activation, GATED, linear_without_bias, text["hidden_size"])
        self.perceiver_resampler = Perceiver(perceiver)

    def __call__(self, x: mx.array) -> mx.array:
        return self.perceiver_resampler(self.modality_projection(x))


class Idefics2(VisionLanguageModel):
    renames = Idefics3.renames
    published = Idefics3.published
    text_types = ("mistral",)

    def __init__(self, config: dict[str, Any]):
        super().__init__(config, text_config(config))
        text, vision = self.driver.arguments, Idefics2VisionConfig.from_dict(config["vision_config"])
        perceiver = config.get("perceiver_config") or {}
        if perceiver.get("hidden_size", PerceiverConfig.hidden_size) != self.hidden_size:
            # As transformers does it, for the first releases' files.
            perceiver = perceiver | {"hidden_size": self.hidden_size, "rms_norm_eps": text["rms_norm_eps"]}
        self.vision_model = SiglipVision(vision)
        self.vision_model.embeddings = Embeddings(vision)
        self.connector = Connector(vision.hidden_size, text, PerceiverConfig.from_dict(perceiver))

    def encode(self, media: Sequence[Media]) -> list[Features]:
        """Parts of one size that follow each other are one batch."""
        pixels = join_pixels(media).reshape(len(media), *media[0].pixels.shape)  # (B, pixels, 3)
        pixels = tower_input(pixels, media[0].normalization)
        sizes = list(zip(media[0].grid[::2], media[0].grid[1::2], strict=True))
        features, start = [], 0
        for (height, width), run in groupby(sizes):
            end = start + height * width * len(list(run))
            parts = pixels[:, start:end].reshape(-1, height, width, 3)
            features.append(self.connector(self.vision_model(parts)).reshape(len(media), -1, self.hidden_size))
            start = end
        return [Features(image) for image in mx.concatenate(features, axis=1)]


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's, with transformers' defaults for Idefics2. Mistral 7B's sliding window is of all of its layers."""
    defaults = {"model_type": "mistral", "rms_norm_eps": 1e-5, "max_position_embeddings": 32768}
    text = defaults | config.get("text_config", {}) | {"tie_word_embeddings": config.get("tie_word_embeddings", False)}
    window = text.get("sliding_window", 4096)
    if window is not None and window < text["max_position_embeddings"]:
        text["layer_types"] = ["sliding_attention"] * text.get("num_hidden_layers", 32)
    return text
