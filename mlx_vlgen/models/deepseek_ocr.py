"""What the OCR models of DeepSeek and Baidu share: SAM's encoder before a second one, a picture seen whole and in
tiles, and the decoder of DeepSeek's first mixture of experts."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from .._runtime import mx, nn
from ..inputs.prompt import Media
from .base import Features
from .layers import normalize
from .sam import SamConfig, SamEncoder
from .vision_language import TILES_AT_ONCE, VisionLanguageModel


class Projector(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.layers = nn.Linear(inputs, outputs)

    def __call__(self, x: mx.array) -> mx.array:
        return self.layers(x)


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's configuration, in transformers' place or in that of the published checkpoints."""
    text = config.get("text_config") or config.get("language_config") or {}
    return {**text, "model_type": "deepseek", "tie_word_embeddings": config.get("tie_word_embeddings", False)}


def published_sam(vision: Mapping[str, Any], last: int) -> SamConfig:
    """From the configuration of a published checkpoint."""
    published = vision["width"]["sam_vit_b"]
    names = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
    sizes = {names.get(name, name): value for name, value in published.items()}
    middle = published["downsample_channels"][0]
    return SamConfig.from_dict({"image_size": vision["image_size"], **sizes, "downsample_channels": (middle, last)})


class SamOcr(VisionLanguageModel):
    """A family adds `vision_model`, which takes what SAM's encoder gives, and `projector`."""

    text_types: ClassVar[Sequence[str]] = ("deepseek",)
    renames = (
        ("model.qwen2_model.model.model.", "vision_model.qwen2_encoder."),
        ("model.qwen2_model.query_768.weight", "vision_model.qwen2_encoder.query_768"),
        ("model.qwen2_model.query_1024.weight", "vision_model.qwen2_encoder.query_1024"),
        ("model.sam_model.", "sam_model."),
        ("model.vision_model.", "vision_model."),
        ("model.projector.", "projector."),
        ("model.view_seperator", "view_separator"),
        ("model.image_newline", "image_newline"),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any], sam: SamConfig):
        super().__init__(config, text_part(config))
        self.sam_model = SamEncoder(sam)
        self.view_separator = mx.zeros(self.hidden_size)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        """The picture's tiles, then the whole of it, then a separator."""
        rows, columns, tile, whole = media[0].grid
        pixels = mx.array(np.stack([medium.pixels for medium in media]))  # (B, patches, values)
        if pixels.dtype == mx.uint8 and media[0].normalization is not None:
            pixels = normalize(pixels, media[0].normalization)
        cut = rows * columns * tile**2
        views = [self.encode_views(pixels[:, cut:], whole)]
        if cut:
            views = [self.encode_views(pixels[:, :cut], tile), *views]
        joined = [self.join(*(part[index] for part in views), grid=(rows, columns)) for index in range(len(media))]
        return [Features(mx.concatenate([features, self.view_separator[None]])) for features in joined]

    def encode_views(self, pixels: mx.array, side: int) -> mx.array:
        """Squares of side x side patches, pixels (B, views * side * side, values) -> (B, views, n, d)."""
        squares = pixels.reshape(-1, side, side, pixels.shape[-1])
        starts = range(0, len(squares), TILES_AT_ONCE)
        parts = [self.encode_squares(squares[start : start + TILES_AT_ONCE]) for start in starts]
        return mx.concatenate(parts).reshape(len(pixels), -1, *parts[0].shape[1:])

    def encode_squares(self, squares: mx.array) -> mx.array:
        """(B, side, side, values) -> (B, n, d) for the text decoder."""
        return self.projector(self.vision_model(self.sam_model(squares)))

    def join(self, *views: mx.array, grid: tuple[int, int]) -> mx.array:
        """Tiles (T, n, d), where there are any, and the whole (1, m, d) -> (N, d). grid: rows and columns of tiles."""
        return mx.concatenate([view.reshape(-1, view.shape[-1]) for view in views])
