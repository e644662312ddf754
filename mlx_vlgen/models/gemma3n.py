"""Gemma 3n: MobileNetV5, the audio tower of the Universal Speech Model, and a text decoder of several streams. The ends
of pictures and clips are tokens of the towers' vocabularies.

Source: transformers' Gemma3nForConditionalGeneration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media
from .attention import linear_without_bias
from .base import Features
from .configuration import BaseConfig
from .gemma4_text import Gemma4Decoder
from .mobilenetv5 import FEATURES, MobileNetV5, MobileNetV5Config
from .usm import ConformerConfig, ConformerLayer, run_layers
from .vision_language import encode_tiles
from .whisper import join_clips


@dataclass(frozen=True)
class Gemma3nAudioConfig(ConformerConfig):
    old_names: ClassVar[Mapping[str, str]] = {
        f"conf_{name}": name
        for name in (
            "num_hidden_layers", "num_attention_heads", "residual_weight", "conv_kernel_size", "attention_chunk_size",
            "attention_context_left", "attention_context_right", "attention_logit_cap",
        )
    } | {"conf_reduction_factor": "reduction_factor"}  # fmt: skip

    hidden_size: int = 1536
    input_feat_size: int = 128
    reduction_factor: int = 4
    sscp_conv_channel_size: Sequence[int] = (128, 32)
    sscp_conv_group_norm_eps: float = 1e-3

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """LoadError for other convolutions than the published ones, and where positions see later ones."""
        config = super().from_dict(values)
        for name, expected in (("kernel", 3), ("stride", 2)):
            sizes = values.get(f"sscp_conv_{name}_size", [[expected] * 2] * 2)
            if [list(size) for size in sizes] != [[expected] * 2] * 2:
                raise LoadError(
                    f"This checkpoint's audio tower has sscp_conv_{name}_size {sizes}; expected {expected}."
                )
        if config.attention_context_right:
            raise LoadError("This checkpoint's audio tower has conf_attention_context_right; computed is none.")
        return config


class CumulativeNorm(nn.Module):
    """By mean and deviation of all bands and channels up to each step of time."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.weight = mx.ones((channels,))
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, bands, C) -> the same."""
        states, (length, bands, channels) = x.astype(mx.float32), x.shape[1:]
        count = (mx.arange(1, length + 1) * (bands * channels))[:, None, None]
        apart = states - states.sum(axis=(2, 3), keepdims=True).cumsum(axis=1) / count
        variance = (apart * apart).sum(axis=(2, 3), keepdims=True).cumsum(axis=1) / count
        return (apart * mx.rsqrt(variance + self._eps) * self.weight).astype(x.dtype)


class Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int, eps: float):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, bias=False)
        self.norm = CumulativeNorm(outputs, eps)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, bands, C), with silence after the last step and beside the bands."""
        return nn.relu(self.norm(self.conv(mx.pad(x, [(0, 0), (0, 2), (1, 1), (0, 0)]))))


