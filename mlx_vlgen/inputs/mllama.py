"""Llama 3.2 Vision's processor: an image, padded, as rows and columns of square tiles. One token stands for it: its
features go to other layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .images import refuse_pixel_bounds
from .llama4 import PaddedTileSettings
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import Media, MediaInputs, Span


@dataclass(eq=False, repr=False)
class MllamaProcessor(Processor):
    """Source: transformers' MllamaProcessor and MllamaImageProcessor."""

    image_settings: PaddedTileSettings

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<|image|>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        vision = config["vision_config"]
        image = {**settings.image, "max_patches": vision.get("max_num_tiles", 4)}
        return {"image_settings": PaddedTileSettings.read(image, vision.get("image_size", 448))}

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        settings = self.image_settings
        image, original = settings.load(source, media)
        grid = settings.grid(image.height, image.width)
        pixels, text = settings.tiles(image, grid), self.placeholders[kind]
        return Expansion(text, (1,), pixels, grid, original, normalization=settings.normalization)

    def two_way(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[Span, ...]:
        """All up to the last image: tokens before an image attend to it, so that they are computed together."""
        return ((0, media[-1].spans[-1][1]),) if media else ()
