"""The text decoder of Gemma 3n: four states a token of which each layer computes one (AltUp), a low-rank path beside
attention (LAuReL), an embedding of each token for each layer, and last layers that attend to keys of earlier ones.

mlx-lm has it, but it clips weights, which is done in training only, and divides by norms without a least one.

Source: Baykal et al. 2023 (arXiv 2301.13310), Menghani et al. 2024 (arXiv 2411.07501); transformers'
Gemma3nTextModel, whose names of parameters these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from .._mlx_lm import KVCache, RotatingKVCache
from .._runtime import mx, nn
from . import configuration, refusals
from .attention import GATED, MLP, linear_without_bias, merge_heads, split_heads
from .backbone import TextDecoder
from .configuration import BaseConfig
from .decoders import Decoder, root_of_width, softcapped
from .layers import ACTIVATIONS
from .text_attention import text_attention

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Gemma3nTextConfig(BaseConfig):
    vocab_size: int = 262_400
    hidden_size: int = 2048
    intermediate_size: int | Sequence[int] = 16_384
    num_hidden_layers: int = 35
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    sliding_window: int = 512
    layer_types: Sequence[str] | None = None
    final_logit_softcapping: float | None = 30.0
    vocab_size_per_layer_input: int = 262_144
    hidden_size_per_layer_input: int = 256
    altup_active_idx: int = 0
    altup_correct_scale: bool = True
    altup_num_inputs: int = 4
    num_kv_shared_layers: int = 15
    laurel_rank: int = 64
    activation_sparsity_pattern: Sequence[float] | None = None
    rope_theta: float = 1e6
    rope_local_base_freq: float = 1e4
    max_position_embeddings: int = 32_768

    @property
    def kinds(self) -> Sequence[str]:
        """Of each layer."""
        return self.layer_types or [SLIDING if (i + 1) % 5 else FULL for i in range(self.num_hidden_layers)]

    @property
    def sources(self) -> list[int]:
        """Of each layer, the one whose keys and values it attends to."""
        kinds, caches = self.kinds, self.num_hidden_layers - self.num_kv_shared_layers
        last = {kind: index for index, kind in enumerate(kinds[:caches])}
        return [index if index < caches else last[kinds[index]] for index in range(self.num_hidden_layers)]

    def inner(self, layer: int) -> int:
        sizes = self.intermediate_size
        return sizes if isinstance(sizes, int) else sizes[layer]

    def sparsity(self, layer: int) -> float:
        """How much of its MLP a layer leaves out."""
        if self.activation_sparsity_pattern is None:
            return 0.95 if layer < 10 < self.num_hidden_layers else 0.0
        return self.activation_sparsity_pattern[layer]


class Attention(nn.Module):
    def __init__(self, config: Gemma3nTextConfig, layer: int):
        super().__init__()
        hidden, size, eps = config.hidden_size, config.head_dim, config.rms_norm_eps
        self.heads, self.kv_heads, self.scale = config.num_attention_heads, config.num_key_value_heads, 1.0
        self.q_proj = linear_without_bias(hidden, self.heads * size)
        self.q_norm = nn.RMSNorm(size, eps)
        if config.sources[layer] == layer:
            self.k_proj, self.v_proj = (linear_without_bias(hidden, self.kv_heads * size) for _ in range(2))
            self.k_norm = nn.RMSNorm(size, eps)
        self.o_proj = linear_without_bias(self.heads * size, hidden)
        base = config.rope_theta if config.kinds[layer] == FULL else config.rope_local_base_freq
        self.rope = nn.RoPE(size, base=base)

    def __call__(self, x: mx.array, mask: Any, cache: Any, keys_values: Any, offset: Any) -> tuple[mx.array, Any]:
        """keys_values: of an earlier layer, or None. Returns (B, L, d), and the keys and values attended to."""
        q = self.rope(self.q_norm(split_heads(self.q_proj(x), self.heads)), offset=offset)
        if keys_values is None:
            k = self.rope(self.k_norm(split_heads(self.k_proj(x), self.kv_heads)), offset=offset)
            v = mx.fast.rms_norm(split_heads(self.v_proj(x), self.kv_heads), None, self.q_norm.eps)
            keys_values = cache.update_and_fetch(k, v)
        keys, values = keys_values
        return self.o_proj(merge_heads(text_attention(q, keys, values, cache, self.scale, mask))), keys_values


class SparseMLP(MLP):
    """Only the largest values of the gate go on: as many as `sparsity` leaves of a normal distribution."""

    def __init__(self, config: Gemma3nTextConfig, layer: int):
        inner, activation = config.inner(layer), config.hidden_activation
        super().__init__(config.hidden_size, inner, activation, GATED, linear_without_bias)
        sparsity = config.sparsity(layer)
        self._deviations = NormalDist().inv_cdf(sparsity) if sparsity > 0 else None

    def __call__(self, x: mx.array) -> mx.array:
        gate = self.gate_proj(x)
        if self._deviations is not None:
            cutoff = gate.mean(axis=-1, keepdims=True) + self._deviations * gate.std(axis=-1, keepdims=True)
            gate = mx.maximum(gate - cutoff, 0)
        return self.down_proj(self._activation(gate) * self.up_proj(x))


class AltUp(nn.Module):
    """Of n states a token: what a layer would make of them, and what follows for all from the one that it computed."""

    def __init__(self, config: Gemma3nTextConfig):
        super().__init__()
        hidden, count = config.hidden_size, config.altup_num_inputs
        self.correct_output_scale = mx.zeros((hidden,))
        self.correction_coefs = linear_without_bias(count, count)
        self.prediction_coefs = linear_without_bias(count, count**2)
        self.modality_router = linear_without_bias(hidden, count)
        self.router_norm = nn.RMSNorm(hidden, config.rms_norm_eps)
        self._active = config.altup_active_idx

    def modalities(self, x: mx.array) -> mx.array:
        """(B, L, d) -> (B, L, n)."""
        return mx.tanh(self.modality_router(self.router_norm(x) / x.shape[-1]).astype(mx.float32)).astype(x.dtype)

    def predict(self, states: mx.array) -> mx.array:
        """(B, L, n, d) -> the same."""
        count = states.shape[2]
        coefficients = self.prediction_coefs(self.modalities(states[:, :, self._active]))
        return states + coefficients.reshape(*states.shape[:2], count, count) @ states

    def correct(self, states: mx.array, computed: mx.array) -> mx.array:
        """states (B, L, n, d) as predicted, computed (B, L, d) -> (B, L, n, d)."""
        coefficients = self.correction_coefs(self.modalities(computed)) + 1
        return states + coefficients[..., None] * (computed - states[:, :, self._active])[:, :, None]


class Laurel(nn.Module):
    def __init__(self, config: Gemma3nTextConfig):
        super().__init__()
        self.linear_left = linear_without_bias(config.hidden_size, config.laurel_rank)
        self.linear_right = linear_without_bias(config.laurel_rank, config.hidden_size)
        self.post_laurel_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.post_laurel_norm(self.linear_right(self.linear_left(x)))


class Layer(nn.Module):
    def __init__(self, config: Gemma3nTextConfig, layer: int):
        super().__init__()
        hidden, small = config.hidden_size, config.hidden_size_per_layer_input
        self.self_attn, self.mlp = Attention(config, layer), SparseMLP(config, layer)
        self.altup, self.laurel = AltUp(config), Laurel(config)
        norms = (nn.RMSNorm(hidden, config.rms_norm_eps) for _ in range(5))
        self.input_layernorm, self.post_attention_layernorm, *others = norms
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm, self.post_per_layer_input_norm = others
        self.per_layer_input_gate = linear_without_bias(hidden, small)
        self.per_layer_projection = linear_without_bias(small, hidden)
        self.layer_type = config.kinds[layer]
        self._active, self._scales = config.altup_active_idx, config.altup_correct_scale
        self._activation = ACTIVATIONS[config.hidden_activation]

    def __call__(
        self,
        states: mx.array,
        mask: Any,
        cache: Any,
        layer_input: mx.array,
        keys_values: Any = None,
        offset: Any = None,
    ) -> tuple[mx.array, Any, Any]:
        """states (B, L, n, d), layer_input (B, L, small) -> states, and keys, values and offset for later layers."""
        offset = cache.offset if offset is None else offset
        states = self.altup.predict(states)
        x = states[:, :, self._active]
        normed = self.input_layernorm(x)
        attended, keys_values = self.self_attn(normed, mask, cache, keys_values, offset)
        x = (x + self.post_attention_layernorm(attended) + self.laurel(normed)) * 2**-0.5
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        states = self.altup.correct(states, x)
        x = states[:, :, self._active]
        x = x * self.altup.correct_output_scale if self._scales else x
        x = self.per_layer_projection(self._activation(self.per_layer_input_gate(x)) * layer_input)
        x = self.post_per_layer_input_norm(x)[:, :, None]
        return mx.concatenate([states[:, :, :1], states[:, :, 1:] + x], axis=2), keys_values, offset


class Body(nn.Module):
    """previous_kvs: of each layer, the one whose keys and values it attends to."""

    def __init__(self, config: Gemma3nTextConfig):
        super().__init__()
        hidden, eps, layers = config.hidden_size, config.rms_norm_eps, config.num_hidden_layers
        small, others = config.hidden_size_per_layer_input, config.altup_num_inputs - 1
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden)
        self.embed_tokens_per_layer = nn.Embedding(config.vocab_size_per_layer_input, layers * small)
        self.layers = [Layer(config, index) for index in range(layers)]
        self.norm = nn.RMSNorm(hidden, eps)
        self.per_layer_model_projection = linear_without_bias(hidden, layers * small)
        self.per_layer_projection_norm = nn.RMSNorm(small, eps)
        self.altup_projections = [linear_without_bias(hidden, hidden) for _ in range(others)]
        self.altup_unembed_projections = [linear_without_bias(hidden, hidden) for _ in range(others)]
        self.hidden_size_per_layer_input, self.previous_kvs = small, tuple(config.sources)

    def expand(self, embeds: mx.array) -> mx.array:
        """(B, L, d) -> n states a token (B, L, n, d), all as long as the first one."""
        others = [as_long(project(embeds), embeds) for project in self.altup_projections]
        return mx.stack([embeds, *others], axis=2)

    def collapse(self, states: mx.array) -> mx.array:
        """The inverse: their mean, (B, L, d)."""
        first = states[:, :, 0]
        others = [as_long(p(states[:, :, i]), first) for i, p in enumerate(self.altup_unembed_projections, 1)]
        return mx.stack([first, *others], axis=2).mean(axis=2)


def as_long(x: mx.array, like: mx.array) -> mx.array:
    """x (..., d), its length that of `like`."""
    square = mx.maximum((x * x).mean(axis=-1, keepdims=True), 1e-5)
    return x * ((like * like).mean(axis=-1, keepdims=True) ** 0.5 / square**0.5)


class Gemma3nText(TextDecoder):
    def __init__(self, args: Mapping[str, Any]):
        """args: as `decoders.text_arguments` gives them."""
        config = Gemma3nTextConfig.from_dict(args)
        super().__init__(config, Body(config), tied=True)

    def make_cache(self) -> list[Any]:
        """Of the layers that have keys."""
        kinds = self.args.kinds[: self.args.num_hidden_layers - self.args.num_kv_shared_layers]
        return [KVCache() if kind == FULL else RotatingKVCache(self.args.sliding_window) for kind in kinds]


DECODER = Decoder(
    refusals.gemma3n,
    Gemma3nTextConfig.complete({}),
    configuration.read_gemma3,
    Gemma3nText,
    scale_tokens=root_of_width,
    scale_logits=softcapped,
)
