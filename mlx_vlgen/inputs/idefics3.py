"""The processor of Idefics3: an image as rows and columns of square tiles, and once more as a whole."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import LoadError
from .chat_template import Message, string_to_parts
from .images import ImageSettings, Size, read_colors, refuse_pixel_bounds
from .literal import Segment
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .tiles import cut_tiles

IMAGE, AROUND = "<image>", "<fake_token_around_image>"
MAX_EDGE = 4096
"""No image is made larger than this, in pixels a side."""


@dataclass(frozen=True)
class Idefics3ImageSettings(ImageSettings):
    """As a preprocessor_config.json has it. edge: an image's longer side before it is cut, None to keep its size;
    tile: the side of a tile; split: whether it is cut at all. All in pixels."""

    edge: int | None
    tile: int
    split: bool

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        """With transformers' Idefics3ImageProcessor's numbers for what the file leaves out."""
        size = settings.get("size") or {"longest_edge": 4 * 364}
        if "longest_edge" not in size:
            raise LoadError(f"This checkpoint's processor has pictures of size {size}; expected a longest_edge.")
        tile = (settings.get("max_image_size") or {"longest_edge": 364})["longest_edge"]
        if tile > MAX_EDGE:
            raise ValueError(f"max_image_size = {tile}; expected at most {MAX_EDGE} pixels")
        return cls(
            edge=size["longest_edge"] if settings.get("do_resize", True) else None,
            tile=tile,
            split=settings.get("do_image_splitting", True),
            **read_colors(settings, resample=Image.Resampling.LANCZOS),
        )

    def cut(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """An image -> its tiles in reading order and then the whole, (T, tile, tile, 3) uint8, and the rows and columns
        of tiles; the whole alone, and (0, 0), where one tile holds it. Source: transformers' Idefics3ImageProcessor."""
        tile = self.tile
        if self.edge is not None:
            image = self.resize(image, longest(image.height, image.width, self.edge))
        if self.split:
            image = self.resize(image, whole_tiles(image.height, image.width, tile))
        rows, columns = image.height // tile, image.width // tile
        whole = np.asarray(self.resize(image, (tile, tile)))[None]
        if not self.split or rows * columns == 1:
            return whole, (0, 0)
        return np.concatenate([cut_tiles(np.asarray(image), tile), whole]), (rows, columns)


def longest(height: int, width: int, edge: int) -> Size:
    """The (height, width) with a longer side of `edge`; the shorter one is even, or 1."""
    height, width = scaled(height, width, edge)
    height, width = (height + height % 2, width) if width >= height else (height, width + width % 2)
    height, width = max(1, height), max(1, width)
    if edge > MAX_EDGE:
        height, width = scaled(height, width, MAX_EDGE)
    return max(1, height), max(1, width)


def whole_tiles(height: int, width: int, tile: int) -> Size:
    """The (height, width) in whole tiles: the longer side is rounded up first, then the shorter one that follows."""
    longer = math.ceil(max(height, width) / tile) * tile
    height, width = scaled(height, width, longer)
    return max(1, math.ceil(height / tile)) * tile, max(1, math.ceil(width / tile)) * tile


def scaled(height: int, width: int, edge: int) -> Size:
    """The (height, width) with a longer side of `edge`, the shorter one rounded down."""
    aspect = width / height
    return (int(edge / aspect), edge) if width >= height else (edge, int(edge * aspect))


@dataclass(eq=False, repr=False)
class Idefics3Processor(Processor):
    """Source: transformers' Idefics3Processor. side: pixels a side that become one token."""

    image_settings: Idefics3ImageSettings
    side: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": IMAGE}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        patch = config["vision_config"].get("patch_size", 32)
        return {
            "image_settings": Idefics3ImageSettings.read(settings.image),
            "side": int(patch * config.get("scale_factor", 2)),
        }

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        """Its templates read lists of parts only."""
        return super().format([string_to_parts(message) for message in messages], **kwargs)

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        image, original = self.image_settings.load(source, media)
        tiles, (rows, columns) = self.image_settings.cut(image)
        count = (self.image_settings.tile // self.side) ** 2
        lines = [
            "".join(f"{AROUND}<row_{row}_col_{column}>{IMAGE * count}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        ]
        text = "".join([*lines, "\n"] if lines else []) + whole_text(count)
        self.check_count(
            kind, original, count * len(tiles), "a smaller `size` in preprocessor_config.json makes it less"
        )
        normalization = self.image_settings.normalization
        return Expansion(text, (count,) * len(tiles), tiles, (), original, normalization=normalization)


def whole_text(count: int) -> str:
    """The text of a whole image or a frame."""
    return f"{AROUND}<global-img>{IMAGE * count}{AROUND}"
