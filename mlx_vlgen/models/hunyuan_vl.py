"""HunyuanVL (HunyuanOCR): a tower for pictures of any size, whose features come in lines, and Hunyuan's dense decoder
with rotary positions along the text and in a picture's columns, its rows and the order of pictures.

Source: Tencent's HunyuanOCR (arXiv 2511.19575); transformers' HunYuanVLForConditionalGeneration. Parameter names are
those of the Hub's originals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media, Prompt
from .attention import MLP, VisionAttention
from .backbone import Angles
from .base import Embedded, Features
from .configuration import BaseConfig, rope_type
from .configuration import text_config as text_part
from .layers import GELU, PositionTable, hidden_states, resample_bilinear
from .vision_language import VisionLanguageModel, encode_tiles
from .vit import PatchConv


@dataclass(frozen=True)
class HunyuanVLVisionConfig(BaseConfig):
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    patch_size: int = 16
    spatial_merge_size: int = 2
    max_image_size: int = 2048
    interpolate_mode: str = "bilinear"
    hidden_act: str = "gelu"
    rms_norm_eps: float = 1e-5


class Embeddings(nn.Module):
    """pixels (B, H, W, 3) -> (B, N, d). The first learned position is that of a class token, which there is none of."""

    def __init__(self, config: HunyuanVLVisionConfig):
        super().__init__()
        self.side = config.max_image_size // config.patch_size
        self.patch_embedding = PatchConv(config.num_channels, config.hidden_size, config.patch_size, bias=True)
        self.position_embedding = PositionTable(self.side**2 + 1, config.hidden_size)

    def __call__(self, pixels: mx.array) -> mx.array:
        patch = self.patch_embedding.weight.shape[1]
        square = self.position_embedding.weight[1:].reshape(self.side, self.side, -1)
        positions = resample_bilinear(square, pixels.shape[1] // patch, pixels.shape[2] // patch)
        return self.patch_embedding(pixels) + positions.flatten(0, 1)


class EncoderLayer(nn.Module):
    def __init__(self, config: HunyuanVLVisionConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(hidden, eps), nn.LayerNorm(hidden, eps)
        self.self_attn = VisionAttention(hidden, config.num_attention_heads, ("q_proj", "k_proj", "v_proj", "o_proj"))
        names = ("dense_h_to_4h", "dense_4h_to_h")
        self.mlp = MLP(hidden, config.intermediate_size, config.hidden_act, names)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Merger(nn.Module):
    """(B, rows, columns, d) -> (B, 2 + n, text d): merge x merge patches become one feature, each line of them ends
    with another, and one stands before and after all."""

    def __init__(self, config: HunyuanVLVisionConfig, text: int):
        super().__init__()
        hidden, merge, eps = config.hidden_size, config.spatial_merge_size, config.rms_norm_eps
        self.merge = merge
        self.before_rms, self.after_rms = nn.RMSNorm(hidden, eps), nn.RMSNorm(text, eps)
        self.proj: list[Any] = [
            PatchConv(hidden, 2 * hidden, merge, bias=True), GELU(), PatchConv(2 * hidden, 4 * hidden, 1, bias=True)
        ]  # fmt: skip
        self.mlp = nn.Linear(4 * hidden, text)
        self.image_newline = mx.zeros(4 * hidden)
        self.image_begin, self.image_end = mx.zeros(text), mx.zeros(text)
        self.image_sep = mx.zeros(text)  # of videos, which no open checkpoint takes

    def __call__(self, x: mx.array) -> mx.array:
        batch, rows, columns = len(x), x.shape[1] // self.merge, x.shape[2] // self.merge
        conv, activation, linear = self.proj
        x = linear(activation(conv(self.before_rms(x)))[:, None]).reshape(batch, rows, columns, -1)
        newline = mx.broadcast_to(self.image_newline, (batch, rows, 1, x.shape[-1]))
        x = self.mlp(mx.concatenate([x, newline], axis=2).flatten(1, 2))
        begin, end = (mx.broadcast_to(part, (batch, 1, x.shape[-1])) for part in (self.image_begin, self.image_end))
        return self.after_rms(mx.concatenate([begin, x, end], axis=1))


class VisionTower(nn.Module):
    """pixels (B, H, W, 3) -> features (B, n, text d)."""

    def __init__(self, config: HunyuanVLVisionConfig, text: int):
        super().__init__()
        self.patch = config.patch_size
        self.embeddings = Embeddings(config)
        self.layers = [EncoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.perceive = Merger(config, text)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = hidden_states(self.layers, self.embeddings(pixels), [-1])[0]
        return self.perceive(x.reshape(len(x), pixels.shape[1] // self.patch, pixels.shape[2] // self.patch, -1))


class Turns(Angles):
    """cos and sin (B, 1, L, D) for tokens whose four positions differ: both values of a pair have different ones."""


class XDRope(nn.Module):
    """Replaces mlx-lm's `self_attn.rope` and keeps no state: an offset is an int or (B,) where all four axes run on
    together, as text does, or `Turns` that the forward computed once for all layers.

    Values i and i + D / 2 of a head are a pair that turns with frequency i. Each quarter of the head's values follows
    an axis, the last three those of pictures, so that the values of a pair follow two of them: this is no rotation
    where these differ. Source: transformers' HunYuanVLRotaryEmbedding.
    """

    def __init__(self, dims: int, base: float, section: Sequence[int]):
        super().__init__()
        self.dims, self.base = dims, base
        self._axes = mx.array(np.repeat(np.arange(len(section)), 2 * np.asarray(section)))
        frequencies = base ** -(np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims))
        self._frequencies = mx.array(np.tile(frequencies, 2).astype(np.float32))

    def turns(self, positions: mx.array) -> Turns:
        """positions (4, B, L)."""
        selected = positions[self._axes].transpose(1, 2, 0).astype(mx.float32)  # (B, L, D)
        angle = (selected * self._frequencies)[:, None]
        return Turns(mx.cos(angle), mx.sin(angle))

    def __call__(self, x: mx.array, offset: "int | mx.array | Turns" = 0) -> mx.array:
        if not isinstance(offset, Turns):
            return mx.fast.rope(x, self.dims, traditional=False, base=self.base, scale=1.0, offset=offset)
        first, second = mx.split(x.astype(mx.float32), 2, axis=-1)
        turned = x.astype(mx.float32) * offset.cos + mx.concatenate([-second, first], axis=-1) * offset.sin
        return turned.astype(x.dtype)


def picture_positions(prompt: Prompt) -> np.ndarray:
    """(3, L) int32: column, row and number of its picture of each feature in a picture's lines; elsewhere, as in its
    first and last feature, the position in the prompt. Source: `get_rope_index` of transformers' HunYuanVLModel."""
    positions = np.tile(np.arange(len(prompt.tokens), dtype=np.int32), (3, 1))
    for number, media in enumerate(sorted(prompt.media, key=lambda item: item.spans)):
        (start, end), (rows, columns) = media.spans[0], media.grid
        row, column = np.indices((rows, columns + 1)).reshape(2, -1)
        positions[:, start + 1 : end - 1] = column, row, np.full_like(row, number)
    return positions


