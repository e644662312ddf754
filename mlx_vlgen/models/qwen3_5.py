"""Qwen3.5, dense and mixture of experts: most text layers are linear attention, which keeps a state and no positions;
the others attend to all and are gated. The tower is Qwen3-VL's without deepstack.

Source: Yang et al. 2024 on the gated delta rule (arXiv 2412.06464); transformers' Qwen3_5ForConditionalGeneration and
Qwen3_5MoeForConditionalGeneration. Parameter names are those of checkpoints converted for MLX.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .._runtime import mx
from .configuration import BaseConfig, rope_type, with_rope
from .mrope import MRopeModel
from .qwen3_vl import Qwen3VLVisionConfig, VisionTower, split_experts
from .text import TextModel


@dataclass(frozen=True)
class _TextConfig(BaseConfig):
    vocab_size: int = 248320
    num_attention_heads: int = 16
    head_dim: int = 256
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32


@dataclass(frozen=True)
class Qwen3_5TextConfig(_TextConfig):
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_key_value_heads: int = 4


@dataclass(frozen=True)
class Qwen3_5MoeTextConfig(_TextConfig):
    hidden_size: int = 2048
    num_hidden_layers: int = 40
    num_key_value_heads: int = 2
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts_per_tok: int = 8
    num_experts: int = 256


class Qwen3_5(MRopeModel):
    renames = (("model.language_model.visual.", "vision_tower."), *MRopeModel.renames)

    def __init__(self, config: dict[str, Any], text: dict[str, Any] | None = None):
        """text: the text decoder's configuration, where it is not that of `text_arguments`."""
        vision = replace(Qwen3VLVisionConfig.from_dict(config["vision_config"]), deepstack_visual_indexes=())
        text = text_arguments(config) if text is None else text
        super().__init__(config, text, VisionTower(vision), (11, 11, 10), interleaved=True)

    @classmethod
    def rename(cls, key: str) -> str | None:
        """Layers that guess further tokens ("mtp") are of no use here."""
        return None if key.startswith("mtp.") else super().rename(key)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The Hub's weights of RMSNorms lack the 1 that is added to them; mlx-lm adds it where convolutions still have
        their channels in torch's place."""
        text = self.language_model.args
        return super().sanitize(split_experts(stack_experts(weights), text.hidden_size, text.moe_intermediate_size))


class Qwen3_5Text(TextModel):
    """The text decoder alone, whose three rotary positions are always equal."""

    @classmethod
    def decoder_config(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        text = text_arguments(config if "text_config" in config else {**config, "text_config": config})
        kind = "yarn" if rope_type(text["rope_scaling"]) == "yarn" else "default"
        shared = {key: text[key] for key in ("rope_theta", "partial_rotary_factor")}
        return text | {"rope_parameters": text.pop("rope_scaling") | {"type": kind, "rope_type": kind} | shared}

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        text = self.text_decoder().language_model.args
        known = {key: value for key, value in weights.items() if not key.startswith("mtp.")}
        return super().sanitize(split_experts(stack_experts(known), text.hidden_size, text.moe_intermediate_size))


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
    text_class = Qwen3_5MoeTextConfig if moe else Qwen3_5TextConfig
    text = with_rope(text_class.complete(config["text_config"]), 10_000.0)
    part = text["rope_scaling"].get("partial_rotary_factor", text.get("partial_rotary_factor", 0.25))
    changes: dict[str, Any] = {
        "model_type": "qwen3_5_moe" if moe else "qwen3_5",
        "partial_rotary_factor": part,
        "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        "norm_topk_prob": True,  # transformers' router always does
    }
    return text | changes | ({} if moe else {"num_experts": 0})
