"""Llama 3.2 Vision's tower: the tiles of a picture attend to each other, and know which part of it they are.

Source: transformers' MllamaVisionModel, whose names of parameters these are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._runtime import mx, nn
from .attention import MLP, attention, linear_without_bias, merge_heads, split_heads
from .configuration import BaseConfig
from .layers import PositionTable, hidden_states
from .vit import PatchConv

MULTIPLE = 8
"""A tile's tokens are filled up with zeros to a multiple of it; other tokens attend to these, too."""


@dataclass(frozen=True)
class MllamaVisionConfig(BaseConfig):
    hidden_size: int = 1280
    hidden_act: str = "gelu"
    num_hidden_layers: int = 32
    num_global_layers: int = 8
    attention_heads: int = 16
    num_channels: int = 3
    intermediate_size: int = 5120
    vision_output_dim: int = 7680
    image_size: int = 448
    patch_size: int = 14
    norm_eps: float = 1e-5
    max_num_tiles: int = 4
    intermediate_layers_indices: Sequence[int] = (3, 7, 15, 23, 30)
    supported_aspect_ratios: Sequence[Sequence[int]] = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))

    @property
    def tile_tokens(self) -> int:
        """Of a tile: its patches, and the class token before them."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def ratios(self) -> int:
        """Aspect ratios that have a row in the tables, after the first one."""
        return len(self.supported_aspect_ratios) + 1


def aspect_ratio_id(rows: int, columns: int, max_tiles: int) -> int:
    """The place of a grid of tiles among those of at most `max_tiles`, from 1 on. Source: transformers'
    MllamaImageProcessor."""
    sides = range(1, max_tiles + 1)
    return [(r, c) for r in sides for c in sides if r * c <= max_tiles].index((rows, columns)) + 1


class Attention(nn.Module):
    """x (B, N, d), of which the last tokens, from `real` on, do not attend to each other."""

    def __init__(self, config: MllamaVisionConfig):
        super().__init__()
        self.heads = config.attention_heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self[name] = linear_without_bias(config.hidden_size, config.hidden_size)

    def __call__(self, x: mx.array, real: int) -> mx.array:
        q, k, v = (split_heads(self[name](x), self.heads) for name in ("q_proj", "k_proj", "v_proj"))
        scale = q.shape[-1] ** -0.5
        seeing = attention(q[:, :, :real], k, v, scale)
        filling = attention(q[:, :, real:], k[:, :, :real], v[:, :, :real], scale)
        return self.o_proj(merge_heads(mx.concatenate([seeing, filling], axis=2)))


class Layer(nn.Module):
    def __init__(self, config: MllamaVisionConfig, gated: bool):
        super().__init__()
        hidden = config.hidden_size
        self.self_attn = Attention(config)
        self.mlp = MLP(hidden, config.intermediate_size, config.hidden_act)
        self.input_layernorm, self.post_attention_layernorm = (
            nn.LayerNorm(hidden, eps=config.norm_eps) for _ in range(2)
        )
        if gated:
            self.gate_attn, self.gate_ffn = mx.zeros(1), mx.zeros(1)

    def __call__(self, x: mx.array, real: int) -> mx.array:
        out = self.self_attn(self.input_layernorm(x), real)
        x = x + (mx.tanh(self.gate_attn) * out if "gate_attn" in self else out)
        out = self.mlp(self.post_attention_layernorm(x))
        return x + (mx.tanh(self.gate_ffn) * out if "gate_ffn" in self else out)


class Encoder(nn.Module):
    def __init__(self, config: MllamaVisionConfig, count: int, gated: bool):
        super().__init__()
        self.layers = [Layer(config, gated) for _ in range(count)]


class TileEmbedding(nn.Module):
    """Of an aspect ratio -> what is added to each tile (T, 1, d)."""

    def __init__(self, config: MllamaVisionConfig):
        super().__init__()
        self._tiles = config.max_num_tiles
        self.embedding = PositionTable(config.ratios, config.max_num_tiles * config.hidden_size)
        self.gate = mx.zeros(1)

    def __call__(self, ratio: int) -> mx.array:
        return mx.tanh(self.gate) * self.embedding.weight[ratio].reshape(self._tiles, 1, -1)


class PositionEmbedding(nn.Module):
    """Of an aspect ratio -> what is added to the tokens of each tile (T, N, d)."""

    def __init__(self, config: MllamaVisionConfig):
        super().__init__()
        count, hidden = config.tile_tokens, config.hidden_size
        self._shape = config.max_num_tiles, count, hidden
        self.gate, self.embedding = mx.zeros(1), mx.zeros((count, hidden))
        self.tile_embedding = PositionTable(config.ratios, config.max_num_tiles * count * hidden)

    def __call__(self, ratio: int) -> mx.array:
        gate = mx.tanh(self.gate)
        return (1 - gate) * self.embedding + gate * self.tile_embedding.weight[ratio].reshape(self._shape)


class VisionModel(nn.Module):
    """Tiles (B, t, H, W, 3) of pictures of one grid of t tiles -> states (B, T * N, d'), those of blank tiles after
    them: the last ones, and those of some layers."""

    def __init__(self, config: MllamaVisionConfig):
        super().__init__()
        hidden = config.hidden_size
        self.max_tiles, self._tokens = config.max_num_tiles, config.tile_tokens
        self._layers = [index + 1 for index in config.intermediate_layers_indices]
        self.patch_embedding = PatchConv(config.num_channels, hidden, config.patch_size, bias=False)
        self.class_embedding = mx.zeros(hidden)
        self.gated_positional_embedding = PositionEmbedding(config)
        self.pre_tile_positional_embedding, self.post_tile_positional_embedding = (
            TileEmbedding(config) for _ in range(2)
        )
        self.layernorm_pre, self.layernorm_post = (nn.LayerNorm(hidden, eps=1e-5) for _ in range(2))
        self.transformer = Encoder(config, config.num_hidden_layers, gated=False)
        self.global_transformer = Encoder(config, config.num_global_layers, gated=True)

    def __call__(self, tiles: mx.array, grid: Sequence[int]) -> mx.array:
        count, ratio = grid[0] * grid[1], aspect_ratio_id(grid[0], grid[1], self.max_tiles)
        batch, blank = len(tiles), self.max_tiles - count
        tiles = mx.pad(tiles, [(0, 0), (0, blank), (0, 0), (0, 0), (0, 0)])
        patches = self.patch_embedding(tiles.flatten(0, 1)).reshape(batch, self.max_tiles, self._tokens - 1, -1)
        patches = patches + self.pre_tile_positional_embedding(ratio)
        first = mx.broadcast_to(self.class_embedding, (batch, self.max_tiles, 1, patches.shape[-1]))
        x = mx.concatenate([first, patches], axis=2) + self.gated_positional_embedding(ratio)
        x = mx.pad(self.layernorm_pre(x), [(0, 0), (0, 0), (0, -self._tokens % MULTIPLE), (0, 0)])
        # What fills up comes last, so that attention needs no mask: no position turns on the order.
        width = x.shape[2]
        tile, token = (axis.ravel() for axis in np.indices((self.max_tiles, width)))
        fills = (tile >= count) | (token >= self._tokens)
        order = np.argsort(fills, kind="stable")
        real, place = int((~fills).sum()), np.argsort(order)
        x = x.reshape(batch, self.max_tiles * width, -1)[:, mx.array(order)]
        *states, x = hidden_states(self.transformer.layers, x, [*self._layers, -1], real)
        x = self.layernorm_post(x) + self.post_tile_positional_embedding(ratio)[mx.array(tile[order]), 0]
        [x] = hidden_states(self.global_transformer.layers, x, [-1], real)
        out = mx.concatenate([x, mx.stack(states, axis=-1).flatten(2)], axis=-1)
        return out[:, mx.array(place[token < self._tokens])]
