"""LFM2-VL's processor: a picture of any size as patches; a large one as tiles and a smaller copy of the whole."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .images import grow, normalize, pixel_bounds, resize, shrink
from .plain import open_picture
from .processor import Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import MediaInputs


@dataclass(frozen=True)
class TileSettings:
    """min_pixels, max_pixels: bounds of the area of a whole picture; one of more than `tolerance` times the upper one
    is cut into min_tiles to max_tiles squares of `tile` pixels a side; a max_tiles less than min_tiles: never.
    thumbnail: whether a copy of the whole goes with the tiles. patch: its side in pixels; merge: patches a side that
    become one token. marked: whether tokens say where a picture, tile or copy begins."""

    min_pixels: int
    max_pixels: int
    tolerance: float
    tile: int
    min_tiles: int
    max_tiles: int
    thumbnail: bool
    patch: int
    merge: int
    marked: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Image.Resampling

    @classmethod
    def read(cls, image: Mapping[str, Any], own: Mapping[str, Any]) -> "TileSettings":
        """image, own: preprocessor_config.json, and what is said beside it; defaults are transformers'."""
        patch, merge = image.get("encoder_patch_size", 16), image.get("downsample_factor", 2)
        least, most = image.get("min_tiles", 2), image.get("max_tiles", 10)
        splits = image.get("do_image_splitting", True) and not least == most == 1
        return cls(
            min_pixels=image.get("min_image_tokens", 64) * (patch * merge) ** 2,
            max_pixels=image.get("max_image_tokens", 256) * (patch * merge) ** 2,
            tolerance=image.get("max_pixels_tolerance", 2.0),
            tile=image.get("tile_size", 512),
            min_tiles=least,
            max_tiles=most if splits else 0,
            thumbnail=image.get("use_thumbnail", True),
            patch=patch,
            merge=merge,
            marked=own.get("use_image_special_tokens", True),
            mean=tuple(image.get("image_mean") or (0.5,) * 3),
            std=tuple(image.get("image_std") or (0.5,) * 3),
            resample=Image.Resampling(image.get("resample", Image.Resampling.BILINEAR)),
        )

    @property
    def token(self) -> int:
        """Side of the square that becomes one token, in pixels."""
        return self.patch * self.merge


class Lfm2VLProcessor(Processor):
    """Source: transformers' Lfm2VlProcessor and Lfm2VlImageProcessor."""

    placeholders: Mapping[Kind, str] = {"image": "<image>"}

    def __init__(self, tokenizer: Any, chat_template: str | None, pictures: TileSettings):
        super().__init__(tokenizer, chat_template)
        self.pictures = pictures

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "Lfm2VLProcessor":
        tokenizer, settings = load_tokenizer(folder), read_settings(folder)
        return cls(tokenizer, load_template(folder, tokenizer), TileSettings.read(settings.image, settings.own))

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        """pixels: patches of all tiles, then of the whole; grid: how many tiles, patches a side of each, and rows and
        columns of patches of the whole, 0 where only tiles are given."""
        settings = bounded(self.pictures, media)
        image, original = open_picture(source, media, settings.resample)
        rows, columns = tiling(image.height, image.width, settings)
        parts = tiles(image, rows, columns, settings) if rows else []
        size = whole_size(image.height, image.width, settings) if not rows or settings.thumbnail else (0, 0)
        if size[0]:
            parts.append(np.asarray(resize(image, size, settings.resample)))
        pixels = np.concatenate([patches(normalize(part, settings.mean, settings.std), settings) for part in parts])
        grid = rows * columns, settings.tile // settings.patch, size[0] // settings.patch, size[1] // settings.patch
        counts = (math.ceil(grid[1] / settings.merge) ** 2,) * grid[0]
        marks = [f"<|img_row_{row}_col_{column}|>" for row in range(1, rows + 1) for column in range(1, columns + 1)]
        if size[0]:
            counts += (size[0] // settings.token * (size[1] // settings.token),)
            marks += ["<|img_thumbnail|>"] if rows else [""]
        pieces = [mark * settings.marked + self.placeholders[kind] * n for mark, n in zip(marks, counts, strict=True)]
        begin, end = ("<|image_start|>", "<|image_end|>") if settings.marked else ("", "")
        return Expansion(begin + "".join(pieces) + end, counts, pixels, grid, original)


def bounded(settings: TileSettings, media: MediaInputs) -> TileSettings:
    """The settings with the request's own bounds: of the whole picture's area, and `max_pixels` of all tiles' too."""
    least, most = pixel_bounds(media, settings.min_pixels, settings.max_pixels)
    fit = settings.max_tiles if media.max_pixels is None else media.max_pixels // settings.tile**2
    return replace(settings, min_pixels=least, max_pixels=most, max_tiles=min(settings.max_tiles, fit))


def tiling(height: int, width: int, settings: TileSettings) -> tuple[int, int]:
    """Rows and columns of tiles of a picture, (0, 0) for one that is not cut: those whose aspect is the nearest to the
    picture's, and of equally near ones the largest that the picture has at least half the pixels of."""
    area = math.prod(max(settings.patch, round(side / settings.token) * settings.token) for side in (height, width))
    if settings.max_tiles < settings.min_tiles or area <= settings.max_pixels * settings.tolerance:
        return 0, 0
    most = range(1, settings.max_tiles + 1)
    shapes = [(rows, columns) for columns in most for rows in most]
    shapes = [own for own in shapes if settings.min_tiles <= math.prod(own) <= settings.max_tiles]
    best, nearest = (1, 1), math.inf
    for rows, columns in sorted(shapes, key=math.prod):
        away = abs(width / height - columns / rows)
        large_enough = height * width > 0.5 * settings.tile**2 * rows * columns
        if away < nearest or (away == nearest and large_enough):
            best, nearest = (rows, columns), away
    return best if math.prod(best) > 1 else (0, 0)


def whole_size(height: int, width: int, settings: TileSettings) -> tuple[int, int]:
    """The (height, width) that a whole picture is resized to: whole tokens, area within bounds, aspect kept nearly.

    Where no size is within both bounds, the upper one holds. transformers then breaks it, which with published bounds
    happens to pictures more than a thousand times as long as wide only.
    """
    token = settings.token
    size = max(token, round(height / token) * token), max(token, round(width / token) * token)
    if math.prod(size) > settings.max_pixels:
        return shrink(height, width, math.sqrt(height * width / settings.max_pixels), token)
    if math.prod(size) < settings.min_pixels:
        larger = grow(height, width, math.sqrt(settings.min_pixels / (height * width)), token)
        return larger if math.prod(larger) <= settings.max_pixels else size
    return size


def tiles(image: Image.Image, rows: int, columns: int, settings: TileSettings) -> list[np.ndarray]:
    """The picture, resized to rows x columns tiles, cut into them in reading order; each (tile, tile, 3)."""
    side = settings.tile
    whole = np.asarray(resize(image, (rows * side, columns * side), settings.resample))
    return list(whole.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3))


def patches(pixels: np.ndarray, settings: TileSettings) -> np.ndarray:
    """(H, W, 3) -> (N, patch * patch * 3), in reading order."""
    height, width, channels = pixels.shape
    size = settings.patch
    cut = pixels.reshape(height // size, size, width // size, size, channels)
    return cut.swapaxes(1, 2).reshape(-1, size * size * channels)
