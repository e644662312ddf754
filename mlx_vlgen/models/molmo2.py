"""Molmo2: SigLIP2 on a picture's tiles and on frames, patches pooled by attention, added to their tokens' embeddings;
and a decoder like Qwen3 or OLMo 2, in which the tokens of all media see each other.

Source: Clark et al. 2026, Molmo2 (Ai2); transformers' Molmo2ForConditionalGeneration. Parameter names are those of the
Hub's originals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media, Prompt
from .attention import MLP, VisionAttention, merge_heads, split_heads
from .base import Embedded, Features
from .configuration import BaseConfig
from .layers import ACTIVATIONS, cut_patches, hidden_states
from .vision_language import VisionLanguageModel, encode_squares


@dataclass(frozen=True)
class Molmo2VisionConfig(BaseConfig):
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 25
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 72
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    image_size: Sequence[int] = (378, 378)
    patch_size: int = 14
    num_channels: int = 3
    attention_bias: bool = True

    old_names: ClassVar[Mapping[str, str]] = {
        "image_default_input_size": "image_size",
        "image_patch_size": "patch_size",
    }


@dataclass(frozen=True)
class Molmo2AdapterConfig(BaseConfig):
    vision_feature_layer: Sequence[int] = (24, 18)
    hidden_size: int = 1152
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 72
    attention_bias: bool = True
    hidden_act: str = "silu"
    intermediate_size: int = 18944
    text_hidden_size: int = 3584
    mlp_bias: bool = False

    old_names: ClassVar[Mapping[str, str]] = {"vit_layers": "vision_feature_layer"}


class Block(nn.Module):
    def __init__(self, config: Molmo2VisionConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        linear = partial(nn.Linear, bias=config.attention_bias)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(hidden, eps), nn.LayerNorm(hidden, eps)
        self.attention = VisionAttention(hidden, config.num_attention_heads, ("wq", "wk", "wv", "wo"), linear, linear)
        self.feed_forward = MLP(hidden, config.intermediate_size, config.hidden_act, ("w1", "w2"))

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class ImageVit(nn.Module):
    """pixels (B, H, W, 3) -> the hidden states (B, N, d) of some layers, joined."""

    def __init__(self, config: Molmo2VisionConfig, layers: Sequence[int]):
        super().__init__()
        self.patch, self._layers = config.patch_size, tuple(layers)
        count = (config.image_size[0] // self.patch) * (config.image_size[1] // self.patch)
        self.positional_embedding = mx.zeros((count, config.hidden_size))
        self.patch_embedding = nn.Linear(self.patch**2 * config.num_channels, config.hidden_size)
        self.transformer = [Block(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, pixels: mx.array) -> mx.array:
        x = cut_patches(pixels, self.patch).astype(self.positional_embedding.dtype)
        x = self.patch_embedding(x) + self.positional_embedding
        return mx.concatenate(hidden_states(self.transformer, x, self._layers), axis=-1)


class Pool(nn.Module):
    """Of each token the mean of its patches attends to them: patches (B, N, inputs) -> (B, n, d)."""

    def __init__(self, config: Molmo2AdapterConfig):
        super().__init__()
        inputs, size = config.hidden_size * len(config.vision_feature_layer), config.head_dim
        linear = partial(nn.Linear, bias=config.attention_bias)
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.wq, self.wo = linear(inputs, self.heads * size), linear(self.heads * size, config.hidden_size)
        self.wk, self.wv = linear(inputs, self.groups * size), linear(inputs, self.groups * size)

    def __call__(self, x: mx.array, index: np.ndarray) -> mx.array:
        """index: (n, k), the patches of each token, -1 for none."""
        batch, (count, size) = len(x), index.shape
        valid = mx.array(index >= 0)
        patches = x[:, mx.array(np.maximum(index, 0).reshape(-1))].reshape(batch, count, size, -1)
        patches = patches * valid[..., None].astype(x.dtype)
        mean = patches.sum(axis=2, keepdims=True) / valid.sum(axis=1)[:, None, None].astype(x.dtype)
        q = split_heads(self.wq(mean).flatten(0, 1), self.heads)  # (B * n, H, 1, D)
        k, v = (split_heads(layer(patches).flatten(0, 1), self.groups) for layer in (self.wk, self.wv))
        mask = mx.tile(valid, (batch, 1))[:, None, None]
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return self.wo(merge_heads(out)).reshape(batch, count, -1)


class Projector(nn.Module):
    def __init__(self, config: Molmo2AdapterConfig):
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.w1, self.w3 = nn.Linear(hidden, inner, bias), nn.Linear(hidden, inner, bias)
        self.w2 = nn.Linear(inner, config.text_hidden_size, bias=False)
        self._activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return self.w2(self._activation(self.w1(x)) * self.w3(x))


class VisionTower(nn.Module):
    def __init__(self, vision: Molmo2VisionConfig, adapter: Molmo2AdapterConfig):
        super().__init__()
        layers = [layer + 1 if layer >= 0 else layer for layer in adapter.vision_feature_layer]
        self.side = vision.image_size[0] // vision.patch_size
        self.image_vit = ImageVit(vision, layers)
        self.image_pooling_2d, self.image_projector = Pool(adapter), Projector(adapter)

    def pooled(self, states: mx.array, index: np.ndarray) -> mx.array:
        return self.image_projector(self.image_pooling_2d(states, index))


class Molmo2(VisionLanguageModel):
    renames = (
        ("model.transformer.", "language_model.model."),
        ("model.vision_backbone.image_vit.transformer.resblocks.", "vision_tower.image_vit.transformer."),
        ("model.vision_backbone.", "vision_tower."),
        ("lm_head.", "language_model.lm_head."),
    )
    text_types = ("molmo2_text",)

    def __init__(self, config: dict[str, Any]):
        text = {"model_type": "molmo2_text"} | config["text_config"]
        tied = config.get("tie_word_embeddings", False)
        super().__init__(config, text | {"tie_word_embeddings": tied})
        vision, adapter = configurations(config)
        self.vision_tower = VisionTower(vision, adapter)
        self._patch = config.get("image_patch_id", 151938)

    @cached_property
    def embedding_rows(self) -> int:
        table = self.body.embed_tokens
        return len(table.embedding) + len(table.new_embedding)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """transformers cuts the table of tokens elsewhere than the Hub's originals."""
        out = super().sanitize(weights)
        names = [f"language_model.model.wte.{name}" for name in ("embedding", "new_embedding")]
        count = len(self.body.embed_tokens.embedding)
        if out.keys() >= set(names) and len(out[names[0]]) != count:
            table = mx.concatenate([out[name] for name in names])
            out |= {names[0]: table[:count], names[1]: table[count:]}
        return out

    def encode(self, media: Sequence[Media]) -> list[Features]:
        tower, side = self.vision_tower, self.vision_tower.side
        if media[0].kind == "video":
            index = pooling(np.arange(side**2).reshape(side, side), (media[0].grid[0], media[0].grid[1]))
            features = encode_squares(media, lambda frames: tower.pooled(tower.image_vit(frames), index))
        else:
            rows, columns, before, after, *pool = media[0].grid
            index = picture_pooling(side, (rows, columns), (before, after), (pool[0], pool[1]))
            states = encode_squares(media, tower.image_vit)
            features = tower.pooled(states.reshape(len(media), -1, states.shape[-1]), index)
        return [Features(rows) for rows in features.reshape(len(media), -1, features.shape[-1])]

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        """Features are added to their tokens. The tokens of media see each other, of whichever medium."""
        tokens = mx.array(prompt.tokens)[None]
        embeds = self.embed_tokens(tokens)
        if not features:
            return Embedded(tokens, embeds)
        places = np.flatnonzero(prompt.tokens == self._patch)
        added = mx.concatenate([medium.embeds for medium in features])
        if len(places) != len(added):
            raise ValueError(f"{len(added)} features for {len(places)} placeholders")
        embeds = embeds.at[0, mx.array(places)].add(added.astype(embeds.dtype))
        two_way = np.zeros((1, len(prompt.tokens)), np.int32)
        for medium in prompt.media:
            for start, end in medium.spans:
                two_way[0, start:end] = 1
        return Embedded(tokens, embeds, two_way=mx.array(two_way))


