"""LLaVA-OneVision: LLaVA-NeXT on SigLIP, with a limit of patches a picture, and with videos.

Source: Li et al. 2024 (arXiv 2408.03326); transformers' LlavaOnevisionForConditionalGeneration.
"""

import math
from collections.abc import Sequence
from typing import Any

from .._runtime import mx
from ..inputs.prompt import Media
from .base import Features
from .layers import resample_bilinear
from .llava_next import LlavaNext, end_lines, unpadded


class LlavaOnevision(LlavaNext):
    """A single picture is taken whole and in tiles; one of several as a square; so is each frame of a video, pooled."""

    def __init__(self, config: dict[str, Any]):
        text = config["text_config"]
        tied = text.get("tie_word_embeddings", False) or config.get("tie_word_embeddings", False)
        config = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"} | config
        super().__init__(config, text | {"tie_word_embeddings": tied})

    def encode(self, media: Sequence[Media]) -> list[Features]:
        if media[0].kind == "image":
            return super().encode(media)
        frames = self.encode_pixels(media)  # (videos * frames, patches, d)
        side = math.isqrt(frames.shape[1])
        pooled = resample_bilinear(frames.reshape(len(frames), side, side, -1), -(-side // 2), -(-side // 2))
        videos = pooled.reshape(len(media), -1, pooled.shape[-1])
        return [Features(mx.concatenate([video, self.image_newline[None]])) for video in videos]

    def pack(self, squares: mx.array, grid: tuple[int, ...]) -> mx.array:
        if not grid:  # one of several
            return mx.concatenate([squares[0], self.image_newline[None]])
        patches = resample_bilinear(unpadded(squares[1:], grid), *grid[4:])
        return mx.concatenate([squares[0], end_lines(patches, self.image_newline)])
