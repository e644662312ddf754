"""InternVL's processor: an image as rows and columns of square tiles and once more as a whole, a video as frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import LoadError
from .fixed_size import FixedSizeSettings
from .images import CLIP_MEAN, CLIP_STD, Size, refuse_pixel_bounds
from .processor import FEWER_FRAMES, Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .tiles import best_grid, cut_tiles
from .video import load_clip

FEATURE = "<IMG_CONTEXT>"

MAX_FRAMES = 32
"""Frames of a file, where no number is given: as many as the model's authors take."""

# The first releases' templates join contents that are strings. This text before one of them writes images and
# videos into such strings, each on its line.
MEDIA_TO_STRINGS = (
    "{%- set ns = namespace(turns=[]) %}{%- for turn in messages %}{%- if turn['content'] is string or "
    "turn['content'] is none or turn['content'] is undefined %}{%- set ns.turns = ns.turns + [turn] %}{%- else %}"
    "{%- set ns.text = '' %}{%- for part in turn['content'] %}{%- if part['type'] == 'image' %}"
    "{%- set ns.text = ns.text + '<IMG_CONTEXT>\\n' %}{%- elif part['type'] == 'video' %}"
    "{%- set ns.text = ns.text + '<video>\\n' %}{%- else %}{%- set ns.text = ns.text + part['text'] %}"
    "{%- endif %}{%- endfor %}{%- set ns.turns = ns.turns + [dict(turn, content=ns.text)] %}{%- endif %}"
    "{%- endfor %}{%- set messages = ns.turns %}{{- '' }}"
)


@dataclass(frozen=True)
class InternVLImageSettings:
    """square: how a tile is made; tile: its side in pixels; min_tiles, max_tiles: of an image; thumbnail: whether an
    image that is cut is seen as a whole besides."""

    square: FixedSizeSettings
    tile: int
    min_tiles: int
    max_tiles: int
    thumbnail: bool

    @classmethod
    def read(cls, settings: Mapping[str, Any], config: Mapping[str, Any]) -> Self:
        """From a preprocessor_config.json, or config.json, where the first releases said it. transformers cuts images
        whatever its file's `crop_to_patches` says, and so does this."""
        cuts = config.get("dynamic_image_size", True)
        return cls(
            square=read_square(settings, config),
            tile=pair(config["vision_config"].get("image_size", 448))[0],
            min_tiles=settings.get("min_patches") or config.get("min_dynamic_patch", 1) if cuts else 1,
            max_tiles=settings.get("max_patches") or config.get("max_dynamic_patch", 12) if cuts else 1,
            thumbnail=config.get("use_thumbnail", True),
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles of an image."""
        return best_grid(height, width, self.tile, self.min_tiles, self.max_tiles)

    def cut(self, image: Image.Image, rows: int, columns: int) -> np.ndarray:
        """An image -> its tiles in reading order and then the whole, (T, H, W, 3) uint8; the whole alone where one
        tile holds it."""
        tile = self.tile
        tiles = cut_tiles(np.asarray(self.square.resize(image, (rows * tile, columns * tile))), tile)
        if self.thumbnail and len(tiles) > 1:
            tiles = np.concatenate([tiles, np.asarray(self.square.resize(image, (tile, tile)))[None]])
        return tiles


def read_square(settings: Mapping[str, Any], config: Mapping[str, Any]) -> FixedSizeSettings:
    """How a square that the tower takes is made."""
    sides = pair(config["vision_config"].get("image_size", 448))
    square = FixedSizeSettings.read({**settings, "do_center_crop": False}, sides[0], CLIP_MEAN, CLIP_STD)
    if square.size != sides or sides[0] != sides[1]:
        raise LoadError(
            f"This checkpoint's processor makes tiles of {square.size} pixels, and its tower takes {sides}; expected "
            "the same square."
        )
    return square


def pair(size: int | Sequence[int]) -> Size:
    """(height, width) from either, as configurations have it."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


@dataclass(eq=False, repr=False)
class InternVLProcessor(Processor):
    """Source: transformers' InternVLProcessor. tile_tokens: tokens of a tile; num_frames: how many of a file are
    kept."""

    image_settings: InternVLImageSettings
    video_settings: FixedSizeSettings
    tile_tokens: int
    num_frames: int = MAX_FRAMES

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": FEATURE, "video": "<video>"}
    feature_tokens: ClassVar[Mapping[Kind, str]] = {"video": FEATURE}
    prompt_tokens = r"</?(ref|box|quad)>|<\|(object_ref|box|quad)_(start|end)\|>"

    def __post_init__(self) -> None:
        if self.chat_template is not None and FEATURE not in self.chat_template:
            self.chat_template = MEDIA_TO_STRINGS + self.chat_template

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        vision = config["vision_config"]
        side = pair(vision.get("image_size", 448))[0] // pair(vision.get("patch_size", 14))[0]
        return {
            "image_settings": InternVLImageSettings.read(settings.image, config),
            "video_settings": read_square(settings.video, config),
            "tile_tokens": int(side * config.get("downsample_ratio", 0.5)) ** 2,
            "num_frames": settings.video.get("num_frames") or MAX_FRAMES,
        }

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        if kind == "video":
            return self._expand_video(source, media)
        image, original = self.image_settings.square.load(source, media)
        rows, columns = self.image_settings.grid(image.height, image.width)
        tiles = rows * columns
        count = self.tile_tokens * (tiles + (self.image_settings.thumbnail and tiles > 1))
        self.check_count(kind, original, count, "a smaller `max_patches` in preprocessor_config.json makes it less")
        pixels = self.image_settings.cut(image, rows, columns)
        text, normalization = f"<img>{FEATURE * count}</img>", self.image_settings.square.normalization
        return Expansion(text, (count,), pixels, (), original, normalization=normalization)

    def _expand_video(self, source: Any, media: MediaInputs) -> Expansion:
        def sampler(total: int, rate: float) -> np.ndarray:
            fps = media.video_fps
            count = min(total, self.num_frames) if fps is None else int(round(total / rate * fps, 6))
            return middles(total, max(1, min(count, total, media.max_frames or total)))

        video = load_clip(source, media, sampler=sampler, evenly=middles)
        original = video.frames.shape[1:3]
        self.check_count("video", original, self.tile_tokens * len(video.frames), FEWER_FRAMES)
        pixels = self.video_settings.video_pixels(video.frames, media)
        frames = (f"Frame{number}: <img>{FEATURE * self.tile_tokens}</img>" for number in range(1, len(pixels) + 1))
        counts, normalization = (self.tile_tokens,) * len(pixels), self.video_settings.normalization
        return Expansion("\n".join(frames), counts, pixels, (), original, normalization=normalization)


def middles(total: int, count: int) -> np.ndarray:
    """The frames in the middles of `count` equal parts of `total`. Source: transformers'
    InternVLVideoProcessor.sample_frames."""
    return ((np.arange(count) + 0.5) * total / count).astype(np.int64)
