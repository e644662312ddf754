"""Qwen3.5, dense and mixture of experts: most text layers are linear attention, which keeps a state and no positions;
the others attend to all and are gated. The tower is Qwen3-VL's without deepstack.

Source: Yang et al. 2024 on the gated delta rule (arXiv 2412.06464); transformers' Qwen3_5ForConditionalGeneration and
Qwen3_5MoeForConditionalGeneration. Parameter names are those of checkpoints converted for MLX.
"""

import re
from collections.abc import Mapping
from typing import Any

from .._runtime import mx
from .configuration import with_rope
from .mrope import MRopeModel
from .qwen3_vl import VisionTower, split_experts

# What transformers assumes where config.json is silent.
VISION: dict[str, Any] = {
    "depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304, "hidden_act": "gelu_pytorch_tanh",
    "out_hidden_size": 3584, "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
}  # fmt: skip
LINEAR: dict[str, Any] = {
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip
TEXT: dict[str, Any] = LINEAR | {
    "vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256,
}  # fmt: skip
TEXT_MOE: dict[str, Any] = LINEAR | {
    "vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 8, "num_experts": 256,
}  # fmt: skip


class Qwen3_5(MRopeModel):
    renames = (("model.language_model.visual.", "vision_tower."), *MRopeModel.renames)

    def __init__(self, config: dict[str, Any]):
        tower = VisionTower(VISION | config["vision_config"] | {"deepstack_visual_indexes": ()})
        super().__init__(config, text_arguments(config), tower, (11, 11, 10), interleaved=True)

    @classmethod
    def rename(cls, key: str) -> str | None:
        """Layers that guess further tokens ("mtp") are of no use here."""
        return None if key.startswith("mtp.") else super().rename(key)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The Hub's weights of RMSNorms lack the 1 that is added to them; mlx-lm adds it where convolutions still have
        their channels in torch's place."""
        text = self.language_model.args
        return super().sanitize(split_experts(stack_experts(weights), text.hidden_size, text.moe_intermediate_size))


def stack_experts(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Experts saved one by one, as transformers 5 does, -> mlx-lm's stacks (E, out, in)."""
    out: dict[str, mx.array] = {}
    single: dict[str, dict[int, mx.array]] = {}
    for key, value in weights.items():
        if part := re.fullmatch(r"(.*\.mlp)\.experts\.(\d+)\.(.+)", key):
            single.setdefault(f"{part[1]}.switch_mlp.{part[3]}", {})[int(part[2])] = value
        else:
            out[key] = value
    return out | {key: mx.stack([experts[i] for i in sorted(experts)]) for key, experts in single.items()}


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text decoder's configuration under the names that mlx-lm reads."""
    moe = "moe" in config["model_type"]
    text = with_rope((TEXT_MOE if moe else TEXT) | config["text_config"], 10_000.0)
    part = text["rope_scaling"].get("partial_rotary_factor", text.get("partial_rotary_factor", 0.25))
    changes: dict[str, Any] = {
        "model_type": "qwen3_5_moe" if moe else "qwen3_5",
        "partial_rotary_factor": part,
        "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        "norm_topk_prob": True,  # transformers' router always does
    }
    return text | changes | ({} if moe else {"num_experts": 0})
