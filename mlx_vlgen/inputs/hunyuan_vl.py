"""The processor of HunyuanVL (HunyuanOCR): an image of any size, whose features come in lines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .images import CLIP_MEAN, CLIP_STD, PixelSettings, image_size, read_colors
from .kinds import KINDS
from .literal import Segment, rewritten
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .qwen_vl import bounded, naming

START, IMAGE, END = (f"<｜hy_place▁holder▁no▁{number}｜>" for number in (100, 102, 101))

MARKED = re.compile(f"(?:{START})?{IMAGE}(?:{END})?")


@dataclass(eq=False, repr=False)
class HunyuanVLProcessor(Processor):
    """Source: transformers' HunYuanVLProcessor and HunYuanVLImageProcessor, which resizes bicubically whatever its file
    says."""

    image_settings: PixelSettings

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": IMAGE}
    adds_first_token = False

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        image, vision = settings.image, config["vision_config"]
        size = image.get("size") or {}
        colors = read_colors({key: value for key, value in image.items() if key != "resample"}, CLIP_MEAN, CLIP_STD)
        image_settings = PixelSettings(
            min_pixels=image.get("min_pixels") or size.get("shortest_edge") or 512 * 512,
            max_pixels=image.get("max_pixels") or size.get("longest_edge") or 2048 * 2048,
            patch=image.get("patch_size") or vision.get("patch_size", 16),
            merge=image.get("merge_size") or vision.get("spatial_merge_size", 2),
            frames=1,
            **colors,
        )
        return {"image_settings": image_settings}

    def lay_out(self, segments: list[Segment], images: int) -> list[Segment]:
        """A mark before and after each image, without which answers are worse: transformers refuses such prompts."""
        return rewritten(segments, lambda text: MARKED.sub(START + IMAGE + END, text))

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        """pixels: (1, height, width, 3); grid: rows and columns of features, without what ends each line."""
        settings = bounded(self.image_settings, media)
        image, original = settings.load(source, media)
        with naming(source):
            size = image_size(image.height, image.width, settings)
        rows, columns = size[0] // settings.factor, size[1] // settings.factor
        count = rows * (columns + 1) + 2
        many = KINDS[kind].many_tokens
        remedy = f"max_pixels (--max-pixels) makes it smaller: {many * settings.factor**2} gives about {many:,}"
        self.check_count(kind, original, count, remedy)
        pixels = np.asarray(settings.resize(image, size))[None]
        return Expansion(
            IMAGE * count, (count,), pixels, (rows, columns), original, normalization=settings.normalization
        )
