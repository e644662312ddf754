"""The text decoder of GLM-5.3-Flash: linear attention and, without rotary positions, latent attention to the blocks of
keys that an indexer chooses; experts; several streams of states between the layers.

Source: Kimi Linear (arXiv 2510.26692) on linear attention; Xie et al. 2025 (arXiv 2512.24880) on streams; transformers'
Glm5NextTextModel. Names of parameters are those of checkpoints converted for MLX.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._mlx_lm import MultiLinear, SwitchGLU, gated_delta_update, normalize_qk
from .._runtime import mx, nn
from . import configuration, refusals
from .attention import clipped, in_blocks, merge_heads, split_heads
from .backbone import Masks, TextDecoder, last_of
from .base import Embedded, LayerKind, Recurrent, Whole
from .configuration import BaseConfig
from .decoders import Decoder
from .indexer import chosen_keys, narrowed
from .layers import pace
from .router import Router

JOINED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "fbg_a_proj": ("f_a_proj", "b_proj", "g_a_proj"),
    "qkv_conv.conv": ("q_conv1d", "k_conv1d", "v_conv1d"),
    "qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Layers here, whose rows are those of published layers one after the other."""

FLOAT32 = r"\.(A_log|dt_bias|mlp\.gate\.\w+|(attn|ffn)_hc\.(base|scale))$"
"""Parameters that transformers has in float32."""


@dataclass(frozen=True)
class Glm5NextTextConfig(BaseConfig):
    vocab_size: int = 154880
    hidden_size: int = 4096
    intermediate_size: int = 12288
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 45
    num_attention_heads: int = 64
    num_key_value_heads: int | None = 64
    n_shared_experts: int = 1
    n_routed_experts: int = 288
    routed_scaling_factor: float = 2.5
    kv_lora_rank: int = 512
    q_lora_rank: int = 1536
    qk_rope_head_dim: int = 0
    v_head_dim: int = 256
    qk_nope_head_dim: int = 256
    n_group: int = 1
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = True
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    mlp_layer_types: Sequence[str] | None = None
    attention_bias: bool = False
    index_topk: int = 2048
    index_head_dim: int = 128
    index_n_heads: int = 32
    index_kpool: int = 16
    index_kpool_always_select_tail: bool = True
    layer_types: Sequence[str] | None = None
    indexer_types: Sequence[str] | None = None
    swiglu_limit: float = 10.0
    linear_head_dim: int = 128
    linear_num_heads: int = 64
    linear_conv_kernel_dim: int = 4
    linear_lower_bound: float | None = -5.0
    hc_mult: int = 4
    hc_eps: float = 1e-6
    hc_sinkhorn_iters: int = 20

    def is_linear(self, layer: int) -> bool:
        return layer % 4 != 3 if self.layer_types is None else self.layer_types[layer] == "linear_attention"

    def is_dense(self, layer: int) -> bool:
        return layer < 3 if self.mlp_layer_types is None else self.mlp_layer_types[layer] == "dense"

    def is_shared(self, layer: int) -> bool:
        """Whether its keys are those that the layer before it chose."""
        return self.indexer_types is not None and self.indexer_types[layer] == "shared"


class HyperConnection(nn.Module):
    """Streams (B, L, n, d) -> what a layer takes (B, L, d), and in float32 how much of what it gives goes to each
    stream (B, L, n), and how the streams mix meanwhile (B, L, n, n)."""

    def __init__(self, config: Glm5NextTextConfig):
        super().__init__()
        streams = config.hc_mult
        self.fn = mx.zeros(((2 + streams) * streams, streams * config.hidden_size))
        self.base, self.scale = mx.zeros((2 + streams) * streams), mx.ones(3)
        self._streams, self._eps, self._norm_eps = streams, config.hc_eps, config.rms_norm_eps
        self._iterations = config.hc_sinkhorn_iters

    def __call__(self, streams: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        n, eps = self._streams, self._eps
        x = mx.fast.rms_norm(streams.astype(mx.float32).flatten(-2), None, self._norm_eps)
        weights = mx.split(x @ self.fn.astype(mx.float32).T, [n, 2 * n], axis=-1)
        bases = mx.split(self.base, [n, 2 * n])
        taken, given, mixed = (w * s + b for w, s, b in zip(weights, self.scale, bases, strict=True))
        # Sinkhorn and Knopp: rows and columns that come to sum up to 1.
        mixed = mx.softmax(mixed.reshape(*mixed.shape[:-1], n, n), axis=-1) + eps
        mixed = mixed / (mixed.sum(axis=-2, keepdims=True) + eps)
        for _ in range(self._iterations - 1):
            mixed = mixed / (mixed.sum(axis=-1, keepdims=True) + eps)
            mixed = mixed / (mixed.sum(axis=-2, keepdims=True) + eps)
        collapsed = ((mx.sigmoid(taken) + eps)[..., None] * streams).sum(axis=-2)
        return collapsed.astype(streams.dtype), 2 * mx.sigmoid(given), mixed


def injected(streams: mx.array, x: mx.array, given: mx.array, mixed: mx.array) -> mx.array:
    """The streams after a layer that gave x (B, L, d)."""
    dtype = streams.dtype
    return given.astype(dtype)[..., None] * x[..., None, :] + mixed.astype(dtype).swapaxes(-1, -2) @ streams


class ShortConv(nn.Module):
    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, groups=width, bias=False)


