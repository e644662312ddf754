"""Phi-4 multimodal: SigLIP on tiles of a picture and the whole, a conformer that hears, and Phi-4 mini with adapters.

Source: Microsoft 2025 (arXiv 2503.01743); transformers' Phi4MultimodalForCausalLM.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media, Prompt
from .base import Features
from .configuration import phi4_config
from .layers import gelu, hidden_states, resample_bicubic
from .phi3_text import Variant
from .phi4_audio import Phi4AudioConfig, Phi4AudioEncoder
from .phi4_text import Phi4TextConfig
from .vision_language import TILES_AT_ONCE, VisionLanguageModel, join_pixels, tower_input
from .vit import Encoder, SiglipEmbeddings, SiglipVisionConfig, position_buckets
from .whisper import join_clips


@dataclass(frozen=True)
class Phi4VisionConfig(SiglipVisionConfig):
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 448
    crop_size: int = 448
    patch_size: int = 14
    feature_layer: int = -2


class VisionLayers(Encoder):
    """Of which those after the one that gives the features are never computed; checkpoints have them."""

    def __init__(self, config: Phi4VisionConfig):
        super().__init__(config)
        self._layer = config.feature_layer

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        return hidden_states(self.layers, x, [self._layer], mask)[0]


class Vision(nn.Module):
    """Tiles (B, side, side, 3), of which so many rows and columns of patches show something -> (B, N, d)."""

    def __init__(self, config: Phi4VisionConfig):
        super().__init__()
        self.embeddings, self.encoder = SiglipEmbeddings(config), VisionLayers(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self._side = config.image_size // config.patch_size

    def __call__(self, tiles: mx.array, used: Sequence[tuple[int, int]]) -> mx.array:
        embeddings, side = self.embeddings, self._side
        places = [positions(rows, columns, side) for rows, columns in used]
        index, seen = (np.stack(part) for part in zip(*places, strict=True))
        x = embeddings.patch_embedding(tiles) + embeddings.position_embedding.weight[mx.array(index)]
        return self.encoder(x, None if seen.all() else mx.array(seen)[:, None, None])


def positions(rows: int, columns: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the patches of a tile, (side * side,) each: its learned position, and whether it shows something. The learned
    ones are spread over what does, which is its first `rows` and `columns`."""
    steps = (
        np.minimum(np.arange(side, dtype=np.float32) * (np.float32(1) / np.float32(count)), np.float32(1 - 1e-6))
        for count in (rows, columns)
    )
    row, column = (position_buckets(coordinates, side) for coordinates in steps)
    seen = (np.arange(side) < rows)[:, None] & (np.arange(side) < columns)
    return np.where(seen, row[:, None] * side + column, 0).reshape(-1), seen.reshape(-1)


