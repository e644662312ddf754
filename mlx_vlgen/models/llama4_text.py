"""Llama 4's text decoder: three of four layers attend within chunks, the fourth to all and without rotary positions;
experts beside a shared one.

mlx-lm has it, but its attention scales no batch by position, and its norms of queries and keys take another epsilon.

Source: Meta's Llama 4 (2025); Nakanishi 2025 (arXiv 2501.19399) on the temperature; transformers' Llama4ForCausalLM,
whose names of parameters these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._mlx_lm import ChunkedKVCache, KVCache, SwitchGLU, initialize_rope
from .._runtime import mx, nn
from . import configuration, refusals
from .attention import GATED, MLP, linear_without_bias, merge_heads, split_heads
from .backbone import TextDecoder
from .configuration import BaseConfig
from .decoders import Decoder
from .layers import packed_halves
from .text_attention import text_attention

CHUNKED = "chunked_attention"


@dataclass(frozen=True)
class Llama4TextConfig(BaseConfig):
    vocab_size: int = 202048
    hidden_size: int = 5120
    intermediate_size: int = 8192
    intermediate_size_mlp: int = 16384
    num_hidden_layers: int = 48
    num_attention_heads: int = 40
    num_key_value_heads: int = 8
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    num_experts_per_tok: int = 1
    num_local_experts: int = 16
    moe_layers: Sequence[int] | None = None
    interleave_moe_layer_step: int = 1
    use_qk_norm: bool = True
    no_rope_layers: Sequence[int] | None = None
    no_rope_layer_interval: int = 4
    attention_chunk_size: int | None = 8192
    layer_types: Sequence[str] | None = None
    attn_temperature_tuning: bool = True
    floor_scale: int = 8192
    attn_scale: float = 0.1
    attention_bias: bool = False
    rope_theta: float = 500000.0
    rope_scaling: Mapping[str, Any] | None = None

    def is_rotary(self, layer: int) -> bool:
        if self.no_rope_layers:
            return bool(self.no_rope_layers[layer])
        return (layer + 1) % self.no_rope_layer_interval != 0

    def is_chunked(self, layer: int) -> bool:
        if self.layer_types is not None:
            return self.layer_types[layer] == CHUNKED
        return self.is_rotary(layer) and self.attention_chunk_size is not None

    def has_experts(self, layer: int) -> bool:
        if self.moe_layers is not None:
            return layer in self.moe_layers
        return (layer + 1) % self.interleave_moe_layer_step == 0


class Rotary(nn.Module):
    """Rotated heads (B, H, L, D), and then, with `eps`, normalised without a weight."""

    def __init__(self, config: Llama4TextConfig):
        super().__init__()
        self.rope = initialize_rope(
            config.head_dim, config.rope_theta, True, config.rope_scaling, config.max_position_embeddings
        )
        self.eps = config.rms_norm_eps if config.use_qk_norm else None

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        x = self.rope(x, offset=offset)
        return x if self.eps is None else mx.fast.rms_norm(x, None, self.eps)


class Temperature(nn.Module):
    """Queries (B, H, L, D) of a layer without rotary positions, longer the later they stand."""

    def __init__(self, config: Llama4TextConfig):
        super().__init__()
        self.floor_scale = config.floor_scale
        self.attn_scale = config.attn_scale if config.attn_temperature_tuning else 0.0

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        positions = mx.array(offset).reshape(-1, 1) + mx.arange(1, x.shape[2] + 1)
        scale = 1 + self.attn_scale * mx.log1p(mx.floor(positions / self.floor_scale))  # (B or 1, L)
        return (x * scale[:, None, :, None]).astype(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: Llama4TextConfig, layer: int):
        super().__init__()
        hidden, size, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.heads, self.kv_heads, self.scale = config.num_attention_heads, config.num_key_value_heads, size**-0.5
        self.q_proj = nn.Linear(hidden, self.heads * size, bias=bias)
        self.k_proj, self.v_proj = (nn.Linear(hidden, self.kv_heads * size, bias=bias) for _ in range(2))
        self.o_proj = nn.Linear(self.heads * size, hidden, bias=bias)
        self.rotary = config.is_rotary(layer)
        self.rope = Rotary(config) if self.rotary else Temperature(config)

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array:
        offset = cache.offset
        q = self.rope(split_heads(self.q_proj(x), self.heads), offset=offset)
        k, v = split_heads(self.k_proj(x), self.kv_heads), split_heads(self.v_proj(x), self.kv_heads)
        if self.rotary:
            k = self.rope(k, offset=offset)
        k, v = cache.update_and_fetch(k, v)
        return self.o_proj(merge_heads(text_attention(q, k, v, cache, self.scale, mask)))


class Experts(nn.Module):
    """What each expert gives is of its input times its weight, and not its result times the weight."""

    def __init__(self, config: Llama4TextConfig):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.top_k = config.num_experts_per_tok
        self.experts = SwitchGLU(hidden, inner, config.num_local_experts)
        self.router = nn.Linear(hidden, config.num_local_experts, bias=False)
        self.shared_expert = MLP(hidden, inner, config.hidden_act, GATED, linear_without_bias)

    def __call__(self, x: mx.array) -> mx.array:
        logits = self.router(x)
        chosen = mx.argpartition(-logits, kth=self.top_k - 1, axis=-1)[..., : self.top_k]  # (B, L, k)
        weights = mx.sigmoid(mx.take_along_axis(logits, chosen, axis=-1).astype(mx.float32)).astype(x.dtype)
        out = self.experts(x[:, :, None] * weights[..., None], chosen[..., None])  # (B, L, k, 1, d)
        return self.shared_expert(x) + out.squeeze(-2).sum(axis=-2)


class Layer(nn.Module):
    def __init__(self, config: Llama4TextConfig, layer: int):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer)
        if config.has_experts(layer):
            self.feed_forward: nn.Module = Experts(config)
        else:
            inner = config.intermediate_size_mlp
            self.feed_forward = MLP(hidden, inner, config.hidden_act, GATED, linear_without_bias)
        self.input_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps=eps)

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        return x + self.feed_forward(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embeddings, layers and last norm; `backbone.decode` runs them."""

    def __init__(self, config: Llama4TextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config, layer) for layer in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Llama4Text(TextDecoder):
    def __init__(self, args: Mapping[str, Any]):
        """args: as `decoders.text_arguments` gives them."""
        config = Llama4TextConfig.from_dict(args)
        super().__init__(config, Body(config), config.tie_word_embeddings)
        chunk, count = config.attention_chunk_size, config.num_hidden_layers
        self._chunks = [chunk if config.is_chunked(layer) else None for layer in range(count)]

    def make_cache(self) -> list[Any]:
        return [KVCache() if chunk is None else ChunkedKVCache(chunk) for chunk in self._chunks]

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """transformers' experts, (E, in, out) with gate and up in one, as MLX's (E, out, in)."""
        out = dict(weights)
        for name in weights:
            stem, is_expert, part = name.rpartition(".experts.")
            if not is_expert or part not in ("gate_up_proj", "down_proj"):
                continue
            tensor = out.pop(name).swapaxes(1, 2)
            named = {part: tensor}
            if part == "gate_up_proj":
                named = dict(zip(("gate_proj", "up_proj"), packed_halves(tensor), strict=True))
            out |= {f"{stem}.experts.{key}.weight": value for key, value in named.items()}
        return out


DECODER = Decoder(refusals.llama4, Llama4TextConfig.complete({}), configuration.read_granite, network=Llama4Text)
