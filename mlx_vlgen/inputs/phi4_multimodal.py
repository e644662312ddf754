"""Phi-4 multimodal's processor: a picture as rows and columns of square tiles and once more as a whole; sound."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import LoadError, MediaError
from .audio import load_audio
from .audio_tensors import AudioTensors
from .fixed_size import read_size
from .images import ImageSettings, Size, check_area, read_colors, refuse_pixel_bounds
from .media import describe_source
from .mel import MelSettings, log_mel
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import Media, MediaInputs
from .tiles import best_grid, cut_tiles

IMAGE, AUDIO = "<|endoftext10|>", "<|endoftext11|>"
SOUND = MelSettings(
    fft=512, high=7690.0, window="hamming", padding="whole", preemphasis=0.97, gain=32768.0, scale="kaldi", floor=1.0,
    single=True, double_transform=True, log="natural",
)  # fmt: skip
LEAST_SIDE = 10
"""Pixels that a picture has on its shorter side, when it is as large as its tiles."""

# The first release's template joins contents that are strings. This text before it writes media into such strings.
MEDIA_TO_STRINGS = (
    "{%- set ns = namespace(turns=[]) %}{%- for turn in messages %}{%- if turn['content'] is string or "
    "turn['content'] is none or turn['content'] is undefined %}{%- set ns.turns = ns.turns + [turn] %}{%- else %}"
    "{%- set ns.text = '' %}{%- for part in turn['content'] %}{%- if part['type'] == 'image' %}"
    f"{{%- set ns.text = ns.text + '{IMAGE}' %}}{{%- elif part['type'] == 'audio' %}}"
    f"{{%- set ns.text = ns.text + '{AUDIO}' %}}{{%- else %}}{{%- set ns.text = ns.text + part['text'] %}}"
    "{%- endif %}{%- endfor %}{%- set ns.turns = ns.turns + [dict(turn, content=ns.text)] %}{%- endif %}"
    "{%- endfor %}{%- set messages = ns.turns %}{{- '' }}"
)


@dataclass(frozen=True)
class Phi4ImageSettings(ImageSettings):
    """tile, patch: their sides in pixels; max_tiles: of a picture."""

    tile: int
    patch: int
    max_tiles: int

    @classmethod
    def read(cls, settings: Mapping[str, Any], vision: Mapping[str, Any]) -> Self:
        """From a preprocessor_config.json, with transformers' Phi4MultimodalImageProcessor's numbers for what it leaves
        out. vision: the tower's configuration."""
        side, patch = vision.get("image_size", 448), vision.get("patch_size", 14)
        size, cut = read_size(settings.get("size"), 448), settings.get("patch_size", 14)
        if (*size, cut) != (side, side, patch):
            raise LoadError(
                f"This checkpoint's processor makes tiles of {size} pixels and patches of {cut}, and its tower takes "
                f"({side}, {side}) and {patch}; expected the same."
            )
        if (resample := settings.get("resample", 3)) != Image.Resampling.BICUBIC:
            raise LoadError(f"This checkpoint's processor shrinks pictures with resample = {resample}; expected 3.")
        # `resample` is of the whole only, which the tower's floats are shrunk to; pictures are resized like this.
        colors = read_colors(settings) | {"resample": Image.Resampling.BILINEAR}
        return cls(tile=side, patch=patch, max_tiles=settings.get("dynamic_hd", 36), **colors)

    def sizes(self, height: int, width: int) -> tuple[Size, Size]:
        """(rows, columns) of tiles of a picture, and its (height, width) on them.
        Source: transformers' Phi4MultimodalImageProcessor.dynamic_preprocess."""
        rows, columns = math.ceil(height / self.tile), math.ceil(width / self.tile)
        if rows * columns > self.max_tiles:
            rows, columns = best_grid(height, width, self.tile, 1, self.max_tiles)
        down, across = rows * self.tile / height, columns * self.tile / width
        if across < down:
            return (rows, columns), (int(height * across), columns * self.tile)
        return (rows, columns), (rows * self.tile, int(width * down))

    def shown(self, tiles: Size, size: Size) -> Size:
        """Rows and columns of patches that show something of a picture of `size` on so many tiles."""
        side = self.tile // self.patch
        rows, columns = (
            count * side - (count * self.tile - length) // self.patch for count, length in zip(tiles, size, strict=True)
        )
        return rows, columns

    def tokens(self, shown: Size) -> int:
        """Of the patches that show something every other row and column, and the whole, each row with a mark after it;
        and a mark between the two."""
        rows, columns = (math.ceil(count / 2) for count in shown)
        side = self.tile // self.patch // 2
        return rows * (columns + 1) + 1 + side * (side + 1)

    def cut(self, image: Image.Image, tiles: Size, size: Size) -> np.ndarray:
        """A picture -> its tiles in reading order (T, H, W, 3) uint8, white where it does not reach."""
        canvas_size = tiles[0] * self.tile, tiles[1] * self.tile
        check_area(canvas_size)
        canvas = np.full((*canvas_size, 3), 255, np.uint8)
        canvas[: size[0], : size[1]] = np.asarray(self.resize(image, size))
        return cut_tiles(canvas, self.tile)


