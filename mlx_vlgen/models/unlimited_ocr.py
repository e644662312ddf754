"""Unlimited-OCR and DeepSeek-OCR: SAM's encoder, then CLIP's on its features, lines that end, and a decoder that in the
first of them sees of its answer only the last tokens.

Source: Wei et al. 2025 (arXiv 2510.18234) for DeepSeek-OCR; transformers' UnlimitedOcrForConditionalGeneration.
"""

import math
from collections.abc import Mapping
from typing import Any

from .._runtime import mx, nn
from ..errors import LoadError
from .base import Full, LayerKind, PromptWindow
from .deepseek_ocr import Projector, SamOcr, published_sam
from .layers import PositionTable, resample_smooth
from .sam import SamConfig
from .vit import CLIPVisionConfig, Encoder

CLIP_LARGE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "patch_size": 14,
}  # fmt: skip


def vision_configs(vision: Mapping[str, Any]) -> tuple[SamConfig, CLIPVisionConfig]:
    """In transformers' form, or in that of the published checkpoints."""
    if "sam_config" in vision:
        sam = SamConfig.from_dict(vision["sam_config"])
        return sam, CLIPVisionConfig.from_dict({**CLIP_LARGE, **vision.get("encoder_config", {})})
    published = vision["width"]["clip-l-14-224"]
    names = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
    sizes = {names.get(name, name): value for name, value in published.items()}
    clip = CLIPVisionConfig.from_dict({"intermediate_size": 4 * published["width"], **sizes})
    return published_sam(vision, vision["width"]["sam_vit_b"]["downsample_channels"][1]), clip


class Embeddings(nn.Module):
    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.class_embedding = mx.zeros(config.hidden_size)
        self.position_embedding = PositionTable((config.image_size // config.patch_size) ** 2 + 1, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, rows, columns, d) -> (B, 1 + N, d)."""
        batch, rows, columns, hidden = x.shape
        table = self.position_embedding.weight
        side = math.isqrt(len(table) - 1)
        grid = resample_smooth(table[1:].reshape(side, side, hidden), rows, columns)
        first = mx.broadcast_to(self.class_embedding + table[0], (batch, 1, hidden))
        return mx.concatenate([first, (x + grid).flatten(1, 2)], axis=1)


class ClipVision(nn.Module):
    """Features (B, rows, columns, d) of SAM's encoder -> what CLIP makes of them beside themselves, (B, N, 2 d)."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.transformer = Encoder(config, ("qkv_proj", "out_proj"))

    def __call__(self, x: mx.array) -> mx.array:
        states = self.transformer(self.pre_layrnorm(self.embeddings(x)))
        return mx.concatenate([states[:, 1:], x.flatten(1, 2)], axis=-1)


def windows(config: Mapping[str, Any]) -> list[int | None]:
    """Of each layer: how much of its answer it sees, None for all of it."""
    text = config.get("text_config") or config.get("language_config") or {}
    layers = text["num_hidden_layers"]
    if config["model_type"] == "deepseek_vl_v2":
        return [None] * layers
    window = text.get("sliding_window", config.get("sliding_window", 128))
    kinds = text.get("layer_types") or ["reference_sliding_attention"] * layers
    if unknown := set(kinds) - {"reference_sliding_attention", "full_attention"}:
        raise LoadError(f"This {config['model_type']} checkpoint has layers of the kind {unknown.pop()!r}.")
    return [None if kind == "full_attention" else window for kind in kinds]


class UnlimitedOcr(SamOcr):
    def __init__(self, config: dict[str, Any]):
        sam, clip = vision_configs(config["vision_config"])
        super().__init__(config, sam)
        self.vision_model = ClipVision(clip)
        self.projector = Projector(sam.downsample_channels[-1] + clip.hidden_size, self.hidden_size)
        self.image_newline = mx.zeros(self.hidden_size)
        self._windows = windows(config)

    def cache_layout(self) -> list[LayerKind]:
        return [Full() if window is None else PromptWindow(window) for window in self._windows]

    @classmethod
    def rename(cls, key: str) -> str | None:
        """Without CLIP's patch embedding, which SAM's encoder stands in for."""
        name = super().rename(key)
        return None if name and name.startswith("vision_model.embeddings.patch_embedding.") else name

    def join(self, *views: mx.array, grid: tuple[int, int]) -> mx.array:
        *tiles, whole = views
        side = math.isqrt(whole.shape[1])
        pages = [whole.reshape(side, side, -1)]
        if tiles:
            rows, columns = grid
            side = math.isqrt(tiles[0].shape[1])
            parts = tiles[0].reshape(rows, columns, side, side, -1).swapaxes(1, 2)
            pages = [parts.reshape(rows * side, columns * side, -1), *pages]
        return mx.concatenate([self.with_newlines(page) for page in pages])

    def with_newlines(self, page: mx.array) -> mx.array:
        """(rows, columns, d) -> (rows * (columns + 1), d)."""
        ends = mx.broadcast_to(self.image_newline, (len(page), 1, page.shape[-1])).astype(page.dtype)
        return mx.concatenate([page, ends], axis=1).flatten(0, 1)
