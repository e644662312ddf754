"""Kimi K2.5: MoonViT, which takes pictures of any size and some frames of a clip at once, and DeepSeek-V3's decoder.

Source: Kimi Team 2025 (arXiv 2504.07491) for MoonViT; transformers' Kimi_K25ForConditionalGeneration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media
from .attention import MLP, VisionAttention
from .base import Features
from .configuration import BaseConfig
from .layers import GELU, fold_squares, pace, resample_bicubic
from .vision_language import VisionLanguageModel, join_pixels, tower_input
from .vit import PatchConv

EPS = 1e-5
"""Of all norms of the tower; no configuration names it."""


@dataclass(frozen=True)
class MoonVitConfig(BaseConfig):
    patch_size: int = 14
    pos_emb_height: int = 64
    pos_emb_width: int = 64
    num_attention_heads: int = 16
    num_hidden_layers: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    hidden_act: str = "gelu_pytorch_tanh"
    merge_kernel_size: Sequence[int] = (2, 2)
    rope_parameters: Mapping[str, Any] | None = None

    old_names: ClassVar[Mapping[str, str]] = {
        "init_pos_emb_height": "pos_emb_height",
        "init_pos_emb_width": "pos_emb_width",
        **{f"vt_{name}": name for name in ("hidden_size", "intermediate_size")},
        **{f"vt_{name}": name for name in ("num_attention_heads", "num_hidden_layers")},
    }


class PositionGrid(nn.Module):
    def __init__(self, config: MoonVitConfig):
        super().__init__()
        self.weight = mx.zeros((config.pos_emb_height, config.pos_emb_width, config.hidden_size))


class PatchEmbed(nn.Module):
    def __init__(self, config: MoonVitConfig):
        super().__init__()
        self.proj = PatchConv(3, config.hidden_size, config.patch_size, bias=True)
        self.pos_emb = PositionGrid(config)

    def __call__(self, frames: mx.array, rows: int, columns: int) -> mx.array:
        """(B, T, H, W, 3) -> (B, T, N, d). Of several frames each has its time besides."""
        batch, count = frames.shape[:2]
        x = self.proj(frames.flatten(0, 1)) + resample_bicubic(self.pos_emb.weight, rows, columns).flatten(0, 1)
        x = x.reshape(batch, count, *x.shape[1:])
        if count == 1:
            return x
        times = sinusoids(count, x.shape[-1])
        return x + mx.array(times)[:, None].astype(x.dtype)


def sinusoids(count: int, size: int) -> np.ndarray:
    """(count, size): sines and then cosines of 0, 1, 2 … at falling frequencies."""
    frequencies = 1 / 10000 ** (np.arange(0, size, 2, dtype=np.float32) / size)
    angles = np.outer(np.arange(count, dtype=np.float32), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Block(nn.Module):
    def __init__(self, config: MoonVitConfig):
        super().__init__()
        hidden = config.hidden_size
        self.norm0, self.norm1 = nn.LayerNorm(hidden, eps=EPS), nn.LayerNorm(hidden, eps=EPS)
        self.attn = VisionAttention(hidden, config.num_attention_heads, ("wqkv", "wo"), traditional=True)
        self.mlp = MLP(hidden, config.intermediate_size, config.hidden_act, ("fc0", "fc1"))

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        x = x + self.attn(self.norm0(x), cos, sin)
        return x + self.mlp(self.norm1(x))


class MoonVit(nn.Module):
    """Frames (B, T, H, W, 3) that see each other -> (B, rows, columns, d) of patches, the mean of all frames."""

    def __init__(self, config: MoonVitConfig):
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.blocks = [Block(config) for _ in range(config.num_hidden_layers)]
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=EPS)
        self._patch, self._head = config.patch_size, config.hidden_size // config.num_attention_heads
        self._theta = float((config.rope_parameters or {}).get("rope_theta", 10000.0))

    def __call__(self, frames: mx.array) -> mx.array:
        rows, columns = frames.shape[2] // self._patch, frames.shape[3] // self._patch
        x = self.patch_embed(frames, rows, columns)
        batch, count, patches, hidden = x.shape
        x = x.reshape(batch, count * patches, hidden)
        cos, sin = (mx.tile(part, (count, 1)) for part in self.rotary(rows, columns))
        for block in self.blocks:
            before, x = x, block(x, cos, sin)
            pace(before, x)
        x = self.final_layernorm(x).reshape(batch, count, rows, columns, hidden)
        return x.astype(mx.float32).mean(axis=1).astype(x.dtype)

    def rotary(self, rows: int, columns: int) -> tuple[mx.array, mx.array]:
        """cos and sin (N, D / 2): column and row in turn, each frequency for both."""
        row, column = np.indices((rows, columns)).reshape(2, -1)
        frequencies = self._theta ** -(np.arange(0, self._head // 2, 2, dtype=np.float32) / (self._head // 2))
        angles = np.stack([np.outer(place, frequencies) for place in (column, row)], axis=-1).astype(np.float32)
        angles = angles.reshape(rows * columns, -1)
        return mx.array(np.cos(angles)), mx.array(np.sin(angles))


class Projector(nn.Module):
    def __init__(self, width: int, merge: int, outputs: int, eps: float):
        super().__init__()
        inner = width * merge**2
        self.pre_norm = nn.LayerNorm(width, eps=eps)
        self.proj = [nn.Linear(inner, inner), GELU(), nn.Linear(inner, outputs)]
        self._merge = merge

    def __call__(self, x: mx.array) -> mx.array:
        """(B, rows, columns, d) -> (B, n, outputs): merge x merge patches become one."""
        x = fold_squares(self.pre_norm(x), self._merge)
        for layer in self.proj:
            x = layer(x)
        return x


class KimiK25(VisionLanguageModel):
    text_types: ClassVar[Sequence[str]] = ("kimi_k2",)
    renames = (  # what transformers 5 saves
        ("language_model.model.blocks.", "language_model.model.layers."),
        ("model.mm_projector.", "mm_projector."),
    )

    def __init__(self, config: dict[str, Any]):
        text = {"model_type": "deepseek_v3"} | config["text_config"]
        if text["model_type"] == "deepseek_v3":  # transformers' name for it, without its experts in groups
            text["model_type"] = "kimi_k2"
        super().__init__(config, text | {"tie_word_embeddings": config.get("tie_word_embeddings", True)})
        part = config["vision_config"]
        vision = MoonVitConfig.from_dict(part)
        down, across = vision.merge_kernel_size
        if down != across or part.get("mm_hidden_size", vision.hidden_size) != vision.hidden_size:
            raise LoadError("This kimi_k25 checkpoint merges patches in another way, which is not computed here.")
        eps = config.get("projection_layer_norm_eps", part.get("projector_ln_eps", 1e-5))
        names = ("image_token_id", "media_placeholder_token_id", "video_token_id")
        self._placeholders = tuple(config[name] for name in names if name in config)
        self.vision_tower = MoonVit(vision)
        self.mm_projector = Projector(vision.hidden_size, down, self.hidden_size, eps)

    def embed_answer(self, tokens: mx.array) -> mx.array:
        """Placeholders are taken for token 0, as transformers takes them."""
        placeholder = (tokens[..., None] == mx.array(self._placeholders)).any(axis=-1)
        return super().embed_answer(mx.where(placeholder, 0, tokens))

    @classmethod
    def rename(cls, key: str) -> str | None:
        """A block's attention in a module, as conversions for MLX have it."""
        name = key.replace("vision_tower.encoder.", "vision_tower.")
        if ".attn." not in name:
            name = name.replace(".wqkv.", ".attn.wqkv.").replace(".wo.", ".attn.wo.")
        return None if name.endswith(".pos_emb.time_weight") else super().rename(name)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        """Of a clip some frames at a time, which become as many tokens as one."""
        pixels, normalization = join_pixels(media), media[0].normalization
        frames = tower_input(pixels, normalization).reshape(len(media), -1, *self.side_shape(pixels))
        step = media[0].grid[0] if media[0].grid else 1
        starts = range(0, frames.shape[1], step)
        parts = [self.mm_projector(self.vision_tower(frames[:, start : start + step])) for start in starts]
        return [Features(rows) for rows in (parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1))]

    @staticmethod
    def side_shape(pixels: mx.array) -> tuple[int, ...]:
        """(H, W, 3) of levels (T, H, W, 3), or of floats (T, 3, H, W)."""
        if pixels.dtype == mx.uint8:
            return pixels.shape[1:]
        return (*pixels.shape[2:], pixels.shape[1])
