"""LightOnOCR: the tower and projector of Mistral Small 3.1 before Qwen 3.

Source: transformers' LightOnOcrForConditionalGeneration.
"""

from collections.abc import Mapping
from typing import Any

from .mistral3 import Mistral3


class LightOnOcr(Mistral3):
    text_types = ("qwen3",)
    renames = (
        ("model.vision_encoder.", "vision_tower.vision_model."),
        ("model.vision_projection.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    @staticmethod
    def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
        """Here the model's part says it."""
        return config["text_config"] | {"tie_word_embeddings": config.get("tie_word_embeddings", True)}
