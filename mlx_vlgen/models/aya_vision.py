"""Aya Vision and Command A Vision: SigLIP on tiles, squares of patches folded into one feature, a gated projector and
Cohere 2.

Source: Dash et al. 2025 (arXiv 2505.08751); transformers' AyaVisionForConditionalGeneration and
Cohere2VisionForConditionalGeneration.
"""

import math
from collections.abc import Sequence
from typing import Any

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media
from .base import Features
from .layers import ACTIVATIONS, fold_squares
from .llava import Llava
from .vision_language import VisionLanguageModel, encode_tiles
from .vit import Tower, plain_vision


class Projector(nn.Module):
    """Patches of squares (B, N, vision) -> (B, N / fold^2, text). The second half of the first layer gates the other.

    inner: outputs of the first layer. eps: of the norm before it; None where there is none.
    """

    def __init__(self, vision: int, inner: int, text: int, fold: int, eps: float | None):
        super().__init__()
        self._fold, self._activation = fold, ACTIVATIONS["silu"]
        joined = vision * fold**2
        if eps is not None:
            self.layernorm = nn.LayerNorm(joined, eps=eps)
        self.linear_1, self.linear_2 = nn.Linear(joined, inner), nn.Linear(inner // 2, text)

    def __call__(self, patches: mx.array) -> mx.array:
        batch, count, hidden = patches.shape
        rows = math.isqrt(count)
        x = fold_squares(patches.reshape(batch, rows, rows, hidden), self._fold)
        h, gate = mx.split(self.linear_1(self.layernorm(x) if "layernorm" in self else x), 2, axis=-1)
        return self.linear_2(self._activation(gate) * h)


class Cohere2Vision(VisionLanguageModel):
    text_types = ("cohere2",)
    renames = (("model.vision_tower.vision_model.", "vision_tower.vision_model."), *Llava.renames)

    def __init__(self, config: dict[str, Any]):
        text = {"model_type": "cohere2", **config["text_config"]}
        if not config.get("tie_word_embeddings", True):
            text = text | {"tie_word_embeddings": False}  # Cohere 2's decoder refuses it
        super().__init__(config, text)
        vision = plain_vision({"model_type": "siglip_vision_model", **config["vision_config"]})
        self.vision_tower = Tower(vision)
        self.multi_modal_projector = self._projector(vision.hidden_size)

    def _projector(self, vision: int) -> Projector:
        inner = self.config.get("alignment_intermediate_size", 36864)
        return Projector(vision, inner, self.hidden_size, self.config.get("downsample_factor", 2), None)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        return encode_tiles(media, lambda tiles: self.multi_modal_projector(self.patch_states(tiles)))

    def patch_states(self, tiles: mx.array) -> mx.array:
        """(B, H, W, 3) -> (B, N, d): what the projector takes."""
        states: mx.array = self.vision_tower.vision_model(tiles)
        return states


class AyaVision(Cohere2Vision):
    def __init__(self, config: dict[str, Any]):
        layer, strategy = config.get("vision_feature_layer", -1), config.get("vision_feature_select_strategy", "full")
        if not isinstance(layer, int) or strategy != "full":
            raise LoadError(
                f"This aya_vision checkpoint has vision_feature_layer = {layer!r} and vision_feature_select_strategy = "
                f"{strategy!r}; expected one layer, and 'full': SigLIP's patches are a square without a class token."
            )
        self._layer = layer
        super().__init__(config)

    def _projector(self, vision: int) -> Projector:
        config = self.config
        inner = config.get("alignment_intermediate_size", self.hidden_size)
        eps = config.get("adapter_layer_norm_eps", 1e-6)
        return Projector(vision, inner, self.hidden_size, config.get("downsample_factor", 2), eps)

    def patch_states(self, tiles: mx.array) -> mx.array:
        states: list[mx.array] = self.vision_tower.vision_model.states(tiles, [self._layer])
        return states[0]
