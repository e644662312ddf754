"""Ovis2: AIMv2 on tiles; each feature is a mixture of the embeddings of a visual vocabulary; and Qwen2.

Source: Lu et al. 2024 (arXiv 2405.20797); Fini et al. 2024 (arXiv 2411.14402) on the tower; transformers'
Ovis2ForConditionalGeneration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media
from .attention import GATED, MLP, VisionAttention
from .base import Features
from .configuration import BaseConfig
from .layers import PositionTable, fold_squares, hidden_states
from .vision_language import VisionLanguageModel, encode_tiles
from .vit import PatchConv


@dataclass(frozen=True)
class Ovis2VisionConfig(BaseConfig):
    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    rms_norm_eps: float = 1e-5
    qkv_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    vocab_size: int = 16384
    hidden_stride: int = 1
    num_visual_indicator_tokens: int = 5
    tokenize_function: str = "softmax"


class Embeddings(nn.Module):
    def __init__(self, config: Ovis2VisionConfig):
        super().__init__()
        hidden, patch = config.hidden_size, config.patch_size
        self.patch_embedding = PatchConv(config.num_channels, hidden, patch, bias=True)
        self.position_embedding = PositionTable((config.image_size // patch) ** 2, hidden)
        self.rms_norm = nn.RMSNorm(hidden, config.rms_norm_eps)

    def __call__(self, pixels: mx.array) -> mx.array:
        return self.rms_norm(self.patch_embedding(pixels)) + self.position_embedding.weight


class EncoderLayer(nn.Module):
    def __init__(self, config: Ovis2VisionConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        linear = partial(nn.Linear, bias=config.qkv_bias)
        self.attention = VisionAttention(hidden, config.num_attention_heads, names, linear, linear)
        self.ffn = MLP(
            hidden, config.intermediate_size, config.hidden_act, GATED, partial(nn.Linear, bias=config.mlp_bias)
        )
        self.rms_norm1, self.rms_norm2 = nn.RMSNorm(hidden, eps), nn.RMSNorm(hidden, eps)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.attention(self.rms_norm1(x))
        return x + self.ffn(self.rms_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: Ovis2VisionConfig):
        super().__init__()
        self.layers = [EncoderLayer(config) for _ in range(config.num_hidden_layers)]


class Transformer(nn.Module):
    """pixels (B, H, W, 3) -> (B, N, d)."""

    def __init__(self, config: Ovis2VisionConfig):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(config), Encoder(config)
        self.rms_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, pixels: mx.array) -> mx.array:
        return self.rms_norm(hidden_states(self.encoder.layers, self.embeddings(pixels), [-1])[0])


class Vision(nn.Module):
    """pixels (B, H, W, 3) -> how much of each visual token is in each feature: (B, n, V). A square of `hidden_stride` x
    `hidden_stride` patches is one feature."""

    def __init__(self, config: Ovis2VisionConfig):
        super().__init__()
        tokens = config.vocab_size - config.num_visual_indicator_tokens
        self.transformer = Transformer(config)
        self.head_linear = nn.Linear(config.hidden_size * config.hidden_stride**2, tokens, bias=False)
        self.head_norm = nn.LayerNorm(tokens)
        self.side, self.stride = config.image_size // config.patch_size, config.hidden_stride
        if self.side % self.stride:
            raise LoadError(f"Its pictures have {self.side} patches a side; expected a multiple of {self.stride}.")

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.transformer(pixels)
        x = fold_squares(x.reshape(len(x), self.side, self.side, -1), self.stride)
        return mx.softmax(self.head_norm(self.head_linear(x)), axis=-1, precise=True)


class VisualTable(nn.Module):
    """Embeddings (V, d) of the visual vocabulary, the last ones of the tokens around and between tiles. They are mixed,
    never looked up alone, so that MLX should not quantize them as it does embeddings."""

    def __init__(self, count: int, size: int):
        super().__init__()
        self.weight = mx.zeros((count, size))


class Ovis2(VisionLanguageModel):
    renames = (
        ("model.vision_tower.", "vision_tower."),
        ("model.visual_embeddings_table.", "visual_embeddings_table."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        tied = config.get("tie_word_embeddings", True)
        super().__init__(config, {"model_type": "qwen2"} | config["text_config"] | {"tie_word_embeddings": tied})
        vision = Ovis2VisionConfig.from_dict(config["vision_config"])
        if (function := vision.tokenize_function) != "softmax":
            raise LoadError(f"tokenize_function is {function!r}; expected 'softmax', which all published Ovis2 have.")
        indicators = config.get("visual_indicator_token_ids") or range(151666, 151671)
        if len(indicators) != vision.num_visual_indicator_tokens:
            raise LoadError(
                f"This checkpoint has {len(indicators)} visual_indicator_token_ids; expected "
                f"num_visual_indicator_tokens, {vision.num_visual_indicator_tokens}."
            )
        self.vision_tower = Vision(vision)
        self.visual_embeddings_table = VisualTable(vision.vocab_size, self.hidden_size)
        self._indicators = tuple(indicators)

    def embed_tokens(self, tokens: mx.array) -> mx.array:
        """The tokens around and between tiles have rows of the visual table."""
        embeds, table = super().embed_tokens(tokens), self.visual_embeddings_table.weight
        for token, row in zip(self._indicators, table[-len(self._indicators) :], strict=True):
            embeds = mx.where((tokens == token)[..., None], row.astype(embeds.dtype), embeds)
        return embeds

    def encode(self, media: Sequence[Media]) -> list[Features]:
        table = self.visual_embeddings_table.weight[: -len(self._indicators)]
        return encode_tiles(media, lambda tiles: self.vision_tower(tiles) @ table)
