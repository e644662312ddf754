"""LLaVA-NeXT's processor: a picture whole and in tiles, a token for each patch that shows it and each end of line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .anyres import AnyRes
from .images import CLIP_MEAN, CLIP_STD
from .plain import open_picture, refuse_pixel_bounds
from .processor import Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import MediaInputs

CANVASES = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


class LlavaNextProcessor(Processor):
    """Source: transformers' LlavaNextProcessor."""

    placeholders: Mapping[Kind, str] = {"image": "<image>"}

    def __init__(self, tokenizer: Any, chat_template: str | None, pictures: AnyRes):
        super().__init__(tokenizer, chat_template)
        self.pictures = pictures

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "LlavaNextProcessor":
        tokenizer, own = load_tokenizer(folder), read_settings(folder).image
        return cls(tokenizer, load_template(folder, tokenizer), AnyRes.read(own, config, CANVASES, CLIP_MEAN, CLIP_STD))

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        image, original = open_picture(source, media, self.pictures.square.resample)
        grid = self.pictures.layout((image.height, image.width))
        count = self.pictures.patches**2 + grid[2] * (grid[3] + 1)
        self.check_count(kind, original, count, "resize_shape (--resize-shape) makes it smaller")
        return Expansion(self.placeholders[kind] * count, (count,), self.pictures.pixels(image), grid, original)
