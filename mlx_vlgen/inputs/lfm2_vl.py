"""LFM2-VL's processor: an image of any size as patches; a large one as tiles and a smaller copy of the whole."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from .images import ImageSettings, Size, grow, pixel_bounds, read_colors, shrink
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .tiles import best_grid, cut_tiles


@dataclass(frozen=True)
class Lfm2VLImageSettings(ImageSettings):
    """min_pixels, max_pixels: bounds of the area of a whole image; one of more than `tolerance` times the upper one is
    cut into min_tiles to max_tiles squares of `tile` pixels a side; a max_tiles less than min_tiles: never. thumbnail:
    whether a copy of the whole goes with the tiles. patch: its side in pixels; merge: patches a side that become one
    token. delimited: whether tokens say where an image, tile or copy begins."""

    min_pixels: int
    max_pixels: int
    tolerance: float
    tile: int
    min_tiles: int
    max_tiles: int
    thumbnail: bool
    patch: int
    merge: int
    delimited: bool

    @classmethod
    def read(cls, image: Mapping[str, Any], processor: Mapping[str, Any]) -> Self:
        """image, processor: settings of both; defaults are transformers'."""
        patch, merge = image.get("encoder_patch_size", 16), image.get("downsample_factor", 2)
        min_tiles, max_tiles = image.get("min_tiles", 2), image.get("max_tiles", 10)
        splits = image.get("do_image_splitting", True) and not min_tiles == max_tiles == 1
        return cls(
            min_pixels=image.get("min_image_tokens", 64) * (patch * merge) ** 2,
            max_pixels=image.get("max_image_tokens", 256) * (patch * merge) ** 2,
            tolerance=image.get("max_pixels_tolerance", 2.0),
            tile=image.get("tile_size", 512),
            min_tiles=min_tiles,
            max_tiles=max_tiles if splits else 0,
            thumbnail=image.get("use_thumbnail", True),
            patch=patch,
            merge=merge,
            delimited=processor.get("use_image_special_tokens", True),
            **read_colors(image, resample=Image.Resampling.BILINEAR),
        )

    @property
    def token(self) -> int:
        """Side of the square that becomes one token, in pixels."""
        return self.patch * self.merge

    def bounded(self, media: MediaInputs) -> Self:
        """The settings with the request's bounds: of the whole image's area, and `max_pixels` of all tiles' too."""
        min_pixels, max_pixels = pixel_bounds(media, self.min_pixels, self.max_pixels)
        fitting = self.max_tiles if media.max_pixels is None else media.max_pixels // self.tile**2
        max_tiles = min(self.max_tiles, fitting)
        return replace(self, min_pixels=min_pixels, max_pixels=max_pixels, max_tiles=max_tiles)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles of an image, (0, 0) for one that is not cut."""
        area = math.prod(max(self.patch, round(side / self.token) * self.token) for side in (height, width))
        if self.max_tiles < self.min_tiles or area <= self.max_pixels * self.tolerance:
            return 0, 0
        grid = best_grid(height, width, self.tile, self.min_tiles, self.max_tiles)
        return grid if math.prod(grid) > 1 else (0, 0)

    def whole_size(self, height: int, width: int) -> Size:
        """The (height, width) that a whole image is resized to: whole tokens, area within bounds, aspect kept nearly.

        Where no size is within both bounds, the upper one holds. transformers then breaks it, which with published
        bounds happens only to images more than a thousand times as long as wide.
        """
        token = self.token
        size = max(token, round(height / token) * token), max(token, round(width / token) * token)
        if math.prod(size) > self.max_pixels:
            return shrink(height, width, math.sqrt(height * width / self.max_pixels), token)
        if math.prod(size) < self.min_pixels:
            larger = grow(height, width, math.sqrt(self.min_pixels / (height * width)), token)
            return larger if math.prod(larger) <= self.max_pixels else size
        return size

    def patches(self, levels: np.ndarray) -> np.ndarray:
        """levels: uint8 (H, W, 3) -> (N, patch * patch * 3), in reading order."""
        patches = cut_tiles(levels, self.patch)
        return patches.reshape(len(patches), -1)


@dataclass(eq=False, repr=False)
class Lfm2VLProcessor(Processor):
    """Source: transformers' Lfm2VlProcessor and Lfm2VlImageProcessor."""

    image_settings: Lfm2VLImageSettings

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<image>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"image_settings": Lfm2VLImageSettings.read(settings.image, settings.processor)}

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        """pixels: patches of all tiles, then of the whole; grid: how many tiles, patches a side of each, and rows and
        columns of patches of the whole, 0 where only tiles are given."""
        settings = self.image_settings.bounded(media)
        image, original = settings.load(source, media)
        rows, columns = settings.grid(image.height, image.width)
        parts: list[np.ndarray] = []
        if rows:
            enlarged = settings.resize(image, (rows * settings.tile, columns * settings.tile))
            parts += list(cut_tiles(np.asarray(enlarged), settings.tile))
        size = settings.whole_size(image.height, image.width) if not rows or settings.thumbnail else (0, 0)
        if size[0]:
            parts.append(np.asarray(settings.resize(image, size)))
        pixels = np.concatenate([settings.patches(part) for part in parts])
        grid = rows * columns, settings.tile // settings.patch, size[0] // settings.patch, size[1] // settings.patch
        counts = (math.ceil(grid[1] / settings.merge) ** 2,) * grid[0]
        marks = [f"<|img_row_{row}_col_{column}|>" for row in range(1, rows + 1) for column in range(1, columns + 1)]
        if size[0]:
            counts += (size[0] // settings.token * (size[1] // settings.token),)
            marks += ["<|img_thumbnail|>"] if rows else [""]
        token, delimited = self.placeholders[kind], settings.delimited
        pieces = [mark * delimited + token * count for mark, count in zip(marks, counts, strict=True)]
        begin, end = ("<|image_start|>", "<|image_end|>") if delimited else ("", "")
        text = begin + "".join(pieces) + end
        return Expansion(text, counts, pixels, grid, original, normalization=settings.normalization)