def configurations(config: Mapping[str, Any]) -> tuple[Molmo2VisionConfig, Molmo2AdapterConfig]:
    """The tower's and the adapter's. The Hub's originals name more layers than they hold: none past the last that the
    adapter takes. Conversions for MLX have an empty vision_config beside their vit_config."""
    adapter, vision = dict(config.get("adapter_config") or {}), dict(config.get("vit_config") or {})
    if vision:
        count = vision.get("num_hidden_layers", 25)
        taken = [layer % count for layer in Molmo2AdapterConfig.from_dict(adapter).vision_feature_layer]
        adapter |= {"vit_layers": taken}
        adapter.pop("vision_feature_layer", None)
        vision["num_hidden_layers"] = max(taken) + 1
    else:
        vision = config["vision_config"]
    made = Molmo2VisionConfig.from_dict(vision)
    if (
        made.head_dim * made.num_attention_heads != made.hidden_size
        or made.num_key_value_heads != made.num_attention_heads
    ):
        raise LoadError("Its tower's heads are not as wide as its states together, or share keys; expected neither.")
    return made, Molmo2AdapterConfig.from_dict(adapter)


def pooling(grid: np.ndarray, pool: tuple[int, int]) -> np.ndarray:
    """Numbers of patches (rows, columns) -> (n, pool rows * pool columns): those of each token, -1 for none. What is
    missing to whole tokens is missing at both sides."""
    lacking = [-length % size for length, size in zip(grid.shape, pool, strict=True)]
    grid = np.pad(grid, [(more // 2, more - more // 2) for more in lacking], constant_values=-1)
    rows, columns = (length // size for length, size in zip(grid.shape, pool, strict=True))
    return grid.reshape(rows, pool[0], columns, pool[1]).swapaxes(1, 2).reshape(rows * columns, -1)


def picture_pooling(side: int, tiling: tuple[int, int], margins: tuple[int, int], pool: tuple[int, int]) -> np.ndarray:
    """`pooling` of a picture's tokens, those of the whole first. Of patches that two tiles show, those of the tile
    count whose border is farther. side: patches a side of a tile. Source: transformers' Molmo2ImageProcessor."""
    (rows, columns), (before, after) = tiling, margins
    numbers = np.arange(rows * columns * side**2).reshape(rows, columns, side, side) + side**2

    def kept(tile: int, tiles: int) -> slice:
        return slice(before if tile else 0, side - after if tile < tiles - 1 else side)

    lines = [
        np.concatenate(
            [numbers[row, column, kept(row, rows), kept(column, columns)] for column in range(columns)], axis=1
        )
        for row in range(rows)
    ]
    whole = np.arange(side**2).reshape(side, side)
    return np.concatenate([pooling(whole, pool), pooling(np.concatenate(lines), pool)])
