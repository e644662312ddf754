"""ERNIE 4.5 VL: text and pictures share attention, and each have experts.

Source: the ERNIE 4.5 technical report, Baidu 2025; transformers' Ernie4_5_VLMoeForConditionalGeneration. Parameter
names are those of checkpoints converted for MLX.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal

import numpy as np

from .._mlx_lm import SwitchGLU
from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media, Normalization, Prompt
from .attention import GATED, MLP, VisionAttention
from .backbone import decode
from .base import Embedded, Features
from .configuration import BaseConfig, with_rope
from .grids import Grids
from .layers import GELU, embed_patches, merge_order, pace, rotary_2d
from .mrope import MRopeModel, MRopeVisionConfig, VisionBlock, cut_features
from .vision_language import join_pixels, tie_output


@dataclass(frozen=True)
class ErnieVisionConfig(MRopeVisionConfig):
    hidden_size: int = 1280
    intermediate_size: int = 4 * 1280
    hidden_act: str = "quick_gelu"
    rms_norm_eps: float = 1e-6
    temporal_merge_size: int = 2
    rope_parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ErnieTextConfig(BaseConfig):
    vocab_size: int = 103424
    hidden_size: int = 2560
    intermediate_size: int = 12288
    num_hidden_layers: int = 28
    num_attention_heads: int = 20
    num_key_value_heads: int = 4
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    use_bias: bool = False
    tie_word_embeddings: bool = True
    moe_intermediate_size: Sequence[int] | None = None
    moe_k: int = 6
    moe_num_experts: int = 64
    moe_num_shared_experts: int = 2
    moe_norm_min: float = 1e-12
    mlp_layer_types: Sequence[str] | None = None


@dataclass(frozen=True)
class VisionTokens(BaseConfig):
    """Ids of the tokens that go to the experts for pictures."""

    image_token_id: int = 100295
    image_start_token_id: int = 101304
    image_end_token_id: int = 101305
    video_token_id: int = 103367
    video_start_token_id: int = 101306
    video_end_token_id: int = 101307


# The tower.


class PatchEmbedding(nn.Module):
    def __init__(self, channels: int, patch: int, hidden: int):
        super().__init__()
        self._shape = channels, patch, patch
        self.proj = nn.Linear(channels * patch**2, hidden, bias=False)

    def __call__(self, patches: mx.array, normalization: Normalization | None) -> mx.array:
        kernel = self.proj.weight.reshape(-1, *self._shape).transpose(0, 2, 3, 1)
        return embed_patches(kernel[:, None], patches, normalization)


def vision_block(config: ErnieVisionConfig) -> VisionBlock:
    hidden = config.hidden_size
    mlp = MLP(hidden, config.intermediate_size, config.hidden_act)
    norm = partial(nn.LayerNorm, hidden, eps=config.rms_norm_eps)
    return VisionBlock(norm, VisionAttention(hidden, config.num_heads), mlp)


class VisionTower(nn.Module):
    def __init__(self, config: ErnieVisionConfig):
        super().__init__()
        self.merge, self.head_size = config.spatial_merge_size, config.hidden_size // config.num_heads
        self._theta = (config.rope_parameters or {}).get("rope_theta", 10000.0)
        self.patch_embed = PatchEmbedding(config.in_channels, config.patch_size, config.hidden_size)
        self.blocks = [vision_block(config) for _ in range(config.depth)]
        self.ln = nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, pixels: mx.array, grids: Grids, normalization: Normalization | None = None) -> mx.array:
        """Frames one after another (1, N, patch), each in merge order -> (1, N, d)."""
        cos, sin = rotary_2d(grids.places(partial(merge_order, merge=self.merge)), self.head_size, self._theta)
        x = self.patch_embed(pixels, normalization)
        for block in self.blocks:
            before, x = x, block(x, cos, sin, grids.frames)
            pace(before, x)
        return self.ln(x)


def _two_layers(inputs: int, outputs: int, eps: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, outputs), GELU(), nn.Linear(outputs, outputs), nn.LayerNorm(outputs, eps=eps)
    )


class Resampler(nn.Module):
    """merge x merge neighbouring patches of two frames to one token of the text model; a picture is both frames."""

    def __init__(self, config: ErnieVisionConfig, out: int, eps: float):
        super().__init__()
        self._joined = config.hidden_size * config.spatial_merge_size**2
        self.spatial_linear = _two_layers(self._joined, self._joined, config.rms_norm_eps)
        self.temporal_linear = _two_layers(2 * self._joined, self._joined, config.rms_norm_eps)
        self.mlp = nn.Linear(self._joined, out)
        self.after_norm = nn.RMSNorm(out, eps=eps)

    def __call__(self, x: mx.array) -> mx.array:  # (B, T, N, d) in merge order -> (B, T / 2 * N / merge^2, out)
        batch, frames = x.shape[:2]
        x = self.spatial_linear(x.reshape(batch, frames, -1, self._joined))
        pairs = max(1, frames // 2)
        first, second = (x[:, index : index + 2 * pairs - 1 : 2] for index in (0, min(1, frames - 1)))
        x = self.temporal_linear(mx.concatenate([first, second], axis=-1))
        return self.after_norm(self.mlp(x)).reshape(batch, -1, self.after_norm.weight.shape[0])


# The text decoder.


@dataclass(frozen=True)
class Routes:
    """The tokens of a forward, all rows' in one: indices of those of text and of those of pictures, and where each
    stands when the second come after the first."""

    text: mx.array
    vision: mx.array
    places: mx.array


def routes(token_types: np.ndarray | None) -> Routes | None:
    """token_types: see `Embedded`. None where all are text."""
    if token_types is None or not token_types.any():
        return None
    vision = token_types.reshape(-1) > 0
    order = np.argsort(vision, kind="stable")
    count = int(len(vision) - vision.sum())
    return Routes(mx.array(order[:count]), mx.array(order[count:]), mx.array(np.argsort(order)))


Experts = Literal["", "_1"]
"""Those for text, and those for pictures, whose layers' names end so."""


