"""Molmo2's text decoder: like Qwen3, or like OLMo 2, whose norms come after attention and MLP.

Source: transformers' Molmo2TextModel. Parameter names are those of the Hub's originals.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .._mlx_lm import KVCache
from .._runtime import mx, nn
from . import refusals
from .attention import merge_heads, split_heads
from .backbone import TextDecoder
from .configuration import BaseConfig
from .decoders import Decoder
from .layers import ACTIVATIONS
from .text_attention import text_attention


@dataclass(frozen=True)
class Molmo2TextConfig(BaseConfig):
    hidden_size: int = 4096
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151936
    additional_vocab_size: int = 128
    attention_bias: bool = False
    qk_norm_type: str = "qwen3"
    num_hidden_layers: int = 36
    intermediate_size: int = 12288
    hidden_act: str = "silu"
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    norm_after: bool = False

    old_names: ClassVar[Mapping[str, str]] = {"qkv_bias": "attention_bias", "layer_norm_eps": "rms_norm_eps"}


class TokenTable(nn.Module):
    """Embeddings in two tables, the second of tokens that are read and never written."""

    def __init__(self, config: Molmo2TextConfig):
        super().__init__()
        self.embedding = mx.zeros((config.vocab_size, config.hidden_size))
        self.new_embedding = mx.zeros((config.additional_vocab_size, config.hidden_size))

    def __call__(self, tokens: mx.array) -> mx.array:
        count = len(self.embedding)
        new = tokens >= count
        first, second = self.embedding[mx.where(new, 0, tokens)], self.new_embedding[mx.where(new, tokens - count, 0)]
        return mx.where(new[..., None], second, first)


class Attention(nn.Module):
    def __init__(self, config: Molmo2TextConfig):
        super().__init__()
        size, hidden, eps = config.head_dim, config.hidden_size, config.rms_norm_eps
        self.heads, self.groups, self.scale = config.num_attention_heads, config.num_key_value_heads, size**-0.5
        self.per_head = config.qk_norm_type == "qwen3"
        widths = (self.heads * size, self.groups * size)
        self._ends = (widths[0], sum(widths))
        self.att_proj = nn.Linear(hidden, widths[0] + 2 * widths[1], bias=config.attention_bias)
        self.attn_out = nn.Linear(widths[0], hidden, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(size if self.per_head else width, eps) for width in widths)
        self.rope = nn.RoPE(size, base=config.rope_theta)

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array:
        q, k, v = mx.split(self.att_proj(x), self._ends, axis=-1)
        if not self.per_head:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = split_heads(q, self.heads), split_heads(k, self.groups), split_heads(v, self.groups)
        if self.per_head:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self.rope(q, offset=cache.offset), self.rope(k, offset=cache.offset)
        k, v = cache.update_and_fetch(k, v)
        return self.attn_out(merge_heads(text_attention(q, k, v, cache, self.scale, mask)))


class FeedForward(nn.Module):
    def __init__(self, config: Molmo2TextConfig):
        super().__init__()
        self.ff_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.ff_out = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self._activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        up, gate = mx.split(self.ff_proj(x), 2, axis=-1)
        return self.ff_out(self._activation(gate) * up)


class Layer(nn.Module):
    def __init__(self, config: Molmo2TextConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn, self.mlp = Attention(config), FeedForward(config)
        self.attn_norm, self.ff_norm = nn.RMSNorm(hidden, eps), nn.RMSNorm(hidden, eps)
        self.norm_after = config.norm_after

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array:
        if self.norm_after:
            x = x + self.attn_norm(self.self_attn(x, mask, cache))
            return x + self.ff_norm(self.mlp(x))
        x = x + self.self_attn(self.attn_norm(x), mask, cache)
        return x + self.mlp(self.ff_norm(x))


class Body(nn.Module):
    """Embeddings, layers and last norm by their names on the Hub, and by those that `backbone` runs."""

    def __init__(self, config: Molmo2TextConfig):
        super().__init__()
        self.wte = TokenTable(config)
        self.blocks = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.ln_f = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def embed_tokens(self) -> nn.Module:
        return self.wte

    @property
    def layers(self) -> list[nn.Module]:
        return self.blocks

    @property
    def norm(self) -> nn.Module:
        return self.ln_f


class Molmo2Text(TextDecoder):
    def __init__(self, args: Mapping[str, Any]):
        """args: as `decoders.text_arguments` gives them."""
        config = Molmo2TextConfig.from_dict(args)
        super().__init__(config, Body(config), tied=False)

    def make_cache(self) -> list[Any]:
        return [KVCache() for _ in self.model.blocks]


DECODER = Decoder(
    refusals.molmo2,
    {"rope_theta": 1e4, "num_hidden_layers": 36, "hidden_size": 4096, "max_position_embeddings": 36864},
    network=Molmo2Text,
)