def read_sound(settings: Mapping[str, Any], bands: int) -> MelSettings:
    """From a feature extractor's settings. bands: that the tower takes."""
    rates = {"audio_compression_rate": 8, "audio_downsample_rate": 1, "audio_feat_stride": 1}
    for name, expected in (*rates.items(), ("feature_size", bands)):
        if (given := settings.get(name, 80 if name == "feature_size" else expected)) != expected:
            raise LoadError(f"This checkpoint's features of sound have {name} = {given}; expected {expected}.")
    return replace(
        SOUND,
        rate=settings.get("sampling_rate", SOUND.rate),
        mels=bands,
        low=settings.get("mel_min_frequency", SOUND.low),
        high=settings.get("mel_max_frequency", SOUND.high),
        frame=settings.get("win_length", SOUND.frame),
        hop=settings.get("hop_length", SOUND.hop),
        fft=settings.get("n_fft", SOUND.fft),
        preemphasis=settings.get("preemphasis", SOUND.preemphasis),
    )


@dataclass(eq=False, repr=False)
class Phi4MultimodalProcessor(Processor):
    """Source: transformers' Phi4MultimodalProcessor."""

    image_settings: Phi4ImageSettings
    sound: MelSettings

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": IMAGE, "audio": AUDIO}

    def __post_init__(self) -> None:
        if self.chat_template is not None and IMAGE not in self.chat_template:
            self.chat_template = MEDIA_TO_STRINGS + self.chat_template

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        audio = config.get("audio_config") or {}
        return {
            "image_settings": Phi4ImageSettings.read(settings.image, config.get("vision_config") or {}),
            "sound": read_sound(settings.audio, audio.get("input_size", 80)),
        }

    @property
    def audio_tensors(self) -> AudioTensors:
        return AudioTensors("audio_input_features", "audio_attention_mask", self.sound.mels)

    def audio_tokens(self, frames: int) -> int:
        return math.ceil(frames / 8)

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        """grid of a picture: rows and columns of tiles, then of patches that show something."""
        if kind == "audio":
            return self._expand_audio(source)
        refuse_pixel_bounds(media)
        settings = self.image_settings
        image, original = settings.load(source, media)
        tiles, size = settings.sizes(image.height, image.width)
        if min(size) < LEAST_SIDE:
            raise MediaError(
                f"a picture of {image.width} x {image.height} pixels is too thin for this model, which would see it "
                f"with {size[1]} x {size[0]}: crop it, or give resize_shape=(height, width)"
            )
        shown = settings.shown(tiles, size)
        count = settings.tokens(shown)
        self.check_count(kind, original, count, "a smaller `dynamic_hd` in preprocessor_config.json makes it less")
        pixels, grid = settings.cut(image, tiles, size), (*tiles, *shown)
        return Expansion(IMAGE * count, (count,), pixels, grid, original, normalization=settings.normalization)

    def _expand_audio(self, source: Any) -> Expansion:
        samples = load_audio(source, self.sound.rate)
        frames = self.sound.frames(len(samples))
        count = self.audio_tokens(frames)
        if not count:
            raise MediaError(f"{describe_source(source)}: too short: {len(samples):,} samples become no token")
        self.check_count("audio", len(samples) / self.sound.rate, count, "a shorter clip has fewer")
        features = log_mel(samples, self.sound)
        return Expansion(AUDIO * count, (count,), features, (frames,), (0, 0))

    def placed(self, tokens: np.ndarray, media: Sequence[Media]) -> Sequence[Media]:
        """Clips beside pictures have other features, and so another key."""
        if not any(medium.kind == "image" for medium in media):
            return media
        # Not by `Media.replace`, which keeps the key.
        return [replace(clip, variant=1) if clip.kind == "audio" else clip for clip in media]
