"""The processors of DeepSeek's and Baidu's OCR models: a page as a whole, on a square, and in square tiles."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import LoadError
from .files import MAX_SIDE
from .images import ImageSettings, read_colors, refuse_pixel_bounds
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .tiles import best_grid, cut_tiles

TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
"""The published checkpoints come without a template: what is said to them is the prompt, a line for each picture."""

DOWNSAMPLING = 4
"""Patches a side that become one feature of the encoder."""


@dataclass(frozen=True)
class PageSettings(ImageSettings):
    """In pixels: side, of the square that shows a whole page; tile, of each of min_tiles to max_tiles squares that it
    is cut into where it is larger than one, if `cuts`; patch. background: level of what a page leaves of its square.
    stretch: whether a page that is not cut is resized to the square instead."""

    side: int
    tile: int
    patch: int
    min_tiles: int
    max_tiles: int
    cuts: bool
    background: tuple[int, ...]
    stretch: bool = False

    @classmethod
    def read(cls, settings: ProcessorSettings, config: Mapping[str, Any], **defaults: Any) -> Self:
        """config: of the model, whose tower says how large a patch is. defaults: of the family: its sides, and numbers
        of tiles."""
        image, size = settings.image, settings.image.get("size") or {}
        side, tile = max(size.values(), default=defaults["side"]), image.get("tile_size", defaults["tile"])
        vision = config["vision_config"]
        patch = (vision.get("sam_config") or vision["width"]["sam_vit_b"]).get("patch_size", 16)
        if max(side, tile) > MAX_SIDE or side % (patch * DOWNSAMPLING) or tile % (patch * DOWNSAMPLING):
            raise LoadError(
                f"This checkpoint's processor makes squares of {side} and {tile} pixels a side; expected multiples of "
                f"{patch * DOWNSAMPLING}, and at most {MAX_SIDE}."
            )
        return cls(
            side=side,
            tile=tile,
            patch=patch,
            min_tiles=image.get("min_patches", defaults["min_tiles"]),
            max_tiles=image.get("max_patches", defaults["max_tiles"]),
            cuts=image.get("crop_to_patches", True),
            background=tuple(bytes(image.get("background_color", (127, 127, 127)))),  # levels, or a ValueError
            **read_colors(image or settings.processor),
        )

    def grid(self, image: Image.Image) -> tuple[int, int]:
        """Rows and columns of tiles; zeros for none."""
        if not self.cuts or max(image.size) <= self.tile:
            return 0, 0
        return best_grid(image.height, image.width, self.tile, self.min_tiles, self.max_tiles)

    def whole(self, image: Image.Image) -> np.ndarray:
        """(side, side, 3) uint8."""
        if self.stretch and not self.cuts:
            return np.asarray(self.resize(image, (self.side, self.side)))
        by = self.side / max(image.size)
        height, width = max(1, round(image.height * by)), max(1, round(image.width * by))
        square = np.full((self.side, self.side, 3), np.array(self.background, np.uint8))
        top, left = (self.side - height) // 2, (self.side - width) // 2
        square[top : top + height, left : left + width] = np.asarray(self.resize(image, (height, width)))
        return square

    def patches(self, image: Image.Image, grid: tuple[int, int]) -> np.ndarray:
        """Those of its tiles, one after the other, and then those of the whole: (N, patch * patch * 3) uint8."""
        squares = [self.whole(image)]
        if rows := grid[0]:
            levels = np.asarray(self.resize(image, (rows * self.tile, grid[1] * self.tile)))
            squares = [*cut_tiles(levels, self.tile), *squares]
        return np.concatenate([cut_tiles(square, self.patch).reshape(-1, self.patch**2 * 3) for square in squares])


@dataclass(eq=False, repr=False)
class DeepseekOcr2Processor(Processor):
    """Source: transformers' DeepseekOcr2Processor and DeepseekOcr2ImageProcessor."""

    image_settings: PageSettings

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<image>"}
    prompt_tokens = r"<\|/?(ref|det|grounding)\|>"

    def __post_init__(self) -> None:
        if self.chat_template is None:
            self.chat_template = TEMPLATE

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        image = PageSettings.read(settings, config, side=1024, tile=768, min_tiles=2, max_tiles=6)
        # Numbers of tiles are the processor's, whatever is saved with its image processor.
        fields = {**vars(image), "min_tiles": 2, "max_tiles": 6, "cuts": True}
        counts = tuple((side // image.patch // DOWNSAMPLING) ** 2 for side in (image.tile, image.side))
        if counts != (144, 256):
            raise LoadError(
                f"This checkpoint's processor makes tiles of {image.tile} and pages of {image.side} pixels a side, "
                f"which are {counts[0]} and {counts[1]} features; expected 144 and 256, the numbers of its queries."
            )
        return {"image_settings": PageSettings(**fields)}

    @staticmethod
    def count(rows: int, columns: int, tile: int, whole: int) -> int:
        """Features of a page of so many tiles; tile, whole: features a side of either, and one after all."""
        return rows * columns * tile**2 + whole**2 + 1

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        page = self.image_settings
        image, original = page.load(source, media)
        grid = page.grid(image)
        tile, whole = (side // page.patch // DOWNSAMPLING for side in (page.tile, page.side))
        count = self.count(*grid, tile, whole)
        self.check_count(kind, original, count, "resize_shape (--resize-shape) makes it smaller")
        pixels = page.patches(image, grid)
        text, shape = self.placeholders[kind] * count, (*grid, page.tile // page.patch, page.side // page.patch)
        return Expansion(text, (count,), pixels, shape, original, normalization=page.normalization)


@dataclass(eq=False, repr=False)
class UnlimitedOcrProcessor(DeepseekOcr2Processor):
    """Source: transformers' UnlimitedOcrProcessor and UnlimitedOcrImageProcessor; of DeepSeek-OCR, which has fewer
    tiles, `dynamic_preprocess` beside its checkpoint."""

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        most = 9 if config["model_type"] == "deepseek_vl_v2" else 32
        image = PageSettings.read(settings, config, side=1024, tile=640, min_tiles=2, max_tiles=most)
        stretch = image.side <= settings.image.get("maximum_pad_value", 640)
        return {"image_settings": replace(image, stretch=stretch)}

    @staticmethod
    def count(rows: int, columns: int, tile: int, whole: int) -> int:
        """And one at the end of each line, of the page that the tiles make and of the whole."""
        return rows * tile * (columns * tile + 1) * (rows > 0) + whole * (whole + 1) + 1
