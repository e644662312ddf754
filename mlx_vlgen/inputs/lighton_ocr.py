"""LightOnOCR's processor: images of any size, one token a square of patches, and no others between them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .pixtral import PixtralProcessor
from .processor import ProcessorSettings


@dataclass(eq=False, repr=False)
class LightOnOcrProcessor(PixtralProcessor):
    """Source: transformers' LightOnOcrProcessor, which takes its placeholder's name from the tokenizer."""

    def __post_init__(self) -> None:
        self.image = getattr(self.tokenizer, "image_token", None) or "<|image_pad|>"
        super().__post_init__()

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read_fields(settings, config)
        token = settings.processor.get("patch_size", 14) * settings.processor.get("spatial_merge_size", 2)
        multiple = settings.image.get("patch_size", 16)  # which its image processor alone knows
        if isinstance(multiple, Mapping):
            if multiple["height"] != multiple["width"]:
                raise ValueError(f"patch_size = {multiple}; expected a square")
            multiple = multiple["height"]
        image = replace(fields["image_settings"], token=token, multiple=multiple)
        return fields | {"image_settings": image, "row_end": "", "end": ""}
