"""The processors of Aya Vision and Command A Vision: an image as rows and columns of square tiles and once more as a
whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .images import refuse_pixel_bounds
from .internvl import InternVLImageSettings, pair
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .tiles import smallest_upscaling

FEATURE = "<|IMG_PATCH|>"


@dataclass(eq=False, repr=False)
class AyaVisionProcessor(Processor):
    """Source: transformers' AyaVisionProcessor and GotOcr2ImageProcessor. tile_tokens: tokens of a tile."""

    image_settings: InternVLImageSettings
    tile_tokens: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<image>"}
    feature_tokens: ClassVar[Mapping[Kind, str]] = {"image": FEATURE}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        vision = config["vision_config"]
        side = pair(vision.get("image_size", 224))[0] // vision.get("patch_size", 16)
        return {
            "image_settings": InternVLImageSettings.read(settings.image, config),
            "tile_tokens": (side // config.get("downsample_factor", 2)) ** 2,
        }

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        settings = self.image_settings
        image, original = settings.square.load(source, media)
        rows, columns = settings.grid(image.height, image.width)
        tiles = rows * columns + (rows * columns > 1)  # with the whole
        counts = (self.tile_tokens,) * tiles
        self.check_count(
            kind, original, sum(counts), "a smaller `max_patches` in preprocessor_config.json makes it less"
        )
        pixels = settings.cut(image, rows, columns)
        return Expansion(
            self.image_text(tiles), counts, pixels, (), original, normalization=settings.square.normalization
        )

    def image_text(self, tiles: int) -> str:
        """Of an image in so many tiles, the last of which is the whole."""
        features = FEATURE * self.tile_tokens
        parts = "".join(f"TILE_{number}{features}" for number in range(1, tiles))
        return f"<|START_OF_IMG|>{parts}TILE_GLOBAL{features}<|END_OF_IMG|>"


@dataclass(frozen=True)
class Cohere2VisionImageSettings(InternVLImageSettings):
    def grid(self, height: int, width: int) -> tuple[int, int]:
        return smallest_upscaling(height, width, self.tile, self.max_tiles)


@dataclass(eq=False, repr=False)
class Cohere2VisionProcessor(AyaVisionProcessor):
    """Source: transformers' Cohere2VisionProcessor and Cohere2VisionImageProcessor."""

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": FEATURE}
    feature_tokens: ClassVar[Mapping[Kind, str]] = {}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        image = dict(settings.image)
        if not image.get("crop_to_patches", True):
            image["max_patches"] = 1
        fields = super().read_fields(settings, config)
        return fields | {"image_settings": Cohere2VisionImageSettings.read(image, config)}

    def image_text(self, tiles: int) -> str:
        tile = f"{FEATURE * self.tile_tokens}<|IMG_LINE_BREAK|>"
        return f"<|START_OF_IMG|>{tile * tiles}<|END_OF_IMG|>"