class ImageEmbedding(nn.Module):
    def __init__(self, config: Phi4VisionConfig, width: int):
        super().__init__()
        hidden = config.hidden_size
        self.img_processor = Vision(config)
        self.img_projection_up, self.img_projection_down = nn.Linear(hidden, width), nn.Linear(width, width)
        self.global_img_feature_extensor = mx.zeros((1, 1, hidden))
        self.sub_img_feature_extensor = mx.zeros((1, 1, 1, hidden))
        self._side = config.image_size // config.patch_size

    def __call__(self, tiles: mx.array, grid: tuple[int, ...]) -> mx.array:
        """Pictures of one grid, tiles (B, rows * columns, side, side, 3) -> (B, n, d): those of the tiles as one
        picture row by row, a mark, and those of the whole; after each row another mark.

        grid: rows and columns of tiles, then rows and columns of patches that show something.
        """
        rows, columns, *used = grid
        batch, side = len(tiles), self._side
        squares = mx.concatenate([shrunk(tiles, rows, columns)[:, None], tiles], axis=1)
        shown = [(side, side)]
        for row, column in np.ndindex(rows, columns):
            shown.append((min(used[0] - row * side, side), min(used[1] - column * side, side)))
        x = self._states(squares.flatten(0, 1), shown * batch)
        half, hidden = side // 2, x.shape[-1]
        x = x.reshape(batch, -1, half, 2, half, 2, hidden).mean(axis=(3, 5))
        whole = x[:, 0]
        joined = x[:, 1:].reshape(batch, rows, columns, half, half, hidden).swapaxes(2, 3)
        joined = joined.reshape(batch, rows * half, columns * half, hidden)
        joined = joined[:, : -(-used[0] // 2), : -(-used[1] // 2)]
        between = mx.broadcast_to(self.global_img_feature_extensor, (batch, 1, hidden))
        x = mx.concatenate([self._marked(joined), between, self._marked(whole)], axis=1)
        return self.img_projection_down(gelu(self.img_projection_up(x)))

    def _states(self, tiles: mx.array, shown: Sequence[tuple[int, int]]) -> mx.array:
        """(B, side, side, 3) -> (B, N, d). Tiles that are full need no mask, with which no kernel may be fused."""
        whole = [place for place, used in enumerate(shown) if used == (self._side, self._side)]
        others = [place for place, used in enumerate(shown) if used != (self._side, self._side)]
        parts = [
            some[start : start + TILES_AT_ONCE]
            for some in (whole, others)
            for start in range(0, len(some), TILES_AT_ONCE)
        ]
        states = [self.img_processor(tiles[mx.array(part)], [shown[place] for place in part]) for part in parts]
        return mx.concatenate(states)[mx.array(np.argsort(whole + others))]

    def _marked(self, x: mx.array) -> mx.array:
        """(B, rows, columns, d) -> (B, rows * (columns + 1), d)."""
        mark = mx.broadcast_to(self.sub_img_feature_extensor, (*x.shape[:2], 1, x.shape[-1]))
        return mx.concatenate([x, mark], axis=2).flatten(1, 2)


def shrunk(tiles: mx.array, rows: int, columns: int) -> mx.array:
    """Tiles (B, rows * columns, side, side, 3) as one picture, shrunk to one tile (B, side, side, 3) from its
    floats, without smoothing."""
    batch, _, side, _, channels = tiles.shape
    x = tiles.reshape(batch, rows, columns, side, side, channels).swapaxes(2, 3)
    return resample_bicubic(x.reshape(batch, rows * side, columns * side, channels), side, side)


class AudioEmbedding(nn.Module):
    """Clips in a prompt with pictures have another projector than clips alone."""

    def __init__(self, config: Phi4AudioConfig, width: int):
        super().__init__()
        hidden = config.hidden_size
        self.encoder = Phi4AudioEncoder(config)
        self.up_proj_for_speech, self.down_proj_for_speech = nn.Linear(hidden, width), nn.Linear(width, width)
        self.up_proj_for_vision_speech = nn.Linear(hidden, width)
        self.down_proj_for_vision_speech = nn.Linear(width, width)

    def __call__(self, features: mx.array, beside_pictures: bool) -> mx.array:
        mode = "vision_speech" if beside_pictures else "speech"
        up, down = self[f"up_proj_for_{mode}"], self[f"down_proj_for_{mode}"]
        return down(gelu(up(self.encoder(features))))


class Phi4Multimodal(VisionLanguageModel):
    text_types: ClassVar[Sequence[str]] = ("phi4_multimodal",)
    renames = (
        ("model.embed_tokens_extend.", ""),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        full = phi4_config(config)
        super().__init__(config, full)
        vision = Phi4VisionConfig.from_dict(full["vision_config"])
        if vision.crop_size != vision.image_size or vision.image_size // vision.patch_size % 2:
            raise LoadError(
                f"This checkpoint's tower takes {vision.image_size} pixels a side and tiles have {vision.crop_size}; "
                f"expected the same, and an even number of patches of {vision.patch_size}."
            )
        self._text = Phi4TextConfig.from_dict(self.driver.arguments)
        self.image_embed = ImageEmbedding(vision, self.hidden_size)
        self.audio_embed = AudioEmbedding(Phi4AudioConfig.from_dict(full["audio_config"]), self.hidden_size)

    @classmethod
    def rename(cls, key: str) -> str | None:
        """The first release has other names."""
        name = super().rename(key)
        if name is None or name.startswith("image_embed.img_processor.head."):
            return None
        for pattern, new in FIRST_NAMES:
            name = re.sub(pattern, new, name)
        return name

    def variant(self, prompt: Prompt) -> int:
        kinds = {medium.kind for medium in prompt.media}
        adapter = 0
        if "image" in kinds and self._text.vision_lora:
            adapter = 2
        elif kinds == {"audio"} and self._text.speech_lora:
            adapter = 1
        return Variant(bool(super().variant(prompt)), adapter).code

    def encode(self, media: Sequence[Media]) -> list[Features]:
        if media[0].kind == "audio":
            return [Features(clip) for clip in self.audio_embed(join_clips(media), media[0].variant == 1)]
        tiles = tower_input(join_pixels(media), media[0].normalization)
        return [Features(x) for x in self.image_embed(tiles.reshape(len(media), -1, *tiles.shape[1:]), media[0].grid)]


FIRST_NAMES = (
    (r"^image_embed\.img_projection\.0\.", "image_embed.img_projection_up."),
    (r"^image_embed\.img_projection\.2\.", "image_embed.img_projection_down."),
    (r"^image_embed\.glb_GN$", "image_embed.global_img_feature_extensor"),
    (r"^image_embed\.sub_GN$", "image_embed.sub_img_feature_extensor"),
    (r"^audio_embed\.audio_projection\.speech\.0\.", "audio_embed.up_proj_for_speech."),
    (r"^audio_embed\.audio_projection\.speech\.2\.", "audio_embed.down_proj_for_speech."),
    (r"^audio_embed\.audio_projection\.vision\.0\.", "audio_embed.up_proj_for_vision_speech."),
    (r"^audio_embed\.audio_projection\.vision\.2\.", "audio_embed.down_proj_for_vision_speech."),
    (r"(feed_forward_(?:in|out))\.net\.0\.linear\.", r"\1.gate_up_proj."),
    (r"(feed_forward_(?:in|out))\.net\.2\.", r"\1.down_proj."),
    (r"(audio_embed\..*self_attn)\.linear_([qkv])\.", r"\1.\2_proj."),
    (r"(audio_embed\..*self_attn)\.linear_out\.", r"\1.o_proj."),
)
"""Names of the first release, with remote code, after `renames`. Source: what transformers converts it with."""
