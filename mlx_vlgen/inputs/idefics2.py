"""The processor of Idefics2: an image of nearly its size, and before it perhaps its four quarters."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import LoadError, MediaError
from .chat_template import Message, string_to_parts
from .images import ImageSettings, Size, read_colors, refuse_pixel_bounds
from .literal import Segment, rewritten
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs

IMAGE, AROUND = "<image>", "<fake_token_around_image>"


@dataclass(frozen=True)
class Idefics2ImageSettings(ImageSettings):
    """As a preprocessor_config.json has it. shortest, longest: bounds of each side in pixels, the lower one being the
    stronger; size: instead, the (height, width) of every image; both None: images keep their size. split: whether the
    quarters go before the whole. patch: its side in pixels; what is left beside whole patches is cut off."""

    shortest: int | None
    longest: int | None
    size: Size | None
    split: bool
    patch: int

    @classmethod
    def read(cls, settings: Mapping[str, Any], patch: int) -> Self:
        """With transformers' Idefics2ImageProcessor's numbers for what the file leaves out."""
        size = settings.get("size") or {"shortest_edge": 378, "longest_edge": 980}
        edges = size.get("shortest_edge"), size.get("longest_edge")
        fixed = (size["height"], size["width"]) if {"height", "width"} <= size.keys() else None
        if None in edges and fixed is None:
            raise LoadError(
                f"This checkpoint's processor has pictures of size {size}; expected a shortest_edge and a "
                "longest_edge, or a height and a width."
            )
        resized = settings.get("do_resize", True)
        bounded = resized and None not in edges
        return cls(
            shortest=edges[0] if bounded else None,
            longest=edges[1] if bounded else None,
            size=fixed if resized and not bounded else None,
            split=settings.get("do_image_splitting", False),
            patch=patch,
            **read_colors(settings, resample=Image.Resampling.BILINEAR),
        )

    def sized(self, image: Image.Image) -> Image.Image:
        """Resized. Source: transformers' Idefics2ImageProcessor."""
        if self.shortest is None or self.longest is None:
            return image if self.size is None else self.resize(image, self.size)
        width, height = image.size
        aspect = width / height
        if width >= height and width > self.longest:
            width, height = self.longest, int(self.longest / aspect)
        elif height > width and height > self.longest:
            height, width = self.longest, int(self.longest * aspect)
        return self.resize(image, (max(height, self.shortest), max(width, self.shortest)))

    def parts(self, image: Image.Image) -> list[np.ndarray]:
        """The quarters in reading order and the whole, or the whole alone, each (height, width, 3) uint8."""
        parts = [image]
        if self.split:
            (width, height), (x, y) = image.size, (image.width // 2, image.height // 2)
            if not x or not y:
                raise MediaError(f"a picture of {width} x {height} pixels cannot be cut in four; give a larger one")
            corners = (0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)
            parts = [*(image.crop(corner) for corner in corners), image]
        levels = [np.asarray(self.sized(part)) for part in parts]
        patch = self.patch
        return [part[: len(part) // patch * patch, : part.shape[1] // patch * patch] for part in levels]


@dataclass(eq=False, repr=False)
class Idefics2Processor(Processor):
    """Source: transformers' Idefics2Processor. latents: features of an image or quarter."""

    image_settings: Idefics2ImageSettings
    latents: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": IMAGE}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "image_settings": Idefics2ImageSettings.read(settings.image, config["vision_config"].get("patch_size", 32)),
            "latents": (config.get("perceiver_config") or {}).get("resampler_n_latents", 64),
        }

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        """Its templates read lists of parts only."""
        return super().format([string_to_parts(message) for message in messages], **kwargs)

    def lay_out(self, segments: list[Segment], images: int) -> list[Segment]:
        """A mark before and after each image, one between two neighbours, and a blank between a mark and text."""

        def marked(text: str) -> str:
            text = text.replace(IMAGE, f"{AROUND}{IMAGE}{AROUND}").replace(AROUND * 2, AROUND)
            return re.sub(rf"{AROUND}(?=[^\s<])", f"{AROUND} ", text)

        return rewritten(segments, marked)

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        """pixels: those of all parts, (N, 3); grid: height and width of each part, one after the other."""
        refuse_pixel_bounds(media)
        settings = self.image_settings
        image, original = settings.load(source, media)
        parts = settings.parts(image)
        remedy = "do_image_splitting: false in preprocessor_config.json makes it less"
        self.check_count(kind, original, self.latents * len(parts), remedy)
        pixels = np.concatenate([part.reshape(-1, 3) for part in parts])
        grid = tuple(side for part in parts for side in part.shape[:2])
        text, counts = AROUND.join([IMAGE * self.latents] * len(parts)), (self.latents,) * len(parts)
        return Expansion(text, counts, pixels, grid, original, normalization=settings.normalization)