class HunyuanVL(VisionLanguageModel):
    renames = (
        ("vit.", "vision_tower."),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
    text_types = ("hunyuan_vl_text",)

    def __init__(self, config: dict[str, Any]):
        super().__init__(config, text_config(config))
        vision = HunyuanVLVisionConfig.from_dict(config["vision_config"])
        if vision.interpolate_mode != "bilinear" or vision.hidden_act != "gelu":
            raise LoadError(
                f"Its tower has interpolate_mode {vision.interpolate_mode!r} and hidden_act {vision.hidden_act!r}; "
                "expected 'bilinear' and 'gelu'."
            )
        self.vision_tower = VisionTower(vision, self.hidden_size)
        self._rope = rotary(text_part(config), self.body.layers[0].self_attn.head_dim)
        for layer in self.body.layers:
            layer.self_attn.rope = self._rope

    def encode(self, media: Sequence[Media]) -> list[Features]:
        return encode_tiles(media, self.vision_tower)

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        inputs = super().embed(prompt, features)
        inputs.positions = mx.array(picture_positions(prompt))[:, None]
        return inputs

    def move(self, inputs: Embedded, prompt: Prompt, length: int, delta: float) -> None:
        inputs.positions = mx.array(picture_positions(prompt)[:, length:])[:, None]

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        turns = None
        if inputs.positions is not None:
            in_text = mx.array(cache[0].offset).reshape(-1, 1) + mx.arange(len(inputs))
            in_text = mx.broadcast_to(in_text, inputs.positions.shape[1:])[None].astype(mx.int32)
            turns = self._rope.turns(mx.concatenate([in_text, inputs.positions]))
        text = self.language_model
        return self.driver.logits(text, self.driver.hidden_states(text, inputs, cache, at, turns))


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's: nested, or, as the Hub's originals have it, among the model's fields."""
    text = text_part(config)
    tied = config.get("tie_word_embeddings", True) or text.get("tie_word_embeddings", False)
    return {**text, "model_type": "hunyuan_vl_text", "tie_word_embeddings": tied}


def rotary(text: Mapping[str, Any], dims: int) -> XDRope:
    """LoadError for other rotary positions than HunyuanOCR's."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    section = rope.get("mrope_section") or rope.get("xdrope_section") or ()
    alpha = rope.get("alpha")
    if rope_type(rope) not in ("xdrope", "dynamic") or not alpha or len(section) != 4 or sum(section) != dims // 2:
        raise LoadError(
            f"This checkpoint asks for rotary positions of the type {rope_type(rope)!r}, alpha {alpha}, in sections "
            f"{list(section)}; expected 'xdrope' or 'dynamic' with an alpha and four sections of {dims // 2} in all."
        )
    base = text.get("rope_theta", rope.get("rope_theta", 10000.0)) * alpha ** (dims / (dims - 2))
    return XDRope(dims, base, [int(size) for size in section])
