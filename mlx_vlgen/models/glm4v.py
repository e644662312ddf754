"""GLM-4.1V, dense, and GLM-4.5V, mixture of experts; GLM-4.6V is one or the other.

Source: GLM-V team 2025 (arXiv 2507.01006); transformers' Glm4vForConditionalGeneration,
Glm4vMoeForConditionalGeneration and Glm46VForConditionalGeneration. Parameter names are those of checkpoints converted
for MLX.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Normalization
from .attention import GATED, MLP, VisionAttention, linear_without_bias
from .configuration import BaseConfig, with_rope
from .grids import Grids
from .layers import PatchEmbedding, PositionTable, gelu, merge_order, pace, resample_bicubic, rotary_2d
from .mrope import MRopeModel, MRopeVisionConfig, VisionBlock
from .qwen3_vl import split_experts
from .router import Router


@dataclass(frozen=True)
class Glm4vVisionConfig(MRopeVisionConfig):
    depth: int = 24
    hidden_size: int = 1536
    num_heads: int = 12
    intermediate_size: int = 13696
    hidden_act: str = "silu"
    out_hidden_size: int = 4096
    image_size: int = 336
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    rope_parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Glm4vTextConfig(BaseConfig):
    vocab_size: int = 151552
    hidden_size: int = 4096
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 2
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 32768


@dataclass(frozen=True)
class Glm4vMoeTextConfig(Glm4vTextConfig):
    vocab_size: int = 151424
    intermediate_size: int = 10944
    num_hidden_layers: int = 46
    num_attention_heads: int = 96
    num_key_value_heads: int = 8
    max_position_embeddings: int = 65536
    attention_bias: bool = True
    moe_intermediate_size: int = 1408
    num_experts_per_tok: int = 8
    n_shared_experts: int = 1
    n_routed_experts: int = 128
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = True


class VisionEmbeddings(nn.Module):
    """A square table of learned positions, resampled to a grid of any size."""

    def __init__(self, side: int, hidden: int):
        super().__init__()
        self._side = side
        self.position_embedding = PositionTable(side**2, hidden)

    def __call__(self, places: np.ndarray, rows: int, columns: int) -> mx.array:
        """Those of the patches at `places`, rows and columns (2, N), of a rows x columns grid: (N, d)."""
        table = self.position_embedding.weight.reshape(self._side, self._side, -1)
        return resample_bicubic(table, rows, columns)[tuple(map(mx.array, places))]


def vision_block(config: Glm4vVisionConfig) -> VisionBlock:
    """Its MLP is as wide as the text decoder's states; `intermediate_size` is the merger's."""
    hidden, linear = config.hidden_size, partial(nn.Linear, bias=config.attention_bias)
    attn = VisionAttention(hidden, config.num_heads, linear=linear, out_linear=linear_without_bias)
    mlp = MLP(hidden, config.out_hidden_size, config.hidden_act, GATED, linear_without_bias)
    return VisionBlock(partial(nn.RMSNorm, hidden, eps=config.rms_norm_eps), attn, mlp)


class Downsample(nn.Conv2d):
    """A convolution over merge x merge patches that lie together, computed as one matmul: (B, N, d) to
    (B, N / merge^2, out)."""

    def __init__(self, hidden: int, out: int, merge: int):
        super().__init__(hidden, out, merge, stride=merge)  # weight (out, merge, merge, d)

    def __call__(self, x: mx.array) -> mx.array:
        weight = self.weight.reshape(len(self.weight), -1)
        return x.reshape(len(x), -1, weight.shape[1]) @ weight.T + self.bias


class Merger(MLP):
    def __init__(self, size: int, inner: int, activation: str, limit: float | None = None):
        super().__init__(size, inner, activation, GATED, linear_without_bias, limit=limit)
        self.proj = nn.Linear(size, size, bias=False)
        self.post_projection_norm = nn.LayerNorm(size, eps=1e-5)

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(gelu(self.post_projection_norm(self.proj(x))))


class Tower(nn.Module):
    """What the towers of GLM's models share.

    block: makes one of its layers. merger_size: inner width of the merger's MLP; limit: see `MLP`.
    """

    def __init__(
        self,
        config: Glm4vVisionConfig,
        block: Callable[[Any], VisionBlock],
        merger_size: int,
        limit: float | None = None,
    ):
        super().__init__()
        hidden, out = config.hidden_size, config.out_hidden_size
        self.merge, self.head_size = config.spatial_merge_size, hidden // config.num_heads
        self._theta = (config.rope_parameters or {}).get("rope_theta", 10000.0)
        self.patch_embed = PatchEmbedding(config.in_channels, config.temporal_patch_size, config.patch_size, hidden)
        self.blocks = [block(config) for _ in range(config.depth)]
        self.post_layernorm = nn.RMSNorm(hidden, eps=config.rms_norm_eps)
        self.downsample = Downsample(hidden, out, self.merge)
        self.merger = Merger(out, merger_size, config.hidden_act, limit)

    def add_positions(self, x: mx.array, grids: Grids) -> mx.array:
        """Embedded patches (1, N, d) with what tells their places."""
        return x

    def __call__(
        self, pixels: mx.array, grids: Grids, normalization: Normalization | None = None
    ) -> tuple[mx.array, list[mx.array]]:
        cos, sin = rotary_2d(grids.places(partial(merge_order, merge=self.merge)), self.head_size, self._theta)
        x = self.add_positions(self.patch_embed(pixels, normalization), grids)
        for block in self.blocks:
            before, x = x, block(x, cos, sin, grids.frames)
            pace(before, x)
        return self.merger(self.downsample(self.post_layernorm(x))), []


class VisionTower(Tower):
    def __init__(self, config: Glm4vVisionConfig):
        super().__init__(config, vision_block, config.intermediate_size)
        self.embeddings = VisionEmbeddings(config.image_size // config.patch_size, config.hidden_size)
        self.post_conv_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def add_positions(self, x: mx.array, grids: Grids) -> mx.array:
        def add(x: mx.array, rows: int, columns: int) -> mx.array:
            return x + self.embeddings(merge_order(rows, columns, self.merge), rows, columns)

        return grids.map(self.post_conv_layernorm(x), add)


class Glm4v(MRopeModel):
    renames = (*MRopeModel.renames, ("model.", "language_model.model."))  # the last as the first release had it

    def __init__(self, config: dict[str, Any]):
        text = text_arguments(config)
        tower = VisionTower(Glm4vVisionConfig.from_dict(config["vision_config"]))
        dense = text["model_type"] == "glm4"
        super().__init__(config, text, tower, (8, 12, 12), interleaved=False, traditional=dense)
        for layer in self.body.layers:
            if "gate" in layer.mlp:
                layer.mlp.gate = Router(text)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """transformers 5 saves GLM-4.6V's experts fused."""
        text = self.language_model.args
        return super().sanitize(split_experts(weights, text.hidden_size, getattr(text, "moe_intermediate_size", 0)))


