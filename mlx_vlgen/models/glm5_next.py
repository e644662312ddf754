"""GLM-5.3-Flash: GLM-OCR's tower with limits on what its gates take, and a text decoder of linear and sparse attention,
without rotary positions.

Source: transformers' Glm5NextForConditionalGeneration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._runtime import mx
from ..inputs.prompt import Media
from .backbone import gather_last, output_layer
from .base import Embedded, Features, LayerKind, Model
from .glm4v import Tower
from .glm_ocr import GlmOcrVisionConfig, vision_block
from .mrope import MRopeModel, encode_grids
from .qwen3_5 import stack_experts
from .vision_language import VisionLanguageModel


@dataclass(frozen=True)
class Glm5NextVisionConfig(GlmOcrVisionConfig):
    projection_intermediate_size: int = 10240
    swiglu_limit: float = 10.0


class Glm5Next(VisionLanguageModel):
    text_types = ("glm5_next_text",)
    renames, packed = MRopeModel.renames, MRopeModel.packed
    last_norm = Model.last_norm  # shows nothing: its layers' states are several streams

    def __init__(self, config: dict[str, Any]):
        super().__init__(config, text_arguments(config))
        vision = Glm5NextVisionConfig.from_dict(config["vision_config"])
        block = partial(vision_block, limit=vision.swiglu_limit)
        self.vision_tower = Tower(vision, block, vision.projection_intermediate_size, vision.swiglu_limit)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        return super().sanitize(stack_experts(weights))

    def cache_layout(self) -> list[LayerKind]:
        layout: list[LayerKind] = self.language_model.cache_layout()
        return layout

    def encode(self, media: Sequence[Media]) -> list[Features]:
        return encode_grids(media, self.vision_tower)

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        h = gather_last(self.body(inputs, cache), at)
        return output_layer(self.language_model, self.body.norm(h))


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text decoder's configuration: what it says of linear attention apart, and whose indexers are shared by a
    pattern, among its fields."""
    text = dict(config["text_config"])
    names = {
        "linear_head_dim": "head_dim",
        "linear_num_heads": "num_heads",
        "linear_conv_kernel_dim": "short_conv_kernel_size",
        "linear_lower_bound": "gate_lower_bound",
    }
    if linear := text.get("linear_attn_config"):
        text |= {field: linear[name] for field, name in names.items() if name in linear}
        if linear.get("safe_gate", True) and text.get("linear_lower_bound", -5.0) is None:
            text["linear_lower_bound"] = -5.0
    if text.get("indexer_types") is None:
        text["indexer_types"] = indexer_types(text)
    return text | {
        "model_type": "glm5_next_text",
        "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
    }


def indexer_types(text: Mapping[str, Any]) -> list[str]:
    """Of each layer, where they are not listed."""
    pattern = text.get("index_topk_pattern")
    if pattern is not None:
        names = {"F": "full", "S": "shared"}
        return [names[letter] for letter in pattern] if isinstance(pattern, str) else list(pattern)
    every, offset = max(text.get("index_topk_freq", 1), 1), text.get("index_skip_topk_offset", 2)
    layers = range(text.get("num_hidden_layers", 45))
    return ["shared" if max(layer - offset + 1, 0) % every else "full" for layer in layers]
