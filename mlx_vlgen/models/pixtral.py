"""Pixtral: a vision transformer with rotary positions in two dimensions, for pictures of any size, and Mistral.

Source: Agrawal et al. 2024 (arXiv 2410.07073); transformers' PixtralVisionModel, and LlavaForConditionalGeneration, as
which its checkpoints are published.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._runtime import mx, nn
from ..inputs.prompt import Media
from .attention import GATED, MLP, VisionAttention, linear_without_bias
from .base import Features
from .configuration import BaseConfig
from .layers import hidden_states, reading_order, rotary_2d
from .llava import Llava, projector
from .vision_language import VisionLanguageModel, encode_tiles
from .vit import PatchConv, Tower

EPS = 1e-5
"""Of all norms of the tower; no configuration names it."""


@dataclass(frozen=True)
class PixtralVisionConfig(BaseConfig):
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    hidden_act: str = "gelu"
    rope_theta: float = 10000.0
    rope_parameters: Mapping[str, Any] | None = None


class Block(nn.Module):
    def __init__(self, config: PixtralVisionConfig):
        super().__init__()
        hidden = config.hidden_size
        self.attention_norm, self.ffn_norm = nn.RMSNorm(hidden, eps=EPS), nn.RMSNorm(hidden, eps=EPS)
        names, linear = ("q_proj", "k_proj", "v_proj", "o_proj"), linear_without_bias
        self.attention = VisionAttention(hidden, config.num_attention_heads, names, linear, linear)
        self.feed_forward = MLP(hidden, config.intermediate_size, config.hidden_act, GATED, linear)

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    def __init__(self, config: PixtralVisionConfig):
        super().__init__()
        self.layers = [Block(config) for _ in range(config.num_hidden_layers)]


class PixtralVision(nn.Module):
    """pixels (B, H, W, 3) -> hidden states (B, N, d), N patches in reading order."""

    def __init__(self, config: PixtralVisionConfig):
        super().__init__()
        self.patch_conv = PatchConv(config.num_channels, config.hidden_size, config.patch_size, bias=False)
        self.ln_pre = nn.RMSNorm(config.hidden_size, eps=EPS)
        self.transformer = Transformer(config)
        self.head_size = config.hidden_size // config.num_attention_heads
        rope = config.rope_parameters or {"rope_theta": config.rope_theta}
        self.theta = float(rope.get("rope_theta", 10000.0))

    def __call__(self, pixels: mx.array, layers: Sequence[int]) -> list[mx.array]:
        """layers: which hidden states to return, 0 being what the first layer takes and -1 what the last one gives."""
        patch = self.patch_conv.weight.shape[1]
        places = reading_order(pixels.shape[1] // patch, pixels.shape[2] // patch)
        # Frequencies go to rows and columns in turn: those of the columns lie half a step lower.
        cos, sin = rotary_2d(places, self.head_size, self.theta, column_step=0.5)
        return hidden_states(self.transformer.layers, self.ln_pre(self.patch_conv(pixels)), layers, cos, sin)


class Pixtral(VisionLanguageModel):
    renames: Sequence[tuple[str, str]] = Llava.renames
    feature_layer = -2
    """Whose output is used where the configuration is silent; published ones say -1, the last."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config, self.text_config(config))
        vision = PixtralVisionConfig.from_dict(config["vision_config"])
        layer = config.get("vision_feature_layer", self.feature_layer)
        self._layers = [layer] if isinstance(layer, int) else list(layer)
        self.vision_tower = Tower(PixtralVision(vision))
        self.multi_modal_projector = projector(config, vision.hidden_size * len(self._layers), self.hidden_size)

    @staticmethod
    def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
        """Whether the output layer is the embeddings its part says, or else the model's."""
        return {"tie_word_embeddings": config.get("tie_word_embeddings", False)} | config["text_config"]

    def encode(self, media: Sequence[Media]) -> list[Features]:
        return encode_tiles(media, self.encode_pixels)

    def encode_pixels(self, pixels: mx.array) -> mx.array:
        """(B, H, W, 3) -> (B, n, d) for the text decoder."""
        return self.multi_modal_projector(self.states(pixels))

    def states(self, pixels: mx.array) -> mx.array:
        """(B, H, W, 3) -> (B, N, d): the hidden states that the projector takes."""
        return mx.concatenate(self.vision_tower.vision_model(pixels, self._layers), axis=-1)
