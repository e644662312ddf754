"""Whisper's encoder, which hears for most families.

Source: Radford et al. 2022 (arXiv 2212.04356); transformers' WhisperEncoder, whose names of parameters these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._runtime import mx, nn
from ..inputs.prompt import Media
from .attention import VisionAttention
from .configuration import BaseConfig
from .layers import ACTIVATIONS, PositionTable, gelu, pace


@dataclass(frozen=True)
class WhisperConfig(BaseConfig):
    old_names: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "intermediate_size": "encoder_ffn_dim",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
    }

    num_mel_bins: int = 128
    d_model: int = 1280
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    activation_function: str = "gelu"
    max_source_positions: int = 1500


class WhisperLayer(nn.Module):
    def __init__(self, config: WhisperConfig):
        super().__init__()
        hidden, inner = config.d_model, config.encoder_ffn_dim
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = VisionAttention(hidden, config.encoder_attention_heads, names)
        self.self_attn.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.fc1, self.fc2 = nn.Linear(hidden, inner), nn.Linear(inner, hidden)
        self._activation = ACTIVATIONS[config.activation_function]

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        """mask: see `VisionAttention`."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask=mask)
        return x + self.fc2(self._activation(self.fc1(self.final_layer_norm(x))))


class WhisperEncoder(nn.Module):
    """What all of them share: two convolutions, of which the second takes every other frame, positions and layers.
    `layer_norm` is of what a family makes of their states."""

    def __init__(self, config: WhisperConfig):
        super().__init__()
        hidden = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, hidden, 3, padding=1)
        self.conv2 = nn.Conv1d(hidden, hidden, 3, stride=2, padding=1)
        self.embed_positions = PositionTable(config.max_source_positions, hidden)
        self.layers = [WhisperLayer(config) for _ in range(config.encoder_layers)]
        self.layer_norm = nn.LayerNorm(hidden)

    def states(self, features: mx.array, frames: int) -> mx.array:
        """features (B, T, mels), of which `frames` are the clips' own -> the last layer's states (B, positions, d) of
        those, which attend to each other and to no later one."""
        positions = (frames - 1) // 2 + 1
        x = gelu(self.conv1(features.astype(self.conv1.weight.dtype)))
        x = gelu(self.conv2(x))[:, :positions] + self.embed_positions.weight[:positions]
        for layer in self.layers:
            before, x = x, layer(x)
            pace(before, x)
        return x


def join_clips(media: Sequence[Media]) -> mx.array:
    """Clips of one form -> (B, frames, bands)."""
    return mx.array(np.stack([medium.pixels for medium in media]))


def average_pairs(x: mx.array) -> mx.array:
    """(B, N, d) -> (B, N // 2, d), the mean of each two; a last one that is alone is left out."""
    batch, length, hidden = x.shape
    return x[:, : length // 2 * 2].reshape(batch, length // 2, 2, hidden).mean(axis=2)
