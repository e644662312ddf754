"""The processor of Idefics3: a picture as rows and columns of square tiles, and once more as a whole."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import LoadError
from .chat_template import Message, in_parts
from .images import normalize, resize
from .literal import Segment
from .plain import open_picture, refuse_pixel_bounds
from .processor import Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import MediaInputs

IMAGE, AROUND = "<image>", "<fake_token_around_image>"
LARGEST = 4096
"""No picture is made larger than this, in pixels a side."""


@dataclass(frozen=True)
class TileSettings:
    """As a preprocessor_config.json has it. edge: a picture's longer side before it is cut, None to keep its size;
    tile: the side of a tile; split: whether it is cut at all. All in pixels."""

    edge: int | None
    tile: int
    split: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Image.Resampling

    @classmethod
    def read(cls, own: Mapping[str, Any]) -> "TileSettings":
        """With transformers' Idefics3ImageProcessor's numbers for what the file leaves out."""
        size = own.get("size") or {"longest_edge": 4 * 364}
        if "longest_edge" not in size:
            raise LoadError(f"This checkpoint's processor has pictures of size {size}; expected a longest_edge.")
        tile = (own.get("max_image_size") or {"longest_edge": 364})["longest_edge"]
        if tile > LARGEST:
            raise ValueError(f"max_image_size = {tile}; expected at most {LARGEST} pixels")
        return cls(
            edge=size["longest_edge"] if own.get("do_resize", True) else None,
            tile=tile,
            split=own.get("do_image_splitting", True),
            mean=tuple(own.get("image_mean") or (0.5,) * 3),
            std=tuple(own.get("image_std") or (0.5,) * 3),
            resample=Image.Resampling(own.get("resample", Image.Resampling.LANCZOS)),
        )


def longest(height: int, width: int, edge: int) -> tuple[int, int]:
    """The (height, width) with a longer side of `edge`; the shorter one is even, or 1."""
    height, width = scaled(height, width, edge)
    height, width = (height + height % 2, width) if width >= height else (height, width + width % 2)
    height, width = max(1, height), max(1, width)
    if edge > LARGEST:
        height, width = scaled(height, width, LARGEST)
    return max(1, height), max(1, width)


def whole_tiles(height: int, width: int, tile: int) -> tuple[int, int]:
    """The (height, width) in whole tiles: the longer side is rounded up first, then the shorter one that follows."""
    longer = math.ceil(max(height, width) / tile) * tile
    height, width = scaled(height, width, longer)
    return max(1, math.ceil(height / tile)) * tile, max(1, math.ceil(width / tile)) * tile


def scaled(height: int, width: int, edge: int) -> tuple[int, int]:
    """The (height, width) with a longer side of `edge`, the shorter one rounded down."""
    aspect = width / height
    return (int(edge / aspect), edge) if width >= height else (edge, int(edge * aspect))


def cut(image: Image.Image, settings: TileSettings) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture -> its tiles in reading order and then the whole, (T, tile, tile, 3) uint8, and the rows and columns
    of tiles; the whole alone, and (0, 0), where one tile holds it. Source: transformers' Idefics3ImageProcessor."""
    tile, resample = settings.tile, settings.resample
    if settings.edge is not None:
        image = resize(image, longest(image.height, image.width, settings.edge), resample)
    if settings.split:
        image = resize(image, whole_tiles(image.height, image.width, tile), resample)
    rows, columns = image.height // tile, image.width // tile
    whole = np.asarray(resize(image, (tile, tile), resample))[None]
    if not settings.split or rows * columns == 1:
        return whole, (0, 0)
    parts = np.asarray(image).reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    return np.concatenate([parts.reshape(-1, tile, tile, 3), whole]), (rows, columns)


def pixels_of(tiles: np.ndarray, settings: TileSettings) -> np.ndarray:
    """(T, H, W, 3) uint8 -> (T, 3, H, W) float32, as the tower takes them."""
    return np.ascontiguousarray(normalize(tiles, settings.mean, settings.std).transpose(0, 3, 1, 2))


class Idefics3Processor(Processor):
    """Source: transformers' Idefics3Processor. side: pixels a side that become one feature."""

    placeholders: Mapping[Kind, str] = {"image": IMAGE}

    def __init__(self, tokenizer: Any, chat_template: str | None, pictures: TileSettings, side: int):
        super().__init__(tokenizer, chat_template)
        self.pictures, self.side = pictures, side

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "Idefics3Processor":
        tokenizer = load_tokenizer(folder)
        pictures = TileSettings.read(read_settings(folder).image)
        return cls(tokenizer, load_template(folder, tokenizer), pictures, feature_side(config))

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        return super().format(in_parts(messages), **kwargs)  # its templates know nothing else

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        image, original = open_picture(source, media, self.pictures.resample)
        tiles, (rows, columns) = cut(image, self.pictures)
        count = (self.pictures.tile // self.side) ** 2
        lines = [
            "".join(f"{AROUND}<row_{row}_col_{column}>{IMAGE * count}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        ]
        text = "".join([*lines, "\n"] if lines else []) + whole_text(count)
        self.check_count(
            kind, original, count * len(tiles), "a smaller `size` in preprocessor_config.json makes it less"
        )
        return Expansion(text, (count,) * len(tiles), pixels_of(tiles, self.pictures), (), original)


def whole_text(count: int) -> str:
    """What stands for a whole picture or a frame."""
    return f"{AROUND}<global-img>{IMAGE * count}{AROUND}"


def feature_side(config: Mapping[str, Any]) -> int:
    """Pixels a side that become one feature."""
    patch = config["vision_config"].get("patch_size", 32)
    return int(patch * config.get("scale_factor", 2))
