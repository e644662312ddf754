"""LFM2-VL: SigLIP2 on pictures of any size and on tiles of large ones, and LFM2, whose layers are mostly convolutions.

Source: Liquid AI's LFM2-VL; Tschannen et al. 2025 (arXiv 2502.14786) on SigLIP2's NaFlex; transformers'
Lfm2VlForConditionalGeneration and Siglip2VisionModel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media
from .attention import MLP, PROJECTOR
from .base import Features
from .layers import PositionTable, fold_squares
from .vision_language import VisionLanguageModel, join_pixels, tower_input
from .vit import Encoder, SiglipVisionConfig


@dataclass(frozen=True)
class Siglip2VisionConfig(SiglipVisionConfig):
    num_patches: int = 256


class Embeddings(nn.Module):
    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = PositionTable(config.num_patches, config.hidden_size)

    def __call__(self, patches: mx.array, rows: int, columns: int) -> mx.array:
        """(B, rows * columns, patch * patch * 3) -> (B, N, d)."""
        table = self.position_embedding.weight
        side = int(len(table) ** 0.5)
        down, across = mx.array(resize_weights(side, rows)), mx.array(resize_weights(side, columns))
        # In float32, as transformers does it, where the table is shorter.
        square = table.astype(mx.float32).reshape(side, side, -1)
        positions = mx.einsum("rs,sd->rd", down, square.reshape(side, -1)).reshape(rows, side, -1)
        positions = (across @ positions).reshape(rows * columns, -1).astype(table.dtype)
        return self.patch_embedding(patches.astype(table.dtype)) + positions


def resize_weights(side: int, length: int) -> np.ndarray:
    """(length, side): what each of `side` values in a row gives to each of `length` that they are resampled to, by
    triangles about the middle of each: as wide as one old value or one new one, whichever is wider, so that shrinking
    does not alias. Source: torch's `interpolate`, mode "bilinear" with antialias."""
    step = side / length
    middle = (np.arange(length)[:, None] + 0.5) * step
    weight = np.maximum(0, 1 - np.abs(np.arange(side) + 0.5 - middle) / max(step, 1.0))
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


class Siglip2Vision(nn.Module):
    """Patches of pictures of one grid -> their normalised last hidden states (B, N, d)."""

    def __init__(self, config: Siglip2VisionConfig):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(config), Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, patches: mx.array, rows: int, columns: int) -> mx.array:
        return self.post_layernorm(self.encoder(self.embeddings(patches, rows, columns)))


class Projector(MLP):
    def __init__(self, config: Mapping[str, Any], vision: int, text: int):
        merge = config.get("downsample_factor", 2)
        joined, inner = vision * merge**2, config.get("projector_hidden_size", 2560)
        linear = partial(nn.Linear, bias=config.get("projector_bias", True))
        super().__init__(joined, inner, config.get("projector_hidden_act", "gelu"), PROJECTOR, linear, text)
        self.merge = merge
        if config.get("projector_use_layernorm", True):
            self.layer_norm = nn.LayerNorm(joined, eps=1e-5)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, rows, columns, d) -> (B, n, text d): merge x merge patches become one token."""
        x = fold_squares(x, self.merge)
        return super().__call__(self.layer_norm(x) if "layer_norm" in self else x)


class Lfm2VL(VisionLanguageModel):
    renames = (
        ("model.vision_tower.vision_model.", "vision_tower."),
        ("model.vision_tower.", "vision_tower."),
        ("vision_tower.vision_model.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        text = config["text_config"]
        if not config.get("tie_word_embeddings", config.get("tie_embedding", True)):
            text = text | {"tie_word_embeddings": False}  # LFM2's decoder refuses it
        super().__init__(config, text)
        if (layer := config.get("vision_feature_layer", -1)) != -1:
            raise LoadError(f"vision_feature_layer is {layer}; expected -1: LFM2-VL takes the tower's last layer.")
        vision = Siglip2VisionConfig.from_dict(config["vision_config"])
        self.vision_tower = Siglip2Vision(vision)
        self.multi_modal_projector = Projector(config, vision.hidden_size, self.hidden_size)

    @classmethod
    def rename(cls, key: str) -> str | None:
        name = super().rename(key)
        return None if name and name.startswith("language_model.lm_head.") else name  # it is the embeddings'

    def encode(self, media: Sequence[Media]) -> list[Features]:
        """Tiles of all pictures are one batch, and the whole pictures, which are of another size, are another."""
        count, side, rows, columns = media[0].grid
        patches = join_pixels(media).reshape(len(media), *media[0].pixels.shape)  # (B, N, P)
        patches = tower_input(patches, media[0].normalization)
        parts = []
        if count:
            tiles = patches[:, : count * side**2].reshape(len(media) * count, side**2, -1)
            parts.append(self._encode_patches(tiles, side, side).reshape(len(media), -1, self.hidden_size))
        if rows:
            parts.append(self._encode_patches(patches[:, count * side**2 :], rows, columns))
        return [Features(image) for image in mx.concatenate(parts, axis=1)]

    def _encode_patches(self, patches: mx.array, rows: int, columns: int) -> mx.array:
        states = self.vision_tower(patches, rows, columns)
        return self.multi_modal_projector(states.reshape(len(states), rows, columns, -1))
