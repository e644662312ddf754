"""Qwen2-VL: a tower for pictures of any size, with rotary positions in two dimensions.

Source: Wang et al. 2024 (arXiv 2409.12191); transformers' Qwen2VLForConditionalGeneration. Parameter names are those
of checkpoints converted for MLX.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._runtime import mx, nn
from ..inputs.prompt import Normalization
from .attention import MLP, VisionAttention
from .configuration import BaseConfig, with_rope
from .grids import Grids
from .layers import GELU, PatchEmbedding, merge_order, pace, rotary_2d
from .mrope import MRopeModel, MRopeVisionConfig, VisionBlock


@dataclass(frozen=True)
class Qwen2VLVisionConfig(MRopeVisionConfig):
    embed_dim: int = 1280
    mlp_ratio: float = 4
    hidden_act: str = "quick_gelu"


@dataclass(frozen=True)
class Qwen2VLTextConfig(BaseConfig):
    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 32768
    max_window_layers: int = 80


def vision_block(config: Qwen2VLVisionConfig) -> VisionBlock:
    hidden = config.embed_dim
    mlp = MLP(hidden, int(hidden * config.mlp_ratio), config.hidden_act)
    return VisionBlock(partial(nn.LayerNorm, hidden, eps=1e-6), VisionAttention(hidden, config.num_heads), mlp)


class PatchMerger(nn.Module):
    """merge x merge neighbouring patches, each normalised by `norm`, to one token of the text model."""

    def __init__(self, norm: nn.Module, hidden: int, merge: int, out: int):
        super().__init__()
        self.joined = hidden * merge**2
        self.ln_q = norm
        self.mlp = [nn.Linear(self.joined, self.joined), GELU(), nn.Linear(self.joined, out)]

    def __call__(self, x: mx.array) -> mx.array:  # (B, N, d) -> (B, N / merge^2, out)
        x = self.ln_q(x).reshape(len(x), -1, self.joined)
        for layer in self.mlp:
            x = layer(x)
        return x


class VisionTower(nn.Module):
    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__()
        hidden = config.embed_dim
        self.merge, self.head_size = config.spatial_merge_size, hidden // config.num_heads
        self.patch_embed = PatchEmbedding(
            config.in_channels, config.temporal_patch_size, config.patch_size, hidden, bias=False
        )
        self.blocks = [vision_block(config) for _ in range(config.depth)]
        self.merger = PatchMerger(nn.LayerNorm(hidden, eps=1e-6), hidden, self.merge, config.hidden_size)

    def __call__(
        self, pixels: mx.array, grids: Grids, normalization: Normalization | None = None
    ) -> tuple[mx.array, list[mx.array]]:
        cos, sin = rotary_2d(grids.places(partial(merge_order, merge=self.merge)), self.head_size)
        x = self.patch_embed(pixels, normalization)
        for block in self.blocks:
            before, x = x, block(x, cos, sin, grids.frames)
            pace(before, x)
        return self.merger(x), []


class Qwen2VL(MRopeModel):
    renames = (*MRopeModel.renames, ("model.", "language_model.model."))

    def __init__(self, config: dict[str, Any]):
        tower = VisionTower(Qwen2VLVisionConfig.from_dict(config["vision_config"]))
        super().__init__(config, text_arguments(config), tower, (16, 24, 24), interleaved=False)


def text_arguments(config: Mapping[str, Any], defaults: type[BaseConfig] = Qwen2VLTextConfig) -> dict[str, Any]:
    """The text decoder's configuration: nested, or, as the Hub's originals have it, among the model's fields."""
    text = with_rope(defaults.complete(config.get("text_config") or config), 1_000_000.0)
    # Some releases said it in one place only.
    tied = config.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
    head_size = text["hidden_size"] // text["num_attention_heads"]
    return text | {"model_type": "qwen2", "head_dim": head_size, "tie_word_embeddings": tied}
