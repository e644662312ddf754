"""Gemma 4, dense and mixture of experts: a vision tower for pictures of any size, which averages squares of patches,
and mlx-lm's text decoder, the last layers of which may attend to keys and values of earlier ones.

Source: transformers' Gemma4ForConditionalGeneration; the text decoder is that of Gemma 3n's report (per-layer inputs,
shared keys and values). Small checkpoints hear, too (`gemma4_audio`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..inputs.prompt import Media
from .attention import GATED, MLP, attention, merge_heads, split_heads
from .base import Features
from .configuration import BaseConfig
from .gemma4_audio import AudioTower, Gemma4AudioConfig
from .gemma4_text import Gemma4Decoder, Projector
from .layers import ClippedLinear, pace, reading_order, rotary_2d, rotate
from .vision_language import encode_tiles
from .whisper import join_clips


@dataclass(frozen=True)
class Gemma4VisionConfig(BaseConfig):
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    num_key_value_heads: int = 12
    head_dim: int = 64
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    rope_parameters: Mapping[str, Any] | None = None
    pooling_kernel_size: int = 3
    patch_size: int = 16
    position_embedding_size: int = 10240
    use_clipped_linears: bool = False
    standardize: bool = False


class Gemma4VisionAttention(nn.Module):
    def __init__(self, config: Gemma4VisionConfig):
        super().__init__()
        hidden, size, clipped = config.hidden_size, config.head_dim, config.use_clipped_linears
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = ClippedLinear(hidden, self.heads * size, clipped)
        self.k_proj, self.v_proj = (ClippedLinear(hidden, self.kv_heads * size, clipped) for _ in range(2))
        self.o_proj = ClippedLinear(self.heads * size, hidden, clipped)
        self.q_norm, self.k_norm = (nn.RMSNorm(size, config.rms_norm_eps) for _ in range(2))

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        """x (B, N, d) -> (B, N, d). cos, sin: (N, 2, D / 4), for the halves of a head: column and row."""

        def rotated(x: mx.array) -> mx.array:
            return rotate(x.reshape(*x.shape[:-1], 2, -1), cos, sin).reshape(x.shape)

        q = rotated(self.q_norm(split_heads(self.q_proj(x), self.heads)))
        k = rotated(self.k_norm(split_heads(self.k_proj(x), self.kv_heads)))
        v = mx.fast.rms_norm(split_heads(self.v_proj(x), self.kv_heads), None, self.q_norm.eps)
        return self.o_proj(merge_heads(attention(q, k, v, scale=1.0)))


class VisionLayer(nn.Module):
    def __init__(self, config: Gemma4VisionConfig):
        super().__init__()
        self.self_attn = Gemma4VisionAttention(config)
        linear = partial(ClippedLinear, clipped=config.use_clipped_linears)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_activation, GATED, linear)
        norms = (nn.RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(4))
        self.input_layernorm, self.post_attention_layernorm, *others = norms
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = others

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class PatchEmbedder(nn.Module):
    """position_embedding_table: (2, positions, d), of columns and of rows."""

    def __init__(self, config: Gemma4VisionConfig):
        super().__init__()
        hidden = config.hidden_size
        self.input_proj = nn.Linear(3 * config.patch_size**2, hidden, bias=False)
        self.position_embedding_table = mx.zeros((2, config.position_embedding_size, hidden))

    def __call__(self, pixels: mx.array, column: np.ndarray, row: np.ndarray) -> mx.array:
        x = self.input_proj((2 * pixels - 1).astype(self.position_embedding_table.dtype))
        across, down = self.position_embedding_table
        return x + (across[mx.array(column)] + down[mx.array(row)])


class Encoder(nn.Module):
    def __init__(self, config: Gemma4VisionConfig):
        super().__init__()
        self.layers = [VisionLayer(config) for _ in range(config.num_hidden_layers)]


class VisionTower(nn.Module):
    def __init__(self, config: Gemma4VisionConfig):
        super().__init__()
        self.patch_embedder, self.encoder = PatchEmbedder(config), Encoder(config)
        if config.standardize:
            self.std_bias, self.std_scale = mx.zeros(config.hidden_size), mx.ones(config.hidden_size)
        self._pool, self._head_size = config.pooling_kernel_size, config.head_dim
        self._theta = (config.rope_parameters or {}).get("rope_theta", 100.0)

    def __call__(self, pixels: mx.array, rows: int, columns: int) -> mx.array:
        """pixels (B, N, 3 * patch^2), levels from 0 to 1, N = rows * columns in reading order -> (B, N / pool^2, d)."""
        row, column = places = reading_order(rows, columns)
        cos, sin = rotary_2d(places[::-1], self._head_size, self._theta)
        cos, sin = cos.reshape(len(row), 2, -1), sin.reshape(len(row), 2, -1)
        x = self.patch_embedder(pixels, column, row)
        for layer in self.encoder.layers:
            before, x = x, layer(x, cos, sin)
            pace(before, x)
        pool, dtype = self._pool, x.dtype
        # In float32: what the root makes of it may be more than float16 holds.
        squares = x.astype(mx.float32).reshape(len(x), rows // pool, pool, columns // pool, pool, -1)
        x = squares.mean(axis=(2, 4)).reshape(len(x), -1, x.shape[-1]) * x.shape[-1] ** 0.5
        if "std_bias" in self:
            x = (x - self.std_bias) * self.std_scale
        return x.astype(dtype)


class Gemma4(Gemma4Decoder):
    text_types = ("gemma4_text",)
    renames = (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.embed_vision.", "embed_vision."),
        ("model.audio_tower.", "audio_tower."),
        ("model.embed_audio.", "embed_audio."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        vision, text = Gemma4VisionConfig.from_dict(config["vision_config"]), self.language_model.args
        self.vision_tower = VisionTower(vision)
        self.embed_vision = Projector(vision.hidden_size, text.hidden_size, vision.rms_norm_eps)
        if (sound := config.get("audio_config")) is not None:
            audio = Gemma4AudioConfig.from_dict(sound)
            self.audio_tower = AudioTower(audio)
            self.embed_audio = Projector(audio.output_proj_dims, text.hidden_size, audio.rms_norm_eps)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        if media[0].kind == "audio":
            return [Features(clip) for clip in self.embed_audio(self.audio_tower(join_clips(media)))]
        rows, columns = media[0].grid
        return encode_tiles(media, lambda pixels: self.embed_vision(self.vision_tower(pixels, rows, columns)))
