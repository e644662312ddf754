"""InternVL's processor: a picture as rows and columns of square tiles and once more as a whole, a video as frames."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import LoadError
from .images import CLIP_MEAN, CLIP_STD, resize
from .plain import PlainSettings, open_picture, plain_pixels, refuse_pixel_bounds
from .processor import FEWER_FRAMES, Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import MediaInputs
from .video import load_video

FEATURE = "<IMG_CONTEXT>"

MAX_FRAMES = 32
"""Frames of a file, where nothing else is said: as many as the model's authors take."""

# The first releases' templates join contents that are strings. This before one of them writes pictures and videos into
# such strings, each on a line of its own.
IN_WORDS = (
    "{%- set ns = namespace(turns=[]) %}{%- for turn in messages %}{%- if turn['content'] is string or "
    "turn['content'] is none or turn['content'] is undefined %}{%- set ns.turns = ns.turns + [turn] %}{%- else %}"
    "{%- set ns.words = '' %}{%- for part in turn['content'] %}{%- if part['type'] == 'image' %}"
    "{%- set ns.words = ns.words + '<IMG_CONTEXT>\\n' %}{%- elif part['type'] == 'video' %}"
    "{%- set ns.words = ns.words + '<video>\\n' %}{%- else %}{%- set ns.words = ns.words + part['text'] %}"
    "{%- endif %}{%- endfor %}{%- set ns.turns = ns.turns + [dict(turn, content=ns.words)] %}{%- endif %}"
    "{%- endfor %}{%- set messages = ns.turns %}{{- '' }}"
)


@dataclass(frozen=True)
class TileSettings:
    """square: how one tile is made; least, most: bounds of how many a picture is cut into; whole: whether it is seen
    as a whole besides, where it is cut at all."""

    square: PlainSettings
    least: int
    most: int
    whole: bool

    @classmethod
    def read(cls, own: Mapping[str, Any], config: Mapping[str, Any]) -> "TileSettings":
        """From a preprocessor_config.json, or config.json, where the first releases said it. transformers cuts
        pictures whatever its file's `crop_to_patches` says, and so does this."""
        cuts = config.get("dynamic_image_size", True)
        return cls(
            square=square_settings(own, config),
            least=own.get("min_patches") or config.get("min_dynamic_patch", 1) if cuts else 1,
            most=own.get("max_patches") or config.get("max_dynamic_patch", 12) if cuts else 1,
            whole=config.get("use_thumbnail", True),
        )


def square_settings(own: Mapping[str, Any], config: Mapping[str, Any]) -> PlainSettings:
    """How a square that the tower takes is made."""
    sides = pair(config["vision_config"].get("image_size", 448))
    settings = PlainSettings.read({**own, "do_center_crop": False}, sides[0], CLIP_MEAN, CLIP_STD)
    if settings.size != sides or sides[0] != sides[1]:
        raise LoadError(
            f"This checkpoint's processor makes tiles of {settings.size} pixels, and its tower takes {sides}; expected "
            "the same square."
        )
    return settings


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from either, as configurations have it."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def tiling(height: int, width: int, settings: TileSettings) -> tuple[int, int]:
    """Rows and columns of tiles: of all whose number is within bounds, those whose shape is nearest the picture's. Of
    equally near ones the largest that takes less than twice the picture's pixels. Source: transformers'
    GotOcr2ImageProcessor."""
    most = settings.most
    grids = [
        (rows, columns)
        for columns in range(1, most + 1)
        for rows in range(1, most // columns + 1)
        if rows * columns >= settings.least
    ]
    best, nearest = (1, 1), float("inf")
    tile = settings.square.size
    assert tile is not None
    for rows, columns in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        far = abs(width / height - columns / rows)
        room = 0.5 * tile[0] * tile[1] * rows * columns
        if far < nearest or (far == nearest and height * width > room):
            best, nearest = (rows, columns), far
    return best


def cut(image: Image.Image, settings: TileSettings) -> np.ndarray:
    """A picture -> its tiles in reading order and then the whole, (T, 3, H, W) float32; the whole alone where one tile
    holds it."""
    square = settings.square
    assert square.size is not None
    (height, width), (rows, columns) = square.size, tiling(image.height, image.width, settings)
    large = resize(image, (rows * height, columns * width), square.resample)
    tiles = [
        large.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        for row in range(rows)
        for column in range(columns)
    ]
    if settings.whole and len(tiles) > 1:
        tiles.append(image)
    return np.stack([plain_pixels(tile, square) for tile in tiles])


class InternVLProcessor(Processor):
    """Source: transformers' InternVLProcessor. count: features of a tile; frames: how many of a file are kept."""

    placeholders: Mapping[Kind, str] = {"image": FEATURE, "video": "<video>"}
    feature_tokens: Mapping[Kind, str] = {"video": FEATURE}
    prompt_tokens = r"</?(ref|box|quad)>|<\|(object_ref|box|quad)_(start|end)\|>"

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | None,
        pictures: TileSettings,
        videos: PlainSettings,
        count: int,
        frames: int = MAX_FRAMES,
    ):
        if chat_template is not None and FEATURE not in chat_template:
            chat_template = IN_WORDS + chat_template
        super().__init__(tokenizer, chat_template)
        self.pictures, self.videos, self.count, self.frames = pictures, videos, count, frames

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "InternVLProcessor":
        tokenizer, settings, vision = load_tokenizer(folder), read_settings(folder), config["vision_config"]
        side = pair(vision.get("image_size", 448))[0] // pair(vision.get("patch_size", 14))[0]
        return cls(
            tokenizer,
            load_template(folder, tokenizer),
            TileSettings.read(settings.image, config),
            square_settings(settings.video, config),
            int(side * config.get("downsample_ratio", 0.5)) ** 2,
            settings.video.get("num_frames") or MAX_FRAMES,
        )

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        if kind == "video":
            return self._video(source, media)
        image, original = open_picture(source, media, self.pictures.square.resample)
        tiles = math.prod(tiling(image.height, image.width, self.pictures))
        total = self.count * (tiles + (self.pictures.whole and tiles > 1))
        self.check_count(kind, original, total, "a smaller `max_patches` in preprocessor_config.json makes it less")
        return Expansion(f"<img>{FEATURE * total}</img>", (total,), cut(image, self.pictures), (), original)

    def _video(self, source: Any, media: MediaInputs) -> Expansion:
        fps, most = media.video_fps, media.max_frames

        def kept(total: int, rate: float) -> np.ndarray:
            wanted = min(total, self.frames) if fps is None else int(round(total / rate * fps, 6))
            return middles(total, max(1, min(wanted, total, most or total)))

        video = load_video(source, fps=fps, num_frames=media.num_frames, max_frames=most, sampler=kept, evenly=middles)
        original = video.frames.shape[1:3]
        self.check_count("video", original, self.count * len(video.frames), FEWER_FRAMES)
        images = (Image.fromarray(frame) for frame in video.frames)
        if media.resize_shape:
            images = (resize(image, media.resize_shape, self.videos.resample) for image in images)
        pixels = np.stack([plain_pixels(image, self.videos) for image in images])
        frames = (f"Frame{number}: <img>{FEATURE * self.count}</img>" for number in range(1, len(pixels) + 1))
        return Expansion("\n".join(frames), (self.count,) * len(pixels), pixels, (), original)


def middles(total: int, count: int) -> np.ndarray:
    """The frames in the middles of `count` equal parts of `total`. Source: transformers'
    InternVLVideoProcessor.sample_frames."""
    return ((np.arange(count) + 0.5) * total / count).astype(np.int64)
