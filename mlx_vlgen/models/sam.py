"""The encoder of Segment Anything, with two convolutions after it, as the OCR models of DeepSeek and Baidu have it.

Source: Kirillov et al. 2023 (arXiv 2304.02643), Li et al. 2021 (arXiv 2112.01526) for windows and relative positions;
transformers' DeepseekOcr2SamVisionEncoder. Names of parameters are those of the published checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._runtime import mx, nn
from .attention import MLP, attention, merge_heads, split_heads
from .configuration import BaseConfig
from .layers import pace, resample_bilinear, resample_smooth

NECK_EPS = 1e-6


@dataclass(frozen=True)
class SamConfig(BaseConfig):
    """mlp_dim: None for hidden_size * mlp_ratio."""

    hidden_size: int = 768
    output_channels: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    mlp_dim: int | None = None
    window_size: int = 14
    global_attn_indexes: Sequence[int] = (2, 5, 8, 11)
    downsample_channels: Sequence[int] = (512, 1024)


class Attention(nn.Module):
    """x (B, rows, columns, d) -> the same shape. side: of the square whose relative positions it has learned."""

    def __init__(self, config: SamConfig, side: int):
        super().__init__()
        hidden, self.heads = config.hidden_size, config.num_attention_heads
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=config.qkv_bias)
        self.proj = nn.Linear(hidden, hidden)
        self.rel_pos_h = mx.zeros((2 * side - 1, hidden // self.heads))
        self.rel_pos_w = mx.zeros((2 * side - 1, hidden // self.heads))

    def __call__(self, x: mx.array) -> mx.array:
        batch, rows, columns, hidden = x.shape
        parts = mx.split(self.qkv(x.reshape(batch, rows * columns, hidden)), 3, axis=-1)
        q, k, v = (split_heads(part, self.heads) for part in parts)
        # What a query's row and column add to each score is a product, too: more columns of q and k.
        grid = q.reshape(batch, self.heads, rows, columns, -1)
        of_rows = grid @ relative(self.rel_pos_h, rows).swapaxes(-1, -2)  # (B, H, rows, columns, rows)
        of_columns = grid.swapaxes(2, 3) @ relative(self.rel_pos_w, columns).swapaxes(-1, -2)
        added = mx.concatenate([of_rows, of_columns.swapaxes(2, 3)], axis=-1).reshape(*q.shape[:3], rows + columns)
        row, column = np.indices((rows, columns)).reshape(2, -1)
        places = mx.array(np.concatenate([np.eye(rows)[row], np.eye(columns)[column]], axis=1)).astype(x.dtype)
        q = mx.concatenate([q * q.shape[-1] ** -0.5, added], axis=-1)
        k = mx.concatenate([k, mx.broadcast_to(places, (*k.shape[:3], rows + columns))], axis=-1)
        return self.proj(merge_heads(attention(q, k, v, 1.0))).reshape(x.shape)


def relative(table: mx.array, side: int) -> mx.array:
    """table (2 S - 1, d), from the farthest before to the farthest behind -> (side, side, d) of queries and keys."""
    table = resample_bilinear(table[None], 1, 2 * side - 1)[0]
    index = np.arange(side)
    return table[mx.array(index[:, None] - index + side - 1)]


class Block(nn.Module):
    """window: side of the squares within which it attends; 0 for none."""

    def __init__(self, config: SamConfig, window: int):
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.norm1, self.norm2 = nn.LayerNorm(hidden, eps=eps), nn.LayerNorm(hidden, eps=eps)
        self.attn = Attention(config, window or config.image_size // config.patch_size)
        inner = int(hidden * config.mlp_ratio) if config.mlp_dim is None else config.mlp_dim
        self.mlp = MLP(hidden, inner, config.hidden_act, ("lin1", "lin2"))
        self.window = window

    def __call__(self, x: mx.array) -> mx.array:
        """(B, rows, columns, d)."""
        attend = self.attend_in_windows if self.window else self.attn
        x = x + attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def attend_in_windows(self, x: mx.array) -> mx.array:
        """What fills the last windows is attended to as well."""
        batch, rows, columns, hidden = x.shape
        side = self.window
        x = mx.pad(x, [(0, 0), (0, -rows % side), (0, -columns % side), (0, 0)])
        down, across = x.shape[1] // side, x.shape[2] // side
        windows = x.reshape(batch, down, side, across, side, hidden).swapaxes(2, 3).reshape(-1, side, side, hidden)
        out = self.attn(windows).reshape(batch, down, across, side, side, hidden).swapaxes(2, 3)
        return out.reshape(x.shape)[:, :rows, :columns]


class PatchEmbed(nn.Module):
    def __init__(self, config: SamConfig):
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(config.num_channels, config.hidden_size, patch, stride=patch)  # weight (O, P, P, C)

    def __call__(self, patches: mx.array) -> mx.array:
        """(..., P * P * C) -> (..., d)."""
        weight = self.proj.weight
        return patches.astype(weight.dtype) @ weight.reshape(len(weight), -1).T + self.proj.bias


class SamEncoder(nn.Module):
    """patches (B, rows, columns, P * P * C) -> (B, rows / 4, columns / 4, channels)."""

    def __init__(self, config: SamConfig):
        super().__init__()
        side, out = config.image_size // config.patch_size, config.output_channels
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = mx.zeros((1, side, side, config.hidden_size))
        windows = (
            0 if i in config.global_attn_indexes else config.window_size for i in range(config.num_hidden_layers)
        )
        self.blocks = [Block(config, window) for window in windows]
        self.neck = [
            nn.Conv2d(config.hidden_size, out, 1, bias=False),
            nn.LayerNorm(out, eps=NECK_EPS),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.LayerNorm(out, eps=NECK_EPS),
        ]
        middle, last = config.downsample_channels
        self.net_2 = nn.Conv2d(out, middle, 3, stride=2, padding=1, bias=False)
        self.net_3 = nn.Conv2d(middle, last, 3, stride=2, padding=1, bias=False)

    def __call__(self, patches: mx.array) -> mx.array:
        x = self.patch_embed(patches)
        x = x + resample_smooth(self.pos_embed, x.shape[1], x.shape[2])
        for block in self.blocks:
            before, x = x, block(x)
            pace(before, x)
        for layer in self.neck:
            x = layer(x)
        return self.net_3(self.net_2(x))
