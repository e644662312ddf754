"""LLaVA-NeXT's processor: an image whole and in tiles, a token for each patch that shows it and each end of line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .anyres import AnyRes
from .images import CLIP_MEAN, CLIP_STD, refuse_pixel_bounds
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs

CANVASES = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


@dataclass(eq=False, repr=False)
class LlavaNextProcessor(Processor):
    """Source: transformers' LlavaNextProcessor."""

    image_settings: AnyRes

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<image>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"image_settings": AnyRes.read(settings.image, config, CANVASES, CLIP_MEAN, CLIP_STD)}

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        image, original = self.image_settings.square.load(source, media)
        grid = self.image_settings.layout((image.height, image.width))
        count = self.image_settings.patches**2 + grid[2] * (grid[3] + 1)
        self.check_count(kind, original, count, "resize_shape (--resize-shape) makes it smaller")
        pixels = self.image_settings.pixels(image)
        text, normalization = self.placeholders[kind] * count, self.image_settings.square.normalization
        return Expansion(text, (count,), pixels, grid, original, normalization=normalization)
