"""Molmo2's processor: an image as a whole and as overlapping tiles, a video as frames, patches pooled to tokens."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import LoadError
from .images import ImageSettings, Size, read_colors, refuse_pixel_bounds, resize_bilinear
from .literal import Segment
from .processor import FEWER_FRAMES, Expansion, Kind, Processor, ProcessorSettings
from .prompt import Media, MediaInputs, Span
from .video import load_clip

PATCH, COLUMN, START, END, LOW_START = "<im_patch>", "<im_col>", "<im_start>", "<im_end>", "<low_res_im_start>"
FRAME_START, FRAME_END = "<frame_start>", "<frame_end>"


@dataclass(frozen=True)
class Molmo2FrameSettings(ImageSettings):
    """As a video_preprocessor_config.json has it. side: of a frame in pixels; patch: of a patch; pool: rows and columns
    of patches that become one token."""

    side: int
    patch: int
    pool: tuple[int, int]

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        """With transformers' Molmo2VideoProcessor's numbers for what the file leaves out."""
        return cls(**cls.common(settings, pool=3))

    @staticmethod
    def common(settings: Mapping[str, Any], pool: int) -> dict[str, Any]:
        """The fields that an image's settings have, too. pool: where the file is silent."""
        size = settings.get("size") or {"height": 378, "width": 378}
        if size.get("height") is None or size.get("height") != size.get("width"):
            raise LoadError(f"This checkpoint's processor has pictures of size {size}; expected a square.")
        colors = read_colors(settings, resample=Image.Resampling.BILINEAR)
        if colors["resample"] != Image.Resampling.BILINEAR:
            raise LoadError(f"This checkpoint's processor resamples by {colors['resample']!r}; expected bilinear.")
        rows, columns = settings.get("pooling_size") or (pool, pool)
        return {"side": size["height"], "patch": settings.get("patch_size", 14), "pool": (rows, columns), **colors}

    def pooled(self, rows: int, columns: int) -> Size:
        """Rows and columns of tokens of so many patches."""
        return math.ceil(rows / self.pool[0]), math.ceil(columns / self.pool[1])


