"""Qwen3-VL, dense and mixture of experts.

Source: Qwen3-VL technical report (arXiv 2511.21631); transformers' Qwen3VLForConditionalGeneration and
Qwen3VLMoeForConditionalGeneration. Parameter names are those of checkpoints converted for MLX.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._runtime import mx, nn
from ..inputs.prompt import Normalization
from .attention import MLP, VisionAttention
from .configuration import with_rope
from .grids import Grids
from .layers import PatchEmbedding, PositionTable, gelu, merge_order, pace, packed_halves, resample_aligned, rotary_2d
from .mrope import MRopeModel, MRopeVisionConfig, VisionBlock


@dataclass(frozen=True)
class Qwen3VLVisionConfig(MRopeVisionConfig):
    depth: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    hidden_act: str = "gelu_pytorch_tanh"
    out_hidden_size: int = 3584
    patch_size: int = 16
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: Sequence[int] = (8, 16, 24)
    rope_parameters: Mapping[str, Any] | None = None


def vision_block(config: Qwen3VLVisionConfig) -> VisionBlock:
    hidden = config.hidden_size
    mlp = MLP(hidden, config.intermediate_size, config.hidden_act, ("linear_fc1", "linear_fc2"))
    return VisionBlock(partial(nn.LayerNorm, hidden, eps=1e-6), VisionAttention(hidden, config.num_heads), mlp)


class PatchMerger(nn.Module):
    """merge x merge neighbouring patches to one token of the text model. The deepstack mergers normalise after
    the patches are joined, the last one before. Their GELU is the exact one, unlike the blocks'."""

    def __init__(self, config: Qwen3VLVisionConfig, norm_joined: bool):
        super().__init__()
        self.joined = config.hidden_size * config.spatial_merge_size**2
        self.norm = nn.LayerNorm(self.joined if norm_joined else config.hidden_size, eps=1e-6)
        self.linear_fc1 = nn.Linear(self.joined, self.joined)
        self.linear_fc2 = nn.Linear(self.joined, config.out_hidden_size)
        self._norm_joined = norm_joined

    def __call__(self, x: mx.array) -> mx.array:  # (B, N, d) -> (B, N / merge^2, out)
        batch = x.shape[0]
        if self._norm_joined:
            x = self.norm(x.reshape(batch, -1, self.joined))
        else:
            x = self.norm(x).reshape(batch, -1, self.joined)
        return self.linear_fc2(gelu(self.linear_fc1(x)))


class VisionTower(nn.Module):
    def __init__(self, config: Qwen3VLVisionConfig):
        super().__init__()
        hidden = config.hidden_size
        self.merge, self.head_size = config.spatial_merge_size, hidden // config.num_heads
        self._theta = (config.rope_parameters or {}).get("rope_theta", 10000.0)
        self._deepstack = tuple(config.deepstack_visual_indexes)
        self.patch_embed = PatchEmbedding(config.in_channels, config.temporal_patch_size, config.patch_size, hidden)
        self.pos_embed = PositionTable(config.num_position_embeddings, hidden)
        self.blocks = [vision_block(config) for _ in range(config.depth)]
        self.merger = PatchMerger(config, norm_joined=False)
        self.deepstack_merger_list = [PatchMerger(config, norm_joined=True) for _ in self._deepstack]

    def __call__(
        self, pixels: mx.array, grids: Grids, normalization: Normalization | None = None
    ) -> tuple[mx.array, list[mx.array]]:
        """pixels (1, N, patch), as `PatchEmbedding` takes them: pictures and pairs of frames, each in merge order.

        Returns (1, N / merge^2, d) and one of the same for each deepstack layer. Frames do not see each other.
        """
        x = grids.map(self.patch_embed(pixels, normalization), self._add_positions)
        cos, sin = rotary_2d(grids.places(partial(merge_order, merge=self.merge)), self.head_size, self._theta)
        deepstack = []
        for index, block in enumerate(self.blocks):
            before, x = x, block(x, cos, sin, grids.frames)
            if index in self._deepstack:
                deepstack.append(self.deepstack_merger_list[self._deepstack.index(index)](x))
            pace(before, x, *deepstack)
        return self.merger(x), deepstack

    def _add_positions(self, x: mx.array, rows: int, columns: int) -> mx.array:
        table = self.pos_embed.weight
        side = math.isqrt(len(table))
        row, column = merge_order(rows, columns, self.merge)
        return x + resample_aligned(table.reshape(side, side, -1), rows, columns)[mx.array(row), mx.array(column)]


class Qwen3VL(MRopeModel):
    def __init__(self, config: dict[str, Any]):
        tower = VisionTower(Qwen3VLVisionConfig.from_dict(config["vision_config"]))
        super().__init__(config, text_arguments(config), tower, (24, 20, 20), interleaved=True)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        text = self.language_model.args
        return super().sanitize(split_experts(weights, text.hidden_size, getattr(text, "moe_intermediate_size", 0)))


def split_experts(weights: Mapping[str, mx.array], hidden: int, inner: int) -> dict[str, mx.array]:
    """Fused experts -> mlx-lm's three stacks (E, out, in). Qwen3-VL's on the Hub are stored (E, in, out), others
    (E, out, in); the shape of the down projection tells, or, where it is square, that of the other."""
    out = dict(weights)
    for key in [key for key in weights if re.search(r"mlp\.experts\.gate_up_proj$", key)]:
        prefix = key.removesuffix(".gate_up_proj")
        joined, down = out.pop(key), out.pop(f"{prefix}.down_proj")
        hub = down.shape[1:] == (inner, hidden) if inner != hidden else joined.shape[1:] == (hidden, 2 * inner)
        if hub:
            joined, down = joined.swapaxes(1, 2), down.swapaxes(1, 2)
        gate, up = packed_halves(joined)
        stem = prefix.removesuffix("experts") + "switch_mlp"
        out |= {f"{stem}.gate_proj.weight": gate, f"{stem}.up_proj.weight": up, f"{stem}.down_proj.weight": down}
    return out


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text decoder's configuration under the names of transformers 4.x, whichever version wrote it."""
    text = with_rope(config["text_config"], 5_000_000.0)
    text.setdefault("head_dim", text["hidden_size"] // text["num_attention_heads"])
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    text["norm_topk_prob"] = True  # transformers' Qwen3VLMoe router always does
    text["model_type"] = "qwen3_moe" if "moe" in config["model_type"] else "qwen3"
    return text
