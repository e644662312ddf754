"""Granite 4 Vision's processor: LLaVA-NeXT's, with a quarter as many tokens."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .llava_next import LlavaNextProcessor
from .processor import ProcessorSettings


class Granite4VisionProcessor(LlavaNextProcessor):
    """Source: transformers' Granite4VisionProcessor and LlavaNextImageProcessor."""

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        image = super().read_fields(settings, config)["image_settings"]
        return {"image_settings": replace(image, patches=image.patches // 2)}