TEXT_CONFIGS: Mapping[str, type[Glm4vTextConfig]] = {
    "glm4v": Glm4vTextConfig,
    "glm4v_moe": Glm4vMoeTextConfig,
}


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text decoder's configuration: nested, or, as in the first release, among the model's fields."""
    nested = config.get("text_config") or config
    kind = (nested.get("model_type") or config["model_type"]).removesuffix("_text")
    if kind not in TEXT_CONFIGS:
        expected = " or ".join(f"{known}_text" for known in TEXT_CONFIGS)
        raise LoadError(f"This {config['model_type']} checkpoint's text decoder is {kind!r}; expected {expected}.")
    moe = kind == "glm4v_moe"
    text = with_rope(TEXT_CONFIGS[kind].complete(nested), 10_000.0)
    part = text["rope_scaling"].get("partial_rotary_factor", text.get("partial_rotary_factor", 0.5 if moe else 1.0))
    head_size = text["hidden_size"] // text["num_attention_heads"]
    tied = config.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
    changes: dict[str, Any] = {"partial_rotary_factor": part, "tie_word_embeddings": tied}
    if moe:
        changes |= {"model_type": "glm4_moe", "head_dim": text.get("head_dim") or head_size, "use_qk_norm": False}
    else:
        changes |= {"model_type": "glm4", "head_dim": head_size, "attention_bias": True}
    return text | changes