class LinearAttention(nn.Module):
    """The gated delta rule with a decay of each channel (Kimi Delta Attention)."""

    def __init__(self, config: Glm5NextTextConfig):
        super().__init__()
        hidden, self.heads, self.size = config.hidden_size, config.linear_num_heads, config.linear_head_dim
        width = self.heads * self.size
        self.qkv_proj = nn.Linear(hidden, 3 * width, bias=False)
        self.qkv_conv = ShortConv(3 * width, config.linear_conv_kernel_dim)
        self.fbg_a_proj = nn.Linear(hidden, 2 * self.size + self.heads, bias=False)
        self.f_b_proj, self.g_b_proj = (nn.Linear(self.size, width, bias=False) for _ in range(2))
        self.A_log, self.dt_bias = mx.zeros(self.heads), mx.zeros(width)
        self.o_norm = nn.RMSNorm(self.size, eps=config.rms_norm_eps)
        self.o_proj = nn.Linear(width, hidden, bias=False)
        self._before, self._lower_bound = config.linear_conv_kernel_dim - 1, config.linear_lower_bound

    def __call__(self, x: mx.array, mask: mx.array | None, cache: Any) -> mx.array:
        batch, length, heads, size = *x.shape[:2], self.heads, self.size
        qkv = self.qkv_proj(x)
        before = mx.zeros((batch, self._before, qkv.shape[-1]), qkv.dtype) if cache[0] is None else cache[0]
        history = mx.concatenate([before, qkv], axis=1)
        cache[0] = last_of(history, self._before, length, cache)
        qkv = nn.silu(self.qkv_conv.conv(history)).reshape(batch, length, 3 * heads, size)
        q, k, v = mx.split(qkv, 3, axis=2)
        q, k = normalize_qk(q, k, inv_scale=size**-0.5, eps=1e-6)
        forget, beta, gate = mx.split(self.fbg_a_proj(x), [size, size + heads], axis=-1)
        decay, step = self.f_b_proj(forget).reshape(batch, length, heads, size), self.dt_bias.reshape(heads, size)
        rate, bound = self.A_log[:, None], self._lower_bound
        out, cache[1] = gated_delta_update(q, k, v, decay, beta, rate, step, cache[1], mask, lower_bound=bound)
        cache.advance(length)
        gate = mx.sigmoid(self.g_b_proj(gate).astype(mx.float32)).reshape(out.shape)
        return self.o_proj((self.o_norm(out) * gate).astype(x.dtype).flatten(-2))


class Indexer(nn.Module):
    """Scores pools of keys, each a weighted mean of its tokens' keys, channel by channel."""

    def __init__(self, config: Glm5NextTextConfig):
        super().__init__()
        hidden, size, heads = config.hidden_size, config.index_head_dim, config.index_n_heads
        self.wq_b = nn.Linear(config.q_lora_rank, heads * size, bias=False)
        self.wk = nn.Linear(hidden, size, bias=False)
        self.k_norm = nn.LayerNorm(size, eps=1e-6)
        self.weights_proj = nn.Linear(hidden, heads, bias=False)
        self.index_kpool_compress_ape = mx.zeros((config.index_kpool, size))
        self.index_kpool_compress_gate = mx.zeros((size, hidden))
        self._heads, self._pool, self._count = heads, config.index_kpool, config.index_topk // config.index_kpool

    def stored(self, x: mx.array) -> mx.array:
        """x (B, L, d) -> (B, 1, L, 2 D): keys, and what says how much of each goes into its pool's."""
        gate = x @ self.index_kpool_compress_gate.T
        return mx.concatenate([self.k_norm(self.wk(x)), gate], axis=-1)[:, None]

    def __call__(self, x: mx.array, latent: mx.array, stored: mx.array, first: int | mx.array) -> mx.array | None:
        """The keys that x may attend to, (B, 1, L, K) bool; None where they are all.

        latent: (B, L, rank), of its queries. stored: (B, 1, K, 2 D). first: the position of x, or (B,).
        """
        pools = stored.shape[2] // self._pool
        if pools <= self._count:
            return None
        parts = stored[:, 0, : pools * self._pool].reshape(len(stored), pools, self._pool, -1)
        keys, gates = mx.split(parts, 2, axis=-1)
        weights = mx.softmax(gates.astype(mx.float32) + self.index_kpool_compress_ape, axis=2)
        pooled = (weights.astype(keys.dtype) * keys).sum(axis=2)[:, None].astype(mx.float32)  # (B, 1, pools, D)
        q = split_heads(self.wq_b(latent), self._heads).astype(mx.float32)
        scores = mx.maximum(q @ pooled.swapaxes(-1, -2) * q.shape[-1] ** -0.5, 0)  # (B, heads, L, pools)
        of_heads = self.weights_proj(x).astype(mx.float32) * self._heads**-0.5
        scores = (scores * of_heads.swapaxes(1, 2)[..., None]).sum(axis=1)
        return chosen_keys(scores, first, self._pool, self._count, stored.shape[2])


