"""MiniCPM-V's processor: a picture whole and, where it is large, in slices of the same area; a video frame by frame."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import LoadError
from .frames import Sampler
from .images import ImageSettings, Size, read_colors, refuse_pixel_bounds
from .processor import FEWER_FRAMES, Expansion, Kind, Processor, ProcessorSettings
from .prompt import Media, MediaInputs, Span
from .tiles import cut_tiles
from .video import load_clip

IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"


@dataclass(frozen=True)
class MiniCPMVImageSettings(ImageSettings):
    """side: of a square with the area of a whole picture or slice, in pixels; max_slices: of one picture; patch: its
    side; merge: patches a side that become one token; numbered: whether a prompt says which picture it is."""

    side: int
    max_slices: int
    patch: int
    merge: int
    numbered: bool

    @classmethod
    def read(cls, settings: Mapping[str, Any], merge: int) -> Self:
        """Defaults are transformers'. merge: what the model makes of patches."""
        if downsampled(settings) != merge:
            raise LoadError("downsample_mode of this checkpoint's processor and of its config.json are not the same.")
        return cls(
            side=settings.get("scale_resolution", 448),
            max_slices=settings.get("max_slice_nums", 9) if settings.get("slice_mode", True) else 1,
            patch=settings.get("patch_size", 14),
            merge=merge,
            numbered=settings.get("use_image_id", True),
            **read_colors(settings),
        )

    def fit(self, height: float, width: float) -> Size:
        """The (height, width) nearest to an aspect, of about the area of `side` by `side`, whole tokens."""
        aspect, token = width / height, self.patch * self.merge
        rows = int(self.side / math.sqrt(aspect))
        return whole(rows, token), whole(int(rows * aspect), token)

    def slices(self, height: int, width: int) -> Size:
        """Rows and columns of slices: of grids with nearly as many slices as the picture has areas the one with the
        aspect nearest to it. (0, 0) for a picture that is not cut."""
        count = min(math.ceil(height * width / self.side**2), self.max_slices)
        if count <= 1:
            return 0, 0
        best, nearest = (1, 1), math.inf
        for number in (count - 1, count, count + 1):
            if number == 1 or number > self.max_slices:
                continue
            for rows in (rows for rows in range(1, number + 1) if number % rows == 0):
                columns = number // rows
                distance = abs(math.log(width / height) - math.log(columns / rows))
                if distance < nearest or (distance == nearest and rows > best[0]):
                    best, nearest = (rows, columns), distance
        return best

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        """Rows and columns of patches of the whole, of slices, and of patches of a slice."""
        rows, columns = self.slices(height, width)
        part = self.fit(whole(height, rows) / rows, whole(width, columns) / columns) if rows else (0, 0)
        sizes = self.fit(height, width), (rows * self.patch, columns * self.patch), part
        return tuple(side // self.patch for size in sizes for side in size)

    def patches(self, image: Image.Image, grid: tuple[int, ...]) -> np.ndarray:
        """(N, patch * patch * 3) uint8, in reading order: of the whole, then of each slice."""
        height, width, rows, columns, part_rows, part_columns = grid
        parts = [self._cut(self.resize(image, (height * self.patch, width * self.patch)))]
        if rows:
            enlarged = self._cut(
                self.resize(image, (rows * part_rows * self.patch, columns * part_columns * self.patch))
            )
            slices = enlarged.reshape(rows, part_rows, columns, part_columns, -1).swapaxes(1, 2)
            parts.append(slices.reshape(len(enlarged), -1))
        return np.concatenate(parts)

    def _cut(self, image: Image.Image) -> np.ndarray:
        patches = cut_tiles(np.asarray(image), self.patch)
        return patches.reshape(len(patches), -1)

    def counts(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens of the whole and of each slice."""
        height, width, rows, columns, part_rows, part_columns = grid
        return height * width // self.merge**2, *[part_rows * part_columns // self.merge**2] * (rows * columns)

    def text(self, grid: tuple[int, ...], token: str) -> str:
        """Of a picture or frame. `token` stands for a feature."""
        first, *others = (token * count for count in self.counts(grid))
        columns = max(grid[3], 1)
        slices = [f"<slice>{part}</slice>" for part in others]
        rows = ("".join(slices[start : start + columns]) for start in range(0, len(slices), columns))
        return f"<image>{first}</image>" + "\n".join(rows)


def whole(length: float, unit: int) -> int:
    """The multiple of `unit` that is nearest to `length`, one at least."""
    return max(round(length / unit) * unit, unit)


def downsampled(config: Mapping[str, Any]) -> int:
    """How many patches a side become one token, by a downsample_mode of 4 or 16 patches."""
    return 2 if config.get("downsample_mode", "16x") == "4x" else 4


@dataclass(eq=False, repr=False)
class MiniCPMV4_6Processor(Processor):
    """Source: transformers' MiniCPMV4_6Processor, MiniCPMV4_6ImageProcessor and MiniCPMV4_6VideoProcessor.

    `Media.grid` is the number of frames, 1 of a picture, and `MiniCPMVImageSettings.grid`.
    """

    image_settings: MiniCPMVImageSettings
    video_settings: MiniCPMVImageSettings
    max_frames: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": IMAGE, "video": VIDEO}
    numbered_kinds: ClassVar[tuple[Kind, ...]] = ("image", "video")

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        if (stack := settings.video.get("stack_frames", 1)) > 1:
            raise LoadError(f"stack_frames is {stack}; expected 1: frames are not stacked here.")
        merge = downsampled(config)
        return {
            "image_settings": MiniCPMVImageSettings.read(settings.image, merge),
            "video_settings": MiniCPMVImageSettings.read(settings.video, merge),
            "max_frames": settings.video.get("max_num_frames", 128),
        }

    def numbered(self, kind: Kind, number: int, text: str) -> str:
        if kind not in self.numbered_kinds or not self.image_settings.numbered:
            return text
        return f"<image_id>{number}</image_id>{text}"

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        images: Iterable[Image.Image]
        if kind == "image":
            settings, remedy = self.image_settings, "resize_shape (--resize-shape) makes it smaller"
            image, original = settings.load(source, media)
            images, size, frames = [image], (image.height, image.width), 1
        else:
            settings, remedy = self.video_settings, FEWER_FRAMES
            max_frames = self.max_frames if media.max_frames is None else media.max_frames
            sampler = second_by_second(max_frames) if media.video_fps is None else None
            video = load_clip(source, media, sampler=sampler)
            frames, original = len(video.frames), video.frames.shape[1:3]
            images, size = settings.frame_images(video.frames, media), media.resize_shape or original
        grid = settings.grid(*size)
        counts = settings.counts(grid) * frames
        self.check_count(kind, original, sum(counts), remedy)
        pixels = np.concatenate([settings.patches(image, grid) for image in images])
        text = settings.text(grid, self.placeholders[kind]) * frames
        return Expansion(text, counts, pixels, (frames, *grid), original, normalization=settings.normalization)


@dataclass(eq=False, repr=False)
class MiniCPMV4_7Processor(MiniCPMV4_6Processor):
    """mark_ids: the tokens that open and close pictures and slices, and end a row of slices.

    Source: transformers' MiniCPMV4_7Processor, and `_group_visual_frames` of its MiniCPMV4_7Model.
    """

    mark_ids: frozenset[int]

    numbered_kinds: ClassVar[tuple[Kind, ...]] = ("image",)

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        names = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
        if missing := [name for name in names if config.get(name) is None]:
            raise LoadError(f"config.json has no {', '.join(missing)}; pictures are laid out by these tokens.")
        return super().read_fields(settings, config) | {"mark_ids": frozenset(config[name] for name in names)}

    def unbroken(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[Span, ...]:
        """Pictures with their marks, and the token before, past which the first mark reaches back; those that nothing
        else parts are one span."""
        spans: list[Span] = []
        for first, last in ((medium.spans[0][0], medium.spans[-1][1]) for medium in media):
            while last < len(tokens) and int(tokens[last]) in self.mark_ids:
                last += 1
            joined = bool(spans) and spans[-1][1] >= first - 1  # the marks between them are the first one's
            spans[-1:] = [(spans[-1][0], last)] if joined else [*spans[-1:], (max(first - 2, 0), last)]
        return tuple(spans)


def second_by_second(max_frames: int) -> Sampler:
    """The first frame of each second; of a longer video `max_frames` of those that are a tenth of a second apart.
    Source: transformers' MiniCPMV4_6VideoProcessor.sample_frames."""

    def sample(total: int, rate: float) -> np.ndarray:
        seconds = total / rate
        if seconds <= max_frames:
            return np.array([int(second * rate) for second in range(math.ceil(seconds))], np.int64)
        tenths = [min(int(round(tenth * 0.1, 1) * rate), total - 1) for tenth in range(int(seconds / 0.1))]
        chosen = np.linspace(0, len(tenths) - 1, min(max_frames, len(tenths)), dtype=int)
        return np.array(tenths, np.int64)[chosen]

    return sample
