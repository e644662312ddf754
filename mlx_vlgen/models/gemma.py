"""Gemma and Gemma 2, the text decoders of PaliGemma, and what Gemma 3 shares with them.

mlx-lm has both, but its Gemma computes the exact GELU where the published model has the tanh approximation, and its
Gemma 2 has neither sliding windows nor quantized keys.

Source: Gemma Team 2024 (arXiv 2403.08295 and 2408.00118); transformers' GemmaForCausalLM and Gemma2ForCausalLM, whose
names of parameters these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._mlx_lm import KVCache, RotatingKVCache, scaled_dot_product_attention
from .._runtime import mx, nn
from .attention import GATED, MLP, in_blocks, linear_without_bias, merge_heads, split_heads
from .backbone import TextDecoder
from .configuration import BaseConfig


@dataclass(frozen=True)
class GemmaConfig(BaseConfig):
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    query_pre_attn_scalar: float
    sliding_window: int | None
    layer_types: Sequence[str] | None = None
    attention_bias: bool = False
    attn_logit_softcapping: float | None = 50.0
    rope_theta: float = 10000.0
    hidden_act: str | None = None
    hidden_activation: str | None = None

    @property
    def is_gemma2(self) -> bool:
        return self.model_type == "gemma2"

    @property
    def activation(self) -> str:
        """Gemma's first configurations say "gelu" and mean its tanh approximation."""
        name = (self.hidden_activation if self.is_gemma2 else self.hidden_act) or "gelu_pytorch_tanh"
        return "gelu_pytorch_tanh" if name == "gelu" and not self.is_gemma2 else name


def scale_embeddings(embeds: mx.array) -> mx.array:
    """Embeddings (..., d) times the root of d, in their dtype: mlx-lm rounds it to bfloat16."""
    return embeds * mx.array(embeds.shape[-1] ** 0.5).astype(embeds.dtype)


def softcap(x: mx.array, cap: float | None) -> mx.array:
    """x (...) -> the same, bent smoothly into (-cap, cap)."""
    return x if cap is None else mx.tanh(x / cap) * cap


class Norm(nn.Module):
    """Its weight is what is added to 1."""

    def __init__(self, dims: int, eps: float):
        super().__init__()
        self.weight, self.eps = mx.zeros(dims), eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, 1.0 + self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: GemmaConfig):
        super().__init__()
        hidden, size, bias = config.hidden_size, config.head_dim, config.attention_bias
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.heads, self.kv_heads = heads, kv_heads
        self.scale = (config.query_pre_attn_scalar if config.is_gemma2 else size) ** -0.5
        self.softcap = config.attn_logit_softcapping if config.is_gemma2 else None
        self.q_proj = nn.Linear(hidden, heads * size, bias=bias)
        self.k_proj, self.v_proj = (nn.Linear(hidden, kv_heads * size, bias=bias) for _ in range(2))
        self.o_proj = nn.Linear(heads * size, hidden, bias=bias)
        self.rope = nn.RoPE(size, base=config.rope_theta)

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array:
        q, k = split_heads(self.q_proj(x), self.heads), split_heads(self.k_proj(x), self.kv_heads)
        v = split_heads(self.v_proj(x), self.kv_heads)
        q, k = self.rope(q, offset=cache.offset), self.rope(k, offset=cache.offset)
        k, v = cache.update_and_fetch(k, v)
        if self.softcap is None:
            out = scaled_dot_product_attention(q, k, v, cache=cache, scale=self.scale, mask=mask)
        else:
            if hasattr(cache, "bits"):
                k, v = dequantize(k, cache), dequantize(v, cache)
            out = softcapped_attention(q * self.scale, k, v, mask, self.softcap)
        return self.o_proj(merge_heads(out))


def dequantize(parts: tuple[mx.array, mx.array, mx.array], cache: Any) -> mx.array:
    """Keys or values (B, h, K, D) of the three arrays that a quantized cache gives."""
    packed, scales, biases = parts
    return mx.dequantize(packed, scales, biases, group_size=cache.group_size, bits=cache.bits)


def softcapped_attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None, cap: float) -> mx.array:
    """Softmax attention over capped scores, in blocks of queries: no fused kernel caps them.

    q: (B, H, L, D), scaled.
    k, v: (B, h, K, D), each for H / h heads of q.
    mask: None, "causal", or bool, (L, K) or (B, 1, L, K).
    """
    length, keys = q.shape[2], k.shape[2]
    if isinstance(mask, str):
        mask = mx.arange(keys) <= mx.arange(keys - length, keys)[:, None]
    if mask is not None:
        mask = mx.broadcast_to(mask, (len(q), 1, length, keys))

    def attend(q: mx.array, k: mx.array, v: mx.array, rows: slice, span: slice) -> mx.array:
        batch, heads, queries, size = q.shape
        q = q.reshape(batch, k.shape[1], -1, queries, size)
        scores = softcap(q @ k[:, :, None].swapaxes(-1, -2), cap)  # (B, h, H / h, N, K)
        if mask is not None:
            scores = mx.where(mask[rows, :, None, span], scores, mx.finfo(scores.dtype).min)
        out = mx.softmax(scores, axis=-1, precise=True) @ v[:, :, None]
        return out.reshape(batch, heads, queries, size)

    return in_blocks(attend, q, k, v)


class Layer(nn.Module):
    """Gemma 2 normalises what attention and MLP give, too."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config)
        self.mlp = MLP(hidden, config.intermediate_size, config.activation, GATED, linear_without_bias)
        self.input_layernorm, self.post_attention_layernorm = Norm(hidden, eps), Norm(hidden, eps)
        if config.is_gemma2:
            self.pre_feedforward_layernorm, self.post_feedforward_layernorm = Norm(hidden, eps), Norm(hidden, eps)

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array:
        out = self.self_attn(self.input_layernorm(x), mask, cache)
        if "pre_feedforward_layernorm" not in self:
            x = x + out
            return x + self.mlp(self.post_attention_layernorm(x))
        x = x + self.post_attention_layernorm(out)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Body(nn.Module):
    """Embeddings, layers and last norm; `backbone.decode` runs them."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)


class Gemma(TextDecoder):
    def __init__(self, args: Mapping[str, Any]):
        """args: as `decoders.text_arguments` gives them."""
        config = GemmaConfig.from_dict(args)
        super().__init__(config, Body(config), tied=True)
        count, window = config.num_hidden_layers, config.sliding_window
        layer_types = config.layer_types or ["sliding_attention", "full_attention"] * count
        slides = config.is_gemma2 and window is not None
        self._windows = [window if slides and layer == "sliding_attention" else None for layer in layer_types[:count]]

    def make_cache(self) -> list[Any]:
        """In Gemma 2 every other layer slides, the first one too."""
        return [KVCache() if window is None else RotatingKVCache(window) for window in self._windows]

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Without the copy of the embeddings that some checkpoints have."""
        return {name: tensor for name, tensor in weights.items() if not name.startswith("lm_head.")}
