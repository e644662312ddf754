"""LFM3, the text decoder of LFM3-VL: short convolutions, sliding and full attention, whose heads are gated.

mlx-lm has LFM2's short convolution, which is the same. Source: transformers' Lfm3ForCausalLM; names of
parameters are those of its checkpoints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._mlx_lm import ArraysCache, KVCache, RotatingKVCache, ShortConv, initialize_rope
from .._runtime import mx, nn
from . import refusals
from .attention import MLP, linear_without_bias, merge_heads, split_heads
from .backbone import TextDecoder
from .configuration import BaseConfig
from .decoders import Decoder
from .text_attention import text_attention

GATED = ("w1", "w3", "w2")
ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
}
"""Where config.json has no rope_parameters."""


@dataclass(frozen=True)
class Lfm3Config(BaseConfig):
    vocab_size: int = 128_000
    hidden_size: int = 2048
    intermediate_size: int = 7680
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 128
    max_position_embeddings: int = 128_000
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    rope_parameters: Mapping[str, Any] | None = None
    conv_bias: bool = False
    conv_L_cache: int = 7
    layer_types: Sequence[str] | None = None
    sliding_window: int | None = 256
    use_sandwich_norm: bool = True
    use_attention_gate: bool = True
    attention_bias: bool = False

    @property
    def kinds(self) -> list[str]:
        """Of its layers."""
        regular = (
            "conv",
            "conv",
            "full_attention",
            "conv",
            *("sliding_attention", "conv", "full_attention", "conv") * 99,
        )
        return list(self.layer_types or regular)[: self.num_hidden_layers]


class Attention(nn.Module):
    def __init__(self, config: Lfm3Config, kind: str):
        super().__init__()
        hidden, size, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.scale = size**-0.5
        self.q_proj = nn.Linear(hidden, self.heads * size, bias=bias)
        self.k_proj, self.v_proj = (nn.Linear(hidden, self.kv_heads * size, bias=bias) for _ in range(2))
        self.o_proj = nn.Linear(self.heads * size, hidden, bias=bias)
        self.q_norm, self.k_norm = (nn.RMSNorm(size, eps=config.norm_eps) for _ in range(2))
        if config.use_attention_gate:
            self.gate_proj = nn.Linear(hidden, self.heads, bias=False)
        rope = (config.rope_parameters or ROPE)[kind]
        self.rope = initialize_rope(size, rope["rope_theta"], False, dict(rope), config.max_position_embeddings)

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array:
        q = self.q_norm(split_heads(self.q_proj(x), self.heads))
        k, v = self.k_norm(split_heads(self.k_proj(x), self.kv_heads)), split_heads(self.v_proj(x), self.kv_heads)
        q, k = self.rope(q, offset=cache.offset), self.rope(k, offset=cache.offset)
        k, v = cache.update_and_fetch(k, v)
        out = text_attention(q, k, v, cache, self.scale, mask)
        if "gate_proj" in self:
            out = out * mx.sigmoid(self.gate_proj(x)).swapaxes(1, 2)[..., None]
        return self.o_proj(merge_heads(out))


class Layer(nn.Module):
    def __init__(self, config: Lfm3Config, index: int):
        super().__init__()
        hidden, kind = config.hidden_size, config.kinds[index]
        if kind == "conv":
            self.conv = ShortConv(config, index)
        else:
            self.self_attn = Attention(config, kind)
        self.feed_forward = MLP(hidden, config.intermediate_size, "silu", GATED, linear_without_bias)
        names = ["operator_norm", "ffn_norm"]
        if config.use_sandwich_norm:
            names += ["post_operator_norm", "post_ffn_norm"]
        for name in names:
            self[name] = nn.RMSNorm(hidden, eps=config.norm_eps)

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array:
        operator = self.conv if "conv" in self else self.self_attn
        out = operator(self.operator_norm(x), mask, cache)
        x = x + (self.post_operator_norm(out) if "post_operator_norm" in self else out)
        out = self.feed_forward(self.ffn_norm(x))
        return x + (self.post_ffn_norm(out) if "post_ffn_norm" in self else out)


class Body(nn.Module):
    """Embeddings, layers and last norm; `backbone.decode` runs them."""

    def __init__(self, config: Lfm3Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config, index) for index in range(config.num_hidden_layers)]
        self.embedding_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)


class Lfm3(TextDecoder):
    def __init__(self, args: Mapping[str, Any]):
        """args: as `decoders.text_arguments` gives them."""
        config = Lfm3Config.from_dict(args)
        super().__init__(config, Body(config), config.tie_word_embeddings)
        self._kinds, self._window = config.kinds, config.sliding_window

    def make_cache(self) -> list[Any]:
        return [self._cache(kind) for kind in self._kinds]

    def _cache(self, kind: str) -> Any:
        if kind == "conv":
            return ArraysCache(1)
        return RotatingKVCache(self._window) if kind == "sliding_attention" and self._window else KVCache()

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """torch's convolutions (d, 1, K) with their channels last; a copy of the embeddings goes."""
        out = {}
        for name, tensor in weights.items():
            if name.startswith("lm_head.") and "lm_head" not in self:
                continue
            turned = name.endswith("conv.conv.weight") and tensor.shape[1] == 1
            out[name] = tensor.swapaxes(1, 2) if turned else tensor
        return out


DECODER = Decoder(refusals.lfm3, {"hidden_size": 2048, "max_position_embeddings": 128_000}, network=Lfm3)
