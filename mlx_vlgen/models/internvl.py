"""InternVL 2, 3 and 3.5: InternViT on tiles, 2 x 2 patches folded into one feature, and Qwen, Llama, InternLM2 or
Phi-3.

Source: Chen et al. 2023 (arXiv 2312.14238) and Zhu et al. 2025 (arXiv 2504.10479); transformers'
InternVLForConditionalGeneration. Parameters have the names of the first releases (`internvl_chat`); conversions for MLX
keep those of the release that they are of.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media
from .attention import MLP, VisionAttention, join_qkv
from .base import Features
from .configuration import BaseConfig
from .internlm2 import llama_config, llama_name, split_qkv
from .layers import ACTIVATIONS, fold_squares, pace
from .vision_language import VisionLanguageModel, encode_tiles, tie_output
from .vit import PatchConv


@dataclass(frozen=True)
class InternVLVisionConfig(BaseConfig):
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int | Sequence[int] = 448
    patch_size: int | Sequence[int] = 14
    hidden_act: str = "gelu"
    norm_type: str = "layer_norm"
    layer_norm_eps: float = 1e-6
    attention_bias: bool = False
    use_qk_norm: bool = False

    old_names: ClassVar[Mapping[str, str]] = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"}


# (name, value) of every published checkpoint, and the default; other values are not computed here.
REQUIRED = (
    ("select_layer", -1),
    ("vision_feature_layer", -1),
    ("vision_feature_select_strategy", "default"),
    ("ps_version", "v2"),
)
REQUIRED_OF_TOWER = (("use_absolute_position_embeddings", True), ("use_mean_pooling", True))


def norm(config: InternVLVisionConfig) -> nn.Module:
    types = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}
    layer: nn.Module = types[config.norm_type](config.hidden_size, eps=config.layer_norm_eps)
    return layer


def side(size: int | Sequence[int]) -> int:
    """The side of a square, which configurations give as one number or as two."""
    return size if isinstance(size, int) else size[0]


class Layer(nn.Module):
    """Each half's result is scaled, channel by channel, before it is added."""

    def __init__(self, config: InternVLVisionConfig):
        super().__init__()
        hidden = config.hidden_size
        self.norm1, self.norm2 = norm(config), norm(config)
        self.attn = VisionAttention(
            hidden,
            config.num_attention_heads,
            linear=partial(nn.Linear, bias=config.attention_bias),
            norm=partial(nn.RMSNorm, eps=1e-6) if config.use_qk_norm else None,
        )
        self.mlp = MLP(hidden, config.intermediate_size, config.hidden_act)
        self.ls1, self.ls2 = mx.ones(hidden), mx.ones(hidden)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class Embeddings(nn.Module):
    def __init__(self, config: InternVLVisionConfig):
        super().__init__()
        hidden, patch = config.hidden_size, side(config.patch_size)
        self.class_embedding = mx.zeros((1, 1, hidden))
        self.patch_embedding = PatchConv(config.num_channels, hidden, patch, bias=True)
        self.position_embedding = mx.zeros((1, (side(config.image_size) // patch) ** 2 + 1, hidden))

    def __call__(self, pixels: mx.array) -> mx.array:
        patches = self.patch_embedding(pixels)
        first = mx.broadcast_to(self.class_embedding, (len(patches), 1, patches.shape[-1]))
        return mx.concatenate([first, patches], axis=1) + self.position_embedding


class Encoder(nn.Module):
    def __init__(self, config: InternVLVisionConfig):
        super().__init__()
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]


class InternViT(nn.Module):
    """pixels (B, H, W, 3) -> hidden states (B, 1 + N, d), the class token first."""

    def __init__(self, config: InternVLVisionConfig):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(config), Encoder(config)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            before, x = x, layer(x)
            pace(before, x)
        return x


class InternVL(VisionLanguageModel):
    text_types = ("qwen2", "qwen3", "qwen3_moe", "llama", "phi3")
    renames = (
        ("model.vision_tower.", "vision_model."),
        ("vision_tower.", "vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
    # Parts of names in transformers' releases, and the same in the first ones.
    parts = (
        ("multi_modal_projector.layer_norm.", "mlp1.0."),
        ("multi_modal_projector.linear_1.", "mlp1.1."),
        ("multi_modal_projector.linear_2.", "mlp1.3."),
        ("vision_model.encoder.layer.", "vision_model.encoder.layers."),
        (".embeddings.cls_token", ".embeddings.class_embedding"),
        (".embeddings.position_embeddings", ".embeddings.position_embedding"),
        (".embeddings.patch_embeddings.projection.", ".embeddings.patch_embedding."),
        (".attention.projection_layer.", ".attn.proj."),
        (".attention.", ".attn."),
        (".layernorm_before.", ".norm1."),
        (".layernorm_after.", ".norm2."),
        (".lambda_", ".ls"),
    )

    def __init__(self, config: dict[str, Any]):
        text = config.get("text_config") or config["llm_config"]
        if text.get("model_type") == "internlm2":
            text = llama_config(text)
        config = config | {"text_config": text}
        vision = InternVLVisionConfig.from_dict(config["vision_config"])
        _check(config, REQUIRED)
        _check(config["vision_config"], REQUIRED_OF_TOWER)
        super().__init__(config, text | {"tie_word_embeddings": False})  # see `tie_output`
        self._tied = text.get("tie_word_embeddings", False) or config.get("tie_word_embeddings", False)
        self._fold = round(1 / config.get("downsample_ratio", 0.5))
        inner, outer = vision.hidden_size * self._fold**2, self.hidden_size
        self._activation = ACTIVATIONS[config.get("projector_hidden_act", "gelu")]
        self.vision_model = InternViT(vision)
        self.mlp1 = [nn.LayerNorm(inner), nn.Linear(inner, outer), nn.Identity(), nn.Linear(outer, outer)]

    def encode(self, media: Sequence[Media]) -> list[Features]:
        return encode_tiles(media, self.encode_pixels)

    def encode_pixels(self, tiles: mx.array) -> mx.array:
        """(B, H, W, 3) -> (B, n, d) for the text decoder."""
        patches = self.vision_model(tiles)[:, 1:]
        batch, count, hidden = patches.shape
        rows = math.isqrt(count)
        squares = fold_squares(patches.reshape(batch, rows, rows, hidden), self._fold)
        layer_norm, first, _, second = self.mlp1
        return second(self._activation(first(layer_norm(squares))))

    @classmethod
    def rename(cls, key: str) -> str | None:
        name = super().rename(key)
        if name is None or name.startswith("language_model."):
            return name and "language_model." + llama_name(name.removeprefix("language_model."))
        for old, new in cls.parts:
            name = name.replace(old, new)
        return name

    def published(self, name: str) -> tuple[str, ...]:
        """In transformers' names where config.json is transformers', queries, keys and values apart."""
        if self.config["model_type"] != "internvl" or name.startswith("language_model."):
            return (name,)
        name += "."  # a layer's name may be all of a part
        for old, new in self.parts:
            name = name.replace(new, old)
        name = name.replace("vision_model.", "vision_tower.").removesuffix(".")
        is_fused = ".attention.qkv" in name
        return tuple(name.replace(".qkv", f".{part}_proj") for part in "qkv") if is_fused else (name,)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Queries, keys and values of the tower as one; those of InternLM2 apart."""
        text = self.driver.arguments
        weights = split_qkv(weights, text["num_attention_heads"], text["num_key_value_heads"])
        out = join_qkv(super().sanitize(weights), ".attn.")
        return tie_output(self.language_model, self._tied, out)


def _check(config: Mapping[str, Any], required: Sequence[tuple[str, Any]]) -> None:
    for name, value in required:
        if (stated := config.get(name, value)) != value:
            raise LoadError(f"This InternVL checkpoint has {name} = {stated!r}; only {value!r} is computed here.")