class Attention(nn.Module):
    """Latent attention: one key a position for all heads, which is its value too."""

    def __init__(self, config: Glm5NextTextConfig, shared: bool):
        super().__init__()
        hidden, self.heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        self.rank, self.scale = config.q_lora_rank, config.qk_nope_head_dim**-0.5
        self.qkv_a_proj = nn.Linear(hidden, config.q_lora_rank + config.kv_lora_rank, bias=bias)
        self.q_a_layernorm = nn.RMSNorm(config.q_lora_rank, eps=config.rms_norm_eps)
        self.q_b_proj = nn.Linear(config.q_lora_rank, self.heads * config.qk_nope_head_dim, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(config.kv_lora_rank, eps=config.rms_norm_eps)
        self.embed_q = MultiLinear(config.qk_nope_head_dim, config.kv_lora_rank, self.heads)
        self.unembed_out = MultiLinear(config.kv_lora_rank, config.v_head_dim, self.heads)
        self.o_proj = nn.Linear(self.heads * config.v_head_dim, hidden, bias=bias)
        if not shared:
            self.indexer = Indexer(config)

    def __call__(
        self, x: mx.array, mask: mx.array | None, cache: Any, chosen: mx.array | None
    ) -> tuple[mx.array, mx.array | None]:
        """What it gives, and the keys that it attended to. chosen: those of the layer before it, where it shares them.

        Beside the latent keys the cache holds the indexer's; without one, nothing: a zero.
        """
        latent, keys = mx.split(self.qkv_a_proj(x), [self.rank], axis=-1)
        latent, first = self.q_a_layernorm(latent), cache.offset
        keys = self.kv_a_layernorm(keys)[:, None]
        beside = self.indexer.stored(x) if "indexer" in self else mx.zeros_like(keys[..., :1])
        keys, beside = cache.update_and_fetch(keys, beside)
        if "indexer" in self:
            chosen = self.indexer(x, latent, beside, first)
        q = self.embed_q(split_heads(self.q_b_proj(latent), self.heads))
        out = self.unembed_out(latent_attention(q, keys, self.scale, narrowed(mask, chosen)))
        return self.o_proj(merge_heads(out)), chosen


def latent_attention(q: mx.array, keys: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """q (B, H, N, D), keys (B, 1, K, D), mask (B or 1, 1, N, K) bool -> (B, H, N, D). In blocks: no kernel is fused for
    states so wide."""
    if mask is not None:
        mask = mx.broadcast_to(mask, (len(q), *mask.shape[1:]))

    def attend(q: mx.array, k: mx.array, v: mx.array, rows: slice, span: slice) -> mx.array:
        seen = None if mask is None else mask[rows, :, span]
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=seen)

    return in_blocks(attend, q, keys, keys)


class MLP(nn.Module):
    def __init__(self, config: Glm5NextTextConfig, inner: int):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * inner, bias=False)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=False)
        self._limit = config.swiglu_limit

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(clipped(gate, up, self._limit, nn.silu))


