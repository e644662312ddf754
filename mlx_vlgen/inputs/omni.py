"""The processor of Qwen2.5-Omni and Qwen3-Omni."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .processor_files import ProcessorSettings
from .qwen2_vl import Qwen2VLProcessor


@dataclass(eq=False, repr=False)
class Qwen2_5OmniProcessor(Qwen2VLProcessor):
    """A video's bounds are the family's, whatever a checkpoint's files say. Source: transformers' Qwen2_5OmniProcessor."""

    placeholders = {"image": "<|IMAGE|>", "video": "<|VIDEO|>"}
    prompt_tokens = r"<\|(box|quad)_(start|end)\|>"

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read_fields(settings, config.get("thinker_config", config))
        video, (least, most) = fields["video_settings"], cls.video_bounds
        return fields | {"video_settings": replace(video, min_pixels=least, max_pixels=most), "timed": True}
