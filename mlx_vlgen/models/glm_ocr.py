"""GLM-OCR: GLM-4.1V's networks, small, with norms of queries and keys and without learned positions in its tower.

Source: transformers' GlmOcrForConditionalGeneration. Parameter names are those of checkpoints converted for MLX.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._runtime import mx, nn
from .attention import GATED, MLP, VisionAttention
from .configuration import with_rope
from .glm4v import Glm4v, Glm4vTextConfig, Glm4vVisionConfig, Tower
from .mrope import MRopeModel, VisionBlock


@dataclass(frozen=True)
class GlmOcrVisionConfig(Glm4vVisionConfig):
    hidden_size: int = 1024
    num_heads: int = 16
    intermediate_size: int = 4096
    out_hidden_size: int = 1536
    attention_bias: bool = True


@dataclass(frozen=True)
class GlmOcrTextConfig(Glm4vTextConfig):
    vocab_size: int = 59392
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    max_position_embeddings: int = 131072
    num_nextn_predict_layers: int = 1


def vision_block(config: GlmOcrVisionConfig, limit: float | None = None) -> VisionBlock:
    """limit: see `MLP`."""
    hidden, linear = config.hidden_size, partial(nn.Linear, bias=config.attention_bias)
    norm = partial(nn.RMSNorm, eps=config.rms_norm_eps)
    attn = VisionAttention(hidden, config.num_heads, linear=linear, out_linear=linear, norm=norm, norm_heads=True)
    mlp = MLP(hidden, config.intermediate_size, config.hidden_act, GATED, linear, limit=limit)
    return VisionBlock(partial(norm, hidden), attn, mlp)


class GlmOcr(MRopeModel):
    renames = Glm4v.renames

    def __init__(self, config: dict[str, Any]):
        text, vision = text_arguments(config), GlmOcrVisionConfig.from_dict(config["vision_config"])
        tower = Tower(vision, vision_block, vision.out_hidden_size * vision.in_channels)
        super().__init__(config, text, tower, (8, 12, 12), interleaved=False, traditional=True)
        layers = text["num_hidden_layers"]
        extra = range(layers, layers + text["num_nextn_predict_layers"])
        self._unused = tuple(f"language_model.model.layers.{index}." for index in extra)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Layers after the last, which guess further tokens, are of no use here."""
        return {name: value for name, value in super().sanitize(weights).items() if not name.startswith(self._unused)}


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    text = with_rope(GlmOcrTextConfig.complete(config.get("text_config") or {}), 10_000.0)
    return text | {
        "model_type": "glm4",
        "attention_bias": False,
        "head_dim": text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
        "partial_rotary_factor": text["rope_scaling"].get("partial_rotary_factor", 1.0),
        "tie_word_embeddings": config.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False),
    }