class MixtureOfExperts(nn.Module):
    def __init__(self, text: Mapping[str, Any]):
        super().__init__()
        hidden, count, inner = text["hidden_size"], text["moe_num_experts"], text["moe_intermediate_size"]
        self._top_k, self._norm_min = text["moe_k"], text["moe_norm_min"]
        self.gate, self.gate_1 = (nn.Linear(hidden, count, bias=False) for _ in range(2))
        self.e_score_correction_bias, self.e_score_correction_bias_1 = mx.zeros(count), mx.zeros(count)
        self.switch_mlp, self.switch_mlp_1 = (SwitchGLU(hidden, size, count) for size in inner)
        if shared := text["moe_num_shared_experts"]:
            linear = partial(nn.Linear, bias=text["use_bias"])
            self.shared_experts = MLP(hidden, inner[0] * shared, "silu", GATED, linear)

    def __call__(self, x: mx.array, route: Routes | None) -> mx.array:
        flat = x.reshape(-1, x.shape[-1])
        if route is None:
            out = self._routed(flat, "")
        else:
            parts: list[tuple[mx.array, Experts]] = [(route.text, ""), (route.vision, "_1")]
            out = mx.concatenate([self._routed(flat[index], experts) for index, experts in parts if index.size])
            out = out[route.places]
        out = out.reshape(x.shape)
        return out + self.shared_experts(x) if "shared_experts" in self else out

    def _routed(self, x: mx.array, experts: Experts) -> mx.array:
        """(N, d). A bias, which balanced the experts' load in training, takes part in the choice and not in the
        weights. All in float32, as in transformers, for half precision may choose other experts."""
        scores = mx.softmax(self[f"gate{experts}"](x.astype(mx.float32)), axis=-1)
        biased = scores + self[f"e_score_correction_bias{experts}"]
        chosen = mx.argpartition(-biased, kth=self._top_k - 1, axis=-1)[..., : self._top_k]
        weights = mx.take_along_axis(scores, chosen, axis=-1)
        weights = weights / mx.maximum(weights.sum(axis=-1, keepdims=True), self._norm_min)
        out = self[f"switch_mlp{experts}"](x, chosen)
        return (out * weights[..., None].astype(out.dtype)).sum(axis=-2)


class DecoderLayer(nn.Module):
    """One of mlx-lm's dense layers, with experts in the place of its MLP where it is sparse."""

    def __init__(self, dense: nn.Module, text: Mapping[str, Any], sparse: bool):
        super().__init__()
        self.self_attn = dense.self_attn
        self.mlp = MixtureOfExperts(text) if sparse else dense.mlp
        self.input_layernorm, self.post_attention_layernorm = dense.input_layernorm, dense.post_attention_layernorm

    def __call__(self, x: mx.array, route: Routes | None, mask: Any = None, cache: Any = None) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        h = self.post_attention_layernorm(x)
        return x + (self.mlp(h, route) if isinstance(self.mlp, MixtureOfExperts) else self.mlp(h))


def is_no_router(name: str, module: nn.Module | None = None) -> bool:
    """Which parameters may be narrowed, and layers quantized: rounded routers may choose other experts."""
    return re.search(r"\.mlp\.(gate|e_score_correction_bias)(_1)?(\.|$)", name) is None