class Subsampling(nn.Module):
    def __init__(self, config: Gemma3nAudioConfig):
        super().__init__()
        (first, second), eps = config.sscp_conv_channel_size, config.sscp_conv_group_norm_eps
        self.conv_0, self.conv_1 = Convolution(1, first, eps), Convolution(first, second, eps)
        self.input_proj_linear = linear_without_bias(-(-config.input_feat_size // 4) * second, config.hidden_size)

    def __call__(self, features: mx.array) -> mx.array:
        """(B, frames, bands) -> (B, frames / 4, d)."""
        x = features[..., None].astype(self.conv_0.conv.weight.dtype)
        return self.input_proj_linear(self.conv_1(self.conv_0(x)).flatten(2))


class AudioTower(nn.Module):
    def __init__(self, config: Gemma3nAudioConfig):
        super().__init__()
        self.subsample_conv_projection = Subsampling(config)
        reach, linear = config.attention_context_left - 1, linear_without_bias
        self.conformer = [ConformerLayer(config, linear, reach, 1.0) for _ in range(config.num_hidden_layers)]
        self._step = config.reduction_factor

    def __call__(self, features: mx.array) -> mx.array:
        """Clips (B, frames, bands) without padding -> (B, frames / 16, d)."""
        return run_layers(self.conformer, self.subsample_conv_projection(features))[:, :: self._step]


PUBLISHED = (
    (".self_attn.relative_k_proj.", ".attention.attn.relative_position_embedding.pos_proj."),
    (".self_attn.post.", ".attention.post."),
    (".self_attn.", ".attention.attn."),
    (".norm_pre_attn.", ".attention.pre_attn_norm."),
    (".norm_post_attn.", ".attention.post_norm."),
    (".feed_forward1.", ".ffw_layer_start."),
    (".feed_forward2.", ".ffw_layer_end."),
    (".norm_out.", ".norm."),
)
"""Parts of names in the conformer: of the parameters here, and of checkpoints."""
CONFORMER = "audio_tower.conformer."


class VisionTower(nn.Module):
    def __init__(self, config: MobileNetV5Config):
        super().__init__()
        self.timm_model = MobileNetV5(config)


@dataclass(frozen=True)
class EmbedderConfig(BaseConfig):
    """Of a vision_config or an audio_config. vocab_offset: the first token of the tower's vocabulary."""

    hidden_size: int
    vocab_offset: int
    vocab_size: int = 128
    rms_norm_eps: float = 1e-6


class Embedder(nn.Module):
    """A tower's features, and tokens of its vocabulary, as embeddings of the text decoder."""

    def __init__(self, config: EmbedderConfig, text: int):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.embedding = nn.Embedding(config.vocab_size, hidden)
        self.hard_embedding_norm, self.soft_embedding_norm = nn.RMSNorm(hidden, eps), nn.RMSNorm(hidden, eps)
        self.embedding_projection = linear_without_bias(hidden, text)
        self._eps, self._first, self._count = eps, config.vocab_offset, config.vocab_size

    def tokens(self, tokens: mx.array) -> mx.array:
        """Ids (...) -> (..., d), anything for those of no row."""
        rows = mx.clip(tokens - self._first, 0, self._count - 1)
        return self._project(self.hard_embedding_norm(self.embedding(rows)))

    def features(self, x: mx.array) -> mx.array:
        return self._project(self.soft_embedding_norm(x))

    def _project(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(self.embedding_projection(x), None, self._eps)


class Gemma3n(Gemma4Decoder):
    text_types = ("gemma3n_text",)
    renames = (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.audio_tower.", "audio_tower."),
        ("model.embed_vision.", "embed_vision."),
        ("model.embed_audio.", "embed_audio."),
        ("lm_head.", "language_model.lm_head."),
    )
    unused = r"^language_model\.(lm_head\.|model\.layers\.\d+\.self_attn\.[kv]_)"  # of layers that share others' keys

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        vision, audio = config["vision_config"], config["audio_config"]
        tower, sound = MobileNetV5Config.read(vision), Gemma3nAudioConfig.from_dict(audio)
        self.vision_tower, self.audio_tower = VisionTower(tower), AudioTower(sound)
        seen = EmbedderConfig.from_dict({"hidden_size": FEATURES, "vocab_offset": 262_144} | dict(vision))
        heard = EmbedderConfig.from_dict({"hidden_size": sound.hidden_size, "vocab_offset": 262_272} | dict(audio))
        self.embed_vision, self.embed_audio = Embedder(seen, self.hidden_size), Embedder(heard, self.hidden_size)
        self._seen, self._heard = seen.vocab_offset, heard.vocab_offset
        self._clip_tokens = config.get("audio_soft_tokens_per_image", 188)

    @classmethod
    def rename(cls, key: str) -> str | None:
        name = super().rename(key)
        if name is not None and name.startswith(CONFORMER):
            name += "."  # a layer's name may be all of a part
            for here, there in PUBLISHED:
                name = name.replace(there, here)
            name = name.removesuffix(".")
        return name

    def published(self, name: str) -> tuple[str, ...]:
        if name.startswith(CONFORMER):
            name += "."
            for here, there in PUBLISHED:
                if here in name:
                    name = name.replace(here, there)
                    break
            name = name.removesuffix(".")
        return (name,)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The first convolution is (O, 3, 3, 3) with channels first and last; in which of both it is, others tell."""
        out = super().sanitize(weights)
        later = "vision_tower.timm_model.blocks.0.0.conv_exp.weight"
        if any(self.rename(key) == later and value.shape[-1] != out[later].shape[-1] for key, value in weights.items()):
            first = "vision_tower.timm_model.conv_stem.conv.weight"
            out[first] = out[first].moveaxis(1, -1)
        return out

    def encode(self, media: Sequence[Media]) -> list[Features]:
        if media[0].kind == "audio":
            features = self.embed_audio.features(self.audio_tower(join_clips(media)))
            return [Features(self._filled(clip)) for clip in features]
        # A picture of 768 x 768 pixels has states of 0.1 GB in float32.
        return encode_tiles(media, self._see, at_once=1)

    def _see(self, pixels: mx.array) -> mx.array:
        x = self.vision_tower.timm_model(pixels)
        return self.embed_vision.features(x.flatten(1, 2) * x.shape[-1] ** 0.5)

    def _filled(self, clip: mx.array) -> mx.array:
        """Features (n, d) and what stands for silence after them: as many as every clip has."""
        missing = self._clip_tokens - len(clip)
        silence = self.embed_audio.tokens(mx.array([self.language_model.args.vocab_size - 1]))
        return mx.concatenate([clip, mx.broadcast_to(silence, (missing, clip.shape[-1]))])

    def _pad_media_tokens(self, tokens: mx.array) -> mx.array:
        """The tokens with padding in the places of those that have no embedding for each layer."""
        return mx.where(tokens < self.language_model.args.vocab_size_per_layer_input, tokens, 0)

    def embed_tokens(self, tokens: mx.array) -> mx.array:
        """Tokens of the towers' vocabularies by other embeddings."""
        embeds = self.driver.embed(self.language_model, tokens)
        if "weight" not in self.embed_vision.embedding:  # of a checkpoint that only reads
            return embeds
        is_seen, is_heard = (tokens >= self._seen) & (tokens < self._heard), tokens >= self._heard
        embeds = mx.where(is_seen[..., None], self.embed_vision.tokens(tokens).astype(embeds.dtype), embeds)
        return mx.where(is_heard[..., None], self.embed_audio.tokens(tokens).astype(embeds.dtype), embeds)

    def expand(self, embeds: mx.array) -> mx.array:
        return self.body.expand(embeds)

    def collapse(self, h: mx.array) -> mx.array:
        return self.body.collapse(h)
