"""PaddleOCR-VL: a SigLIP tower for pictures of any size, and ERNIE 4.5 with M-RoPE.

Source: Cui et al. 2025 (arXiv 2510.14528); transformers' PaddleOCRVLForConditionalGeneration. Parameter names are, but
for the tower's, those of checkpoints converted for MLX.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._runtime import mx, nn
from ..inputs.prompt import Normalization
from .attention import MLP, PROJECTOR, Frames, VisionAttention, join_qkv
from .configuration import BaseConfig, with_rope
from .grids import Grids
from .layers import PositionTable, embed_patches, merge_order, pace, reading_order, resample_bilinear, rotary_2d
from .mrope import MRopeModel
from .vision_language import tie_output
from .vit import SiglipVisionConfig


@dataclass(frozen=True)
class PaddleOCRVisionConfig(SiglipVisionConfig):
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 384
    patch_size: int = 14
    spatial_merge_size: int = 2
    rope_parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class PaddleOCRTextConfig(BaseConfig):
    vocab_size: int = 103424
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 18
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    use_bias: bool = False
    tie_word_embeddings: bool = True


class PatchConv(nn.Conv2d):
    """Patches (B, N, values) of a picture: see `embed_patches`."""

    def __init__(self, channels: int, hidden: int, patch: int):
        super().__init__(channels, hidden, patch, stride=patch)  # weight (O, P, P, C)

    def __call__(self, patches: mx.array, normalization: Normalization | None = None) -> mx.array:
        return embed_patches(self.weight[:, None], patches, normalization) + self.bias


class Embeddings(nn.Module):
    def __init__(self, config: PaddleOCRVisionConfig):
        super().__init__()
        hidden, patch = config.hidden_size, config.patch_size
        self._side = config.image_size // patch
        self.patch_embedding = PatchConv(config.num_channels, hidden, patch)
        self.position_embedding = PositionTable(self._side**2, hidden)

    def __call__(self, pixels: mx.array, grids: Grids, normalization: Normalization | None) -> mx.array:
        table = self.position_embedding.weight.reshape(self._side, self._side, -1)

        def add(x: mx.array, rows: int, columns: int) -> mx.array:
            return x + resample_bilinear(table, rows, columns).reshape(rows * columns, -1)

        return grids.map(self.patch_embedding(pixels, normalization), add)


class EncoderLayer(nn.Module):
    def __init__(self, config: PaddleOCRVisionConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(hidden, eps=eps), nn.LayerNorm(hidden, eps=eps)
        self.self_attn = VisionAttention(hidden, config.num_attention_heads, ("qkv", "out_proj"))
        self.mlp = MLP(hidden, config.intermediate_size, config.hidden_act)

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array, frames: Frames) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x), cos, sin, frames)
        return x + self.mlp(self.layer_norm2(x))


class Projector(MLP):
    """merge x merge neighbouring patches to one token of the text model."""

    def __init__(self, hidden: int, joined: int, out: int):
        super().__init__(joined, joined, "gelu", PROJECTOR, outputs=out)
        self.pre_norm = nn.LayerNorm(hidden, eps=1e-5)
        self._joined = joined

    def __call__(self, x: mx.array) -> mx.array:  # (B, N, d) in merge order -> (B, N / merge^2, out)
        return super().__call__(self.pre_norm(x).reshape(len(x), -1, self._joined))


class VisionTower(nn.Module):
    """Patches come in reading order."""

    def __init__(self, config: PaddleOCRVisionConfig, out: int):
        super().__init__()
        hidden = config.hidden_size
        self.merge, self.head_size = config.spatial_merge_size, hidden // config.num_attention_heads
        self._theta = (config.rope_parameters or {}).get("rope_theta", 10000.0)
        self.embeddings = Embeddings(config)
        self.layers = [EncoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.post_layernorm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.projector = Projector(hidden, hidden * self.merge**2, out)

    def __call__(
        self, pixels: mx.array, grids: Grids, normalization: Normalization | None = None
    ) -> tuple[mx.array, list[mx.array]]:
        cos, sin = rotary_2d(grids.places(reading_order), self.head_size, self._theta)
        x = self.embeddings(pixels, grids, normalization)
        for layer in self.layers:
            before, x = x, layer(x, cos, sin, grids.frames)
            pace(before, x)
        return self.projector(grids.map(self.post_layernorm(x), self._in_merge_order)), []

    def _in_merge_order(self, x: mx.array, rows: int, columns: int) -> mx.array:
        row, column = merge_order(rows, columns, self.merge)
        return x[:, mx.array(row * columns + column)]


class PaddleOCRVL(MRopeModel):
    renames = (
        ("model.projector.", "vision_tower.projector."),
        ("mlp_AR.", "vision_tower.projector."),
        *(
            (f"{model}visual.{part}", "vision_tower.")
            for model in ("model.", "")
            for part in ("vision_model.encoder.", "vision_model.", "")
        ),
        ("model.language_model.", "language_model.model."),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        text = text_arguments(config)
        vision = PaddleOCRVisionConfig.from_dict(config["vision_config"])
        super().__init__(
            config, text | {"tie_word_embeddings": False},  # see `tie_output`
            VisionTower(vision, text["hidden_size"]), (16, 24, 24), interleaved=False,
        )  # fmt: skip
        self._tied = text["tie_word_embeddings"]

    @classmethod
    def rename(cls, key: str) -> str | None:
        """The first release holds a second table of positions, which is not used."""
        return None if "packing_position_embedding" in key else super().rename(key)

    def published(self, name: str) -> tuple[str, ...]:
        return (name.replace("vision_tower.", "visual.", 1),)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Queries, keys and values as one."""
        out = join_qkv(super().sanitize(weights), "self_attn.")
        return tie_output(self.language_model, self._tied, out)


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text decoder's configuration: nested, or, as the Hub's originals have it, among the model's fields. There
    transformers takes it for tied, whatever it says."""
    nested = config.get("text_config") or {}
    text = with_rope(PaddleOCRTextConfig.complete(nested or config), 500_000.0)
    return text | {
        "model_type": "ernie4_5",
        "head_dim": text["head_dim"] or text["hidden_size"] // text["num_attention_heads"],
        "tie_word_embeddings": config.get("tie_word_embeddings", True) or nested.get("tie_word_embeddings", True),
    }