def rotary_axes(section: Sequence[int]) -> np.ndarray:
    """The axis that turns each frequency: rows and columns in turn, then time. section: how many each has."""
    return np.array([*[1, 2] * section[0], *[0] * section[2]])


class Ernie4_5VLMoe(MRopeModel):
    renames = (
        ("model.vision_model.", "vision_tower."),
        ("vision_model.", "vision_tower."),
        ("model.resampler_model.", "resampler_model."),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        text, vision = text_arguments(config), ErnieVisionConfig.from_dict(config["vision_config"])
        if vision.temporal_merge_size != 2:
            raise LoadError(
                f"This checkpoint joins {vision.temporal_merge_size} frames (temporal_merge_size); only 2 is computed "
                "here."
            )
        super().__init__(
            config, text | {"tie_word_embeddings": False},  # see `tie_output`
            VisionTower(vision), (22, 22, 20), interleaved=False, traditional=True, axes=rotary_axes,
        )  # fmt: skip
        self._tied = text["tie_word_embeddings"]
        self._vision_tokens = list(vars(VisionTokens.from_dict(config)).values())
        self._experts = text["moe_num_experts"]
        self.language_model.cast_predicate = self.language_model.quant_predicate = is_no_router
        self.resampler_model = Resampler(vision, text["hidden_size"], text["rms_norm_eps"])
        self.body.layers = [
            DecoderLayer(layer, text, kind == "sparse")
            for layer, kind in zip(self.body.layers, text["mlp_layer_types"], strict=True)
        ]

    def encode(self, media: Sequence[Media]) -> list[Features]:
        pixels, grids = join_pixels(media), Grids.of(medium.grid for medium in media)
        x = self.vision_tower(pixels.reshape(1, len(pixels), -1), grids, media[0].normalization)
        start, parts = 0, []
        for (frames, *_), same in groupby(media, key=lambda m: m.grid if m.grid[0] > 1 else (1,)):
            grids_of_run = [medium.grid for medium in same]
            end = start + sum(map(math.prod, grids_of_run))
            batch = len(grids_of_run) if frames > 1 else 1  # pictures lie beside each other
            part = self.resampler_model(x[0, start:end].reshape(batch, frames, -1, x.shape[-1]))
            parts.append(part.flatten(0, 1))
            start = end
        unit = self.vision_tower.merge**2
        counts = [max(1, m.grid[0] // 2) * m.grid[1] * m.grid[2] // unit for m in media]
        return [Features(part) for part in cut_features(mx.concatenate(parts), counts)]

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        """A token that a row draws is text, whichever it is."""
        types = np.isin(prompt.tokens, self._vision_tokens)[None]
        return replace(super().embed(prompt, features), token_types=types.astype(np.int32))

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        offset, extra = self._rope.offset(inputs, cache), (routes(inputs.token_types),)
        h = decode(self.body, inputs, cache, at, offset, extra_inputs=extra)
        return self.driver.logits(self.language_model, h)

    @classmethod
    def rename(cls, key: str) -> str | None:
        name = super().rename(key)
        return name and re.sub(r"(spatial|temporal)_linear\.(\d)\.", r"\1_linear.layers.\2.", name)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The experts for pictures come after those for text, and gates as (d, E)."""
        out = super().sanitize(weights)
        for key in [key for key in out if key.endswith(".mlp.gate.weight_1")]:
            mlp = key.removesuffix("gate.weight_1")
            out[f"{mlp}gate.weight"] = out[f"{mlp}gate.weight"].T
            out[f"{mlp}gate_1.weight"] = out.pop(key).T
            biases = out.pop(f"{mlp}moe_statics.e_score_correction_bias")
            out[f"{mlp}e_score_correction_bias"], out[f"{mlp}e_score_correction_bias_1"] = biases
            for first, experts in ((0, "switch_mlp"), (self._experts, "switch_mlp_1")):
                for name in GATED:
                    numbers = range(first, first + self._experts)
                    parts = [out.pop(f"{mlp}experts.{number}.{name}.weight") for number in numbers]
                    out[f"{mlp}{experts}.{name}.weight"] = mx.stack(parts)
        return tie_output(self.language_model, self._tied, out)


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text decoder's configuration."""
    text = with_rope(ErnieTextConfig.complete(config.get("text_config") or {}), 500_000.0)
    return text | {
        "model_type": "ernie4_5",
        "head_dim": text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
        "tie_word_embeddings": config.get("tie_word_embeddings", True) or text["tie_word_embeddings"],
        "moe_intermediate_size": text["moe_intermediate_size"] or [1536, 512],
        "mlp_layer_types": text["mlp_layer_types"] or ["dense", *["sparse"] * (text["num_hidden_layers"] - 1)],
    }