@dataclass(frozen=True)
class Molmo2ImageSettings(Molmo2FrameSettings):
    """As a preprocessor_config.json has it. max_tiles: of an image beside the whole; margins: how many patches of a
    tile at its left (and top) and right (and bottom) show what its neighbours show, too."""

    max_tiles: int
    margins: tuple[int, int]

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        """With transformers' Molmo2ImageProcessor's numbers for what the file leaves out."""
        before, after = settings.get("overlap_margins") or (4, 4)
        max_tiles = settings.get("max_crops", 8)
        made = cls(max_tiles=max_tiles, margins=(before, after), **cls.common(settings, pool=2))
        if made.window < 1:
            raise LoadError(f"This checkpoint's processor has overlap_margins {before, after}, which fill its tiles.")
        return made

    @property
    def window(self) -> int:
        """Patches a side of a tile that no neighbour shows."""
        return self.side // self.patch - sum(self.margins)

    def tiling(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles of an image: of all that enlarge it the ones that do so least, else those that
        shrink it least. Source: transformers' Molmo2ImageProcessor, `select_tiling`, in float32 as there."""
        sides = range(1, self.max_tiles + 1)
        grids = [(rows, columns) for rows in sides for columns in sides if rows * columns <= self.max_tiles]
        grids.sort(key=lambda grid: (grid[0] * grid[1], grid[0]))
        margin = sum(self.margins) * self.patch
        size = np.array([height - margin, width - margin], np.float32)
        with np.errstate(divide="ignore"):
            scales = ((np.array(grids) * self.window * self.patch).astype(np.float32) / size).min(axis=1)
        if (scales < 1).all():
            return grids[int(scales.argmax())]
        return grids[int(np.where(scales < 1, np.float32(10e9), scales).argmin())]

    def cut(self, levels: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """(H, W, 3) uint8 -> the whole and then rows x columns tiles, (T, side, side, 3)."""
        step, margin = self.window * self.patch, sum(self.margins) * self.patch
        canvas = resize_bilinear(levels, (rows * step + margin, columns * step + margin))
        tiles = [
            canvas[top : top + self.side, left : left + self.side]
            for top in range(0, rows * step, step)
            for left in range(0, columns * step, step)
        ]
        return np.stack([resize_bilinear(levels, (self.side, self.side)), *tiles])


@dataclass(eq=False, repr=False)
class Molmo2Processor(Processor):
    """Source: transformers' Molmo2Processor, Molmo2ImageProcessor and Molmo2VideoProcessor. There a prompt has pictures
    or one video; here it may have both, and several, which see each other as pictures do.

    num_frames, max_fps: bounds of what is kept of a file. columns, low_columns, frame_columns: whether each line of
    tokens of an image's tiles, of the whole, and of a frame ends with a token. low_start: whether the whole begins with
    its own mark; frame_marks: whether frames have theirs.
    """

    image_settings: Molmo2ImageSettings
    video_settings: Molmo2FrameSettings
    num_frames: int
    max_fps: float | None
    columns: bool
    low_columns: bool
    frame_columns: bool
    low_start: bool
    frame_marks: bool

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<|image|>", "video": "<|video|>"}
    feature_tokens: ClassVar[Mapping[Kind, str]] = {"image": PATCH, "video": PATCH}
    marks: ClassVar[Sequence[str]] = (COLUMN, START, END, LOW_START, FRAME_START, FRAME_END)

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        image, video, processor = settings.image, settings.video, settings.processor
        columns = processor.get("image_use_col_tokens", True)
        low_columns = processor.get("use_single_crop_col_tokens")
        return {
            "image_settings": Molmo2ImageSettings.read(image),
            "video_settings": Molmo2FrameSettings.read(video),
            "num_frames": video.get("num_frames") or 64,
            "max_fps": video.get("max_fps", 2),
            "columns": columns,
            "low_columns": columns if low_columns is None else low_columns,
            "frame_columns": processor.get("video_use_col_tokens", False),
            "low_start": processor.get("use_single_crop_start_token", True),
            "frame_marks": processor.get("use_frame_special_tokens", True),
        }

    def lay_out(self, segments: list[Segment], images: int) -> list[Segment]:
        """The first token, or where there is none the end token, before all."""
        first = self.tokenizer.bos_token or self.tokenizer.eos_token
        if segments and not segments[0].literal and segments[0].text.startswith(first):
            return segments
        return [Segment(first, tail_start=len(first)), *segments]

    def is_feature(self, token: str, tokens: np.ndarray) -> np.ndarray:
        """The marks belong to it, too: the model reads them and never writes them."""
        return np.isin(tokens, self.tokenizer.convert_tokens_to_ids([PATCH, *self.marks]))

    def two_way(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[Span, ...]:
        """From the first medium to the last: their tokens all see each other, not those of the text between."""
        spans = [span for medium in media for span in medium.spans]
        return ((min(spans)[0], max(spans)[1]),) if spans else ()

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        return self._expand_image(source, media) if kind == "image" else self._expand_video(source, media)

    def _expand_image(self, source: Any, media: MediaInputs) -> Expansion:
        """pixels: the whole and the tiles; grid: rows and columns of tiles, the margins, the pool's rows and
        columns."""
        settings = self.image_settings
        image, original = settings.load(source, media)
        tiling = settings.tiling(image.height, image.width)
        side, margin = settings.side // settings.patch, sum(settings.margins)
        high = settings.pooled(*(tiles * settings.window + margin for tiles in tiling))
        begin = LOW_START if self.low_start else START
        parts = [
            *lines(begin, settings.pooled(side, side), self.low_columns, END),
            *lines(START, high, self.columns, END),
        ]
        self.check_count(
            "image", original, len(parts), "a smaller `max_crops` in preprocessor_config.json makes it less"
        )
        pixels = settings.cut(np.asarray(image), *tiling)
        grid = (*tiling, *settings.margins, *settings.pool)
        return Expansion("".join(parts), (len(parts),), pixels, grid, original, normalization=settings.normalization)

    def _expand_video(self, source: Any, media: MediaInputs) -> Expansion:
        """pixels: the frames; grid: the pool's rows and columns."""
        settings = self.video_settings

        def sampler(total: int, rate: float) -> np.ndarray:
            return self.sample_frames(total, rate, media)

        video = load_clip(source, media, sampler=sampler, evenly=every)
        side, original = settings.side // settings.patch, video.frames.shape[1:3]
        begin, end = (FRAME_START, FRAME_END) if self.frame_marks else (START, END)
        frame = list(lines(begin, settings.pooled(side, side), self.frame_columns, end))
        self.check_count("video", original, len(frame) * len(video.frames), FEWER_FRAMES)
        pixels = np.stack(
            [
                resize_bilinear(np.asarray(image), (settings.side, settings.side))
                for image in settings.frame_images(video.frames, media)
            ]
        )
        text = " ".join(f"{seconds:.1f} {''.join(frame)}" for seconds in video.timestamps)
        counts, normalization = (len(frame),) * len(pixels), settings.normalization
        return Expansion(text, counts, pixels, settings.pool, original, normalization=normalization)

    def sample_frames(self, total: int, rate: float, media: MediaInputs) -> np.ndarray:
        """Indices of the frames to keep of `total`, shown at `rate` a second. Source: transformers'
        Molmo2VideoProcessor.sample_frames."""
        seconds = total / rate
        if media.video_fps is not None:
            count = int(seconds * media.video_fps)
        else:
            count = self.num_frames
            if self.max_fps is not None and rate > self.max_fps:
                count = min(count, int(seconds * self.max_fps))
        return every(total, max(1, min(count, total, media.max_frames or total)))


def every(total: int, count: int) -> np.ndarray:
    """`count` of `total` frames, from the first on, by equal steps."""
    return (np.arange(count) * (total / count)).astype(np.float32).astype(np.int64)


def lines(begin: str, size: Size, ended: bool, end: str) -> Iterator[str]:
    """The tokens of rows and columns of features. ended: whether each line ends with a token."""
    rows, columns = size
    yield begin
    for _ in range(rows):
        yield from [PATCH] * columns
        if ended:
            yield COLUMN
    yield end