class Experts(nn.Module):
    def __init__(self, config: Glm5NextTextConfig):
        super().__init__()
        inner, limit = config.moe_intermediate_size, config.swiglu_limit
        self.gate = Router(vars(config))
        self.switch_mlp = SwitchGLU(
            config.hidden_size,
            inner,
            config.n_routed_experts,
            activation=lambda x, gate: clipped(gate, x, limit, nn.silu),
        )
        self.shared_experts = MLP(config, inner * config.n_shared_experts)

    def __call__(self, x: mx.array) -> mx.array:
        experts, weights = self.gate(x)
        out = (self.switch_mlp(x, experts) * weights[..., None]).sum(axis=-2).astype(x.dtype)
        return out + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, config: Glm5NextTextConfig, layer: int):
        super().__init__()
        hidden, self.linear = config.hidden_size, config.is_linear(layer)
        if self.linear:
            self.self_attn: nn.Module = LinearAttention(config)
        else:
            self.self_attn = Attention(config, config.is_shared(layer))
        dense = config.is_dense(layer)
        self.mlp: nn.Module = MLP(config, config.intermediate_size) if dense else Experts(config)
        self.input_layernorm, self.post_attention_layernorm = (
            nn.RMSNorm(hidden, eps=config.rms_norm_eps) for _ in range(2)
        )
        self.attn_hc, self.ffn_hc = HyperConnection(config), HyperConnection(config)


class Body(nn.Module):
    def __init__(self, config: Glm5NextTextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config, layer) for layer in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._streams = config.hc_mult

    def __call__(self, inputs: Embedded, cache: Sequence[Any]) -> mx.array:
        """(B, L, d), before the last norm."""
        h = self.embed_tokens(inputs.tokens) if inputs.embeds is None else inputs.embeds
        masks, chosen = Masks(h, arrays=True), None
        h = mx.repeat(h[..., None, :], self._streams, axis=-2)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            before = h
            x, given, mixed = layer.attn_hc(h)
            x, mask = layer.input_layernorm(x), masks(layer_cache)
            if layer.linear:
                x = layer.self_attn(x, mask, layer_cache)
            else:
                x, chosen = layer.self_attn(x, mask, layer_cache, chosen)
            h = injected(h, x, given, mixed)
            x, given, mixed = layer.ffn_hc(h)
            h = injected(h, layer.mlp(layer.post_attention_layernorm(x)), given, mixed)
            if inputs.paced:
                pace(before, h)
        return h.mean(axis=-2)


class Glm5NextText(TextDecoder):
    def __init__(self, args: Mapping[str, Any]):
        """args: as `decoders.text_arguments` gives them."""
        config = Glm5NextTextConfig.from_dict(args)
        super().__init__(config, Body(config), config.tie_word_embeddings)

    def cache_layout(self) -> list[LayerKind]:
        return [Recurrent(2) if layer.linear else Whole() for layer in self.layers]

    def cast_predicate(self, name: str) -> bool:
        """Which parameters may be narrowed."""
        return re.search(FLOAT32, name) is None

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Published layers as those that have them joined; a latent's keys and values by head; layers after the last,
        which guess further tokens, are of no use here."""
        out = dict[str, mx.array]()
        for name, tensor in weights.items():
            if (layer := re.match(r"model\.layers\.(\d+)\.", name)) and int(layer[1]) >= len(self.layers):
                continue
            name = re.sub(r"\.hc_(attn|ffn)_(fn|base|scale)$", r".\1_hc.\2", name)
            name = name.replace(".forget_gate.", ".")
            turned = name.endswith("_conv1d.weight") and tensor.shape[1] == 1
            out[name] = tensor.swapaxes(1, 2) if turned else tensor
        for index in range(len(self.layers)):
            for part in ("self_attn", "mlp", "mlp.shared_experts"):
                join(out, f"model.layers.{index}.{part}.")
            latent = out.pop(f"model.layers.{index}.self_attn.kv_b_proj.weight", None)
            if latent is not None:
                attn, keys = f"model.layers.{index}.self_attn.", self.args.qk_nope_head_dim
                heads = latent.reshape(self.args.num_attention_heads, -1, self.args.kv_lora_rank)
                out[f"{attn}embed_q.weight"] = mx.contiguous(heads[:, :keys].swapaxes(1, 2))
                out[f"{attn}unembed_out.weight"] = mx.contiguous(heads[:, keys:])
        return out


def join(weights: dict[str, mx.array], prefix: str) -> None:
    """The layers of `JOINED` under `prefix`, in place."""
    for whole, parts in JOINED.items():
        for kind in ("weight", "bias"):
            names = [f"{prefix}{part}.{kind}" for part in parts]
            if all(name in weights for name in names):
                weights[f"{prefix}{whole}.{kind}"] = mx.concatenate([weights.pop(name) for name in names])


DECODER = Decoder(refusals.glm5_next, Glm5NextTextConfig.complete({}), configuration.read_indexed, network=Glm5NextText)
