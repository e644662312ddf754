"""The text decoder of Qwen4-Exp: Qwen3.5's layers between hyper-connections, of which those with attention see the
blocks of keys that an indexer chooses, and some of the linear ones read hashed n-grams of the tokens.

Source: Zhu et al. 2024 on hyper-connections (arXiv 2409.19606); transformers' Qwen4ExpTextModel, whose names of
parameters these are.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._mlx_lm import GatedAttention, GatedDeltaNet, SharedExpertMoE
from .._runtime import mx, nn
from . import configuration, refusals
from .backbone import Masks, RotaryOffsetCache, TextDecoder, last_of
from .base import Embedded, Full, LayerKind, Recurrent, Whole
from .configuration import BaseConfig
from .decoders import Decoder
from .indexer import chosen_keys, narrowed
from .layers import pace
from .text_attention import avoid_exp

SHARD = re.compile(r"(.*\.ngram_embedding)\.(?:shard_|shards\.)(\d+)\.(weight|scales|biases)")


@dataclass(frozen=True)
class Qwen4ExpTextConfig(BaseConfig):
    vocab_size: int = 248320
    hidden_size: int = 2048
    num_hidden_layers: int = 40
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 256
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    output_gate_type: str | None = None
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts_per_tok: int = 10
    num_experts: int = 512
    norm_topk_prob: bool = True
    layer_types: Sequence[str] | None = None
    full_attention_interval: int = 4
    eos_token_id: int | Sequence[int] | None = None
    hc_count: int = 4
    hc_lowrank: int = 320
    ple_layer_ids: Sequence[int] | None = None
    ple_embed_dim: int | None = None
    ple_conv_kernel_size: int = 4
    ngram_size: int = 3
    heads_per_ngram: int = 8
    ngram_vocab_size_base: int = 20_000_000
    make_ngram_vocab_size_divisible_by: int = 128
    split_ngram_parts: int = 512
    indexer_n_heads: int | None = None
    indexer_kv_heads: int | None = None
    indexer_head_dim: int | None = None
    indexer_budget: int | None = None
    indexer_compress_ratio: int | None = None

    def is_linear(self, layer: int) -> bool:
        if self.layer_types is not None:
            return self.layer_types[layer] == "linear_attention"
        return (layer + 1) % self.full_attention_interval != 0

    def ngram_layer(self, layer: int) -> int | None:
        """Its place among the layers that read n-grams; None where it reads none."""
        layers = sorted({*(self.ple_layer_ids or ())})
        return layers.index(layer + 1) if layer + 1 in layers else None

    @property
    def first_eos(self) -> int:
        ids = self.eos_token_id
        assert ids is not None
        return ids if isinstance(ids, int) else ids[0]

    def ngram_rows(self, place: int) -> int:
        """Rows of the table of the layer at this place among those that read n-grams: each head has as many as the next
        prime says, and no two heads of all layers have the same."""
        heads = (self.ngram_size - 1) * self.heads_per_ngram
        size, sizes = self.ngram_vocab_size_base - 1, list[int]()
        while len(sizes) < (place + 1) * heads:
            size += 1
            if is_prime(size):
                sizes.append(size)
        part = self.make_ngram_vocab_size_divisible_by
        return -(-sum(sizes[-heads:]) // part) * part


def is_prime(n: int) -> bool:
    return n > 1 and all(n % divisor for divisor in range(2, int(n**0.5) + 1))


class GatedNorm(nn.Module):
    """RMSNorm of linear attention's heads (..., D), times the sigmoid of a gate."""

    def __init__(self, dims: int, eps: float):
        super().__init__()
        self.weight, self.eps = mx.ones(dims), eps

    def __call__(self, x: mx.array, gate: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, self.eps) * mx.sigmoid(gate.astype(mx.float32)).astype(x.dtype)


class Norm(nn.Module):
    """RMSNorm whose weight is what is added to 1, in float32: in bfloat16 the sum has seven bits."""

    def __init__(self, dims: int, eps: float):
        super().__init__()
        self.weight, self.eps = mx.zeros(dims), eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, 1.0 + self.weight.astype(mx.float32), self.eps).astype(x.dtype)


class StreamNorm(Norm):
    """Of hyper-connections' streams (..., streams * d), each apart."""

    def __init__(self, streams: int, hidden: int, eps: float):
        super().__init__(streams * hidden, eps)
        self._streams = streams

    def __call__(self, x: mx.array) -> mx.array:
        each = x.reshape(*x.shape[:-1], self._streams, -1)
        normed = mx.fast.rms_norm(each, None, self.eps).flatten(-2)
        return (normed * (1.0 + self.weight.astype(mx.float32))).astype(x.dtype)


class HyperConnection(nn.Module):
    """Streams (B, L, streams * d) -> what a layer takes (B, L, d), and how much of what it gives goes to each stream,
    (B, L, streams); that is None for the last one, which only mixes them."""

    def __init__(self, config: Qwen4ExpTextConfig, injects: bool = True):
        super().__init__()
        self.streams = config.hc_count
        width = config.hc_count * config.hidden_size
        self.hc_norm = StreamNorm(config.hc_count, config.hidden_size, config.rms_norm_eps)
        self.input_mix_weight_down = nn.Linear(width, config.hc_lowrank, bias=False)
        self.input_mix_weight_up = nn.Linear(config.hc_lowrank, width, bias=False)
        if injects:
            self.block_inject_weight = nn.Linear(width, config.hc_count, bias=False)

    def __call__(self, streams: mx.array) -> tuple[mx.array, mx.array | None]:
        x = self.hc_norm(streams)
        weights = nn.silu(self.input_mix_weight_down(x) / self.streams)
        weights = mx.sigmoid(self.input_mix_weight_up(weights))
        mixed = (weights * x).reshape(*x.shape[:-1], self.streams, -1).mean(axis=-2)
        if "block_inject_weight" not in self:
            return mixed, None
        return mixed, 2 * mx.sigmoid(self.block_inject_weight(x) / self.streams)


def injected(streams: mx.array, x: mx.array, weights: mx.array | None) -> mx.array:
    """Streams (B, L, streams * d) and what a layer gave, (B, L, d), in each by its weight."""
    assert weights is not None
    return streams + (x[..., None, :] * weights[..., None]).flatten(-2)


class NGramEmbedding(nn.Module):
    """Rows of a table by the hash of each token and those before it, of one n after the other and several heads each.

    What is before the first token, or before the end of an earlier text, counts as an end token.
    """

    def __init__(self, config: Qwen4ExpTextConfig, place: int):
        super().__init__()
        heads = (config.ngram_size - 1) * config.heads_per_ngram
        self.layer_multipliers = mx.zeros(config.ngram_size, mx.int64)
        self.ngram_heads_vocab_sizes = mx.ones(heads, mx.int64)
        self.ngram_heads_offsets = mx.zeros(heads, mx.int64)
        width = (config.ple_embed_dim or config.hidden_size) // heads
        self.ngram_embedding = nn.Embedding(config.ngram_rows(place), width)
        self._eos, self._context = config.first_eos, config.ngram_size - 1

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:  # (B, L) -> (B, L, heads * width)
        (batch, length), context = tokens.shape, self._context
        before = cache[3]
        if before is None:
            before = mx.full((batch, context), self._eos, tokens.dtype)
        history = mx.concatenate([before, tokens], axis=1)
        cache[3] = last_of(history, context, length, cache)
        history = history.astype(mx.int64)
        mixed = history[:, context:] * self.layer_multipliers[0]
        ended, ids = mx.zeros((batch, length), mx.bool_), []
        for back in range(1, context + 1):
            earlier = history[:, context - back : context - back + length]
            mixed = mixed ^ (mx.where(ended, self._eos, earlier) * self.layer_multipliers[back])
            ended = ended | (earlier == self._eos)
            ids.append(mixed[..., None])
        per_head = mx.repeat(mx.concatenate(ids, axis=-1), len(self.ngram_heads_offsets) // context, axis=-1)
        return self.ngram_embedding(per_head % self.ngram_heads_vocab_sizes + self.ngram_heads_offsets).flatten(-2)


class NGrams(nn.Module):
    """What n-grams of the tokens add to each stream: gated by the stream, and convolved over earlier tokens."""

    def __init__(self, config: Qwen4ExpTextConfig, place: int):
        super().__init__()
        hidden, streams, eps = config.hidden_size, config.hc_count, config.rms_norm_eps
        width, embedded = streams * hidden, config.ple_embed_dim or hidden
        self.ple_embedding = NGramEmbedding(config, place)
        self.key_proj = nn.Linear(embedded, width, bias=False)
        self.value_proj = nn.Linear(embedded, hidden, bias=False)
        self.norm_key, self.norm_query, self.norm_conv = (StreamNorm(streams, hidden, eps) for _ in range(3))
        kernel, dilation = config.ple_conv_kernel_size, config.ngram_size
        self.conv1d = nn.Conv1d(width, width, kernel, dilation=dilation, groups=width, bias=False)
        self._streams, self._before = streams, (kernel - 1) * dilation

    def __call__(self, streams: mx.array, tokens: mx.array, cache: Any) -> mx.array:
        """streams (B, L, streams * d); tokens (B, L)."""
        embeds = self.ple_embedding(tokens, cache)
        split = (*streams.shape[:2], self._streams, -1)
        key, query = self.norm_key(self.key_proj(embeds)).reshape(split), self.norm_query(streams).reshape(split)
        gate = (key * query).sum(axis=-1, keepdims=True) * key.shape[-1] ** -0.5
        gate = mx.sqrt(mx.maximum(mx.abs(gate), 1e-6)) * mx.sign(gate)
        value = (mx.sigmoid(gate) * self.value_proj(embeds)[..., None, :]).flatten(-2)
        normed = self.norm_conv(value)
        before = cache[2]
        if before is None:
            before = mx.zeros((len(normed), self._before, normed.shape[-1]), normed.dtype)
        history = mx.concatenate([before, normed], axis=1)
        cache[2] = last_of(history, self._before, normed.shape[1], cache)
        return value + nn.silu(self.conv1d(history))


class Indexer(nn.Module):
    """Scores blocks of keys, each by the mean of its tokens', rotated to where the block begins."""

    def __init__(self, config: Qwen4ExpTextConfig):
        super().__init__()
        assert config.indexer_n_heads and config.indexer_head_dim
        assert config.indexer_budget and config.indexer_compress_ratio
        self._width, self._size = config.indexer_head_dim, config.indexer_compress_ratio
        self._count = config.indexer_budget // config.indexer_compress_ratio
        self.index_qk_proj = nn.Linear(config.hidden_size, (config.indexer_n_heads + 1) * self._width, bias=False)
        self.q_layernorm, self.k_layernorm = (Norm(self._width, config.rms_norm_eps) for _ in range(2))
        self.rope: Any = None  # the family's

    def __call__(self, x: mx.array, offset: Any, positions: mx.array, cache: Any) -> mx.array | None:
        """The keys that x (B, L, d) may attend to, (B, 1, L, K) bool; None where they are all.

        offset: see `MRope`. positions: (B, 1, L, 3), the same, which the cache has beside the keys.
        """
        first, rope = cache.offset, self.rope
        qk = self.index_qk_proj(x).reshape(*x.shape[:2], -1, self._width).swapaxes(1, 2)  # (B, heads + 1, L, D)
        keys, places = cache.update_and_fetch(qk[:, -1:], positions)
        blocks = keys.shape[2] // self._size
        if blocks <= self._count:
            return None
        whole = keys[:, 0, : blocks * self._size].reshape(len(keys), blocks, self._size, -1)
        pooled = self.k_layernorm(whole.astype(mx.float32).mean(axis=2).astype(keys.dtype))
        starts = places[:, 0, : blocks * self._size : self._size].transpose(2, 0, 1)  # (3, B, blocks)
        k = rope(pooled[:, None], rope.angles(starts)).astype(mx.float32)
        q = rope(self.q_layernorm(qk[:, :-1]), offset).astype(mx.float32)
        scores = mx.maximum(q @ k.swapaxes(-1, -2), 0).sum(axis=1) * self._width**-0.5  # (B, L, blocks)
        return chosen_keys(scores, first, self._size, self._count, keys.shape[2])


class Attention(GatedAttention):
    """rope: set by the family."""

    def __init__(self, config: Qwen4ExpTextConfig):
        super().__init__(config)
        self.q_norm, self.k_norm = (Norm(config.head_dim, config.rms_norm_eps) for _ in range(2))
        self.indexer = Indexer(config)


class Layer(nn.Module):
    def __init__(self, config: Qwen4ExpTextConfig, layer: int):
        super().__init__()
        if config.is_linear(layer):
            self.linear_attn = GatedDeltaNet(config)
            if (config.output_gate_type or config.hidden_act) == "sigmoid":
                self.linear_attn.norm = GatedNorm(config.linear_value_head_dim, config.rms_norm_eps)
        else:
            self.self_attn = Attention(config)
        place = config.ngram_layer(layer)
        if place is not None:
            self.ple = NGrams(config, place)
        self.mlp = SharedExpertMoE(config)
        self.attn_hyper_connection, self.mlp_hyper_connection = HyperConnection(config), HyperConnection(config)
        avoid_exp(self)


class Body(nn.Module):
    def __init__(self, config: Qwen4ExpTextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config, layer) for layer in range(config.num_hidden_layers)]
        self.hyper_connection_mixer = HyperConnection(config, injects=False)

    def __call__(self, inputs: Embedded, cache: Sequence[Any], offset: Any) -> mx.array:
        """(B, L, streams * d), before they are mixed. offset: see `MRope`."""
        h = self.embed_tokens(inputs.tokens) if inputs.embeds is None else inputs.embeds
        h = mx.tile(h, self.hyper_connection_mixer.streams)
        masks, arrays = Masks(h), Masks(h, arrays=True)
        positions = places(inputs, offset)
        indexes = iter(cache[len(self.layers) :])
        for layer, layer_cache in zip(self.layers, cache, strict=False):
            before, linear = h, "linear_attn" in layer
            if "ple" in layer:
                h = h + layer.ple(h, inputs.tokens, layer_cache)
            x, weights = layer.attn_hyper_connection(h)
            if linear:
                x = layer.linear_attn(x, masks(layer_cache), layer_cache)
            else:
                chosen = layer.self_attn.indexer(x, offset, positions, next(indexes))
                mask = masks(layer_cache) if chosen is None else narrowed(arrays(layer_cache), chosen)
                x = layer.self_attn(x, mask, RotaryOffsetCache(layer_cache, offset))
            h = injected(h, x, weights)
            x, weights = layer.mlp_hyper_connection(h)
            h = injected(h, layer.mlp(x), weights)
            if inputs.paced:
                pace(before, h)
        return h


def places(inputs: Embedded, offset: Any) -> mx.array:
    """The rotary positions (B, 1, L, 3) of `inputs`, which an indexer's cache has."""
    if inputs.positions is not None:
        return inputs.positions.transpose(1, 2, 0)[:, None]
    batch, length = inputs.tokens.shape
    running = mx.array(offset).reshape(-1, 1) + mx.arange(length)
    return mx.broadcast_to(running[:, None, :, None], (batch, 1, length, 3))


class Qwen4ExpText(TextDecoder):
    def __init__(self, args: Mapping[str, Any]):
        """args: as `decoders.text_arguments` gives them."""
        config = Qwen4ExpTextConfig.from_dict(args)
        super().__init__(config, Body(config), config.tie_word_embeddings)

    def cache_layout(self) -> list[LayerKind]:
        """A linear layer's convolution and state; where it reads n-grams, also what these convolve, and tokens."""
        kinds: list[LayerKind] = [
            Recurrent(4 if "ple" in layer else 2) if "linear_attn" in layer else Full() for layer in self.layers
        ]
        return kinds + [Whole() for kind in kinds if kind == Full()]

    def cast_predicate(self, name: str) -> bool:
        """Which parameters may be narrowed."""
        return not name.endswith("A_log")

    def quant_predicate(self, path: str, module: nn.Module) -> bool | dict[str, int]:
        """How layers are quantized: rounded routers may choose other experts."""
        return {"group_size": 64, "bits": 8} if path.endswith(("mlp.gate", "shared_expert_gate")) else True

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """torch's convolutions (d, 1, K) with their channels last; tables of n-grams, which are published in parts,
        whole."""
        out, parts = dict[str, mx.array](), dict[str, dict[int, mx.array]]()
        for name, tensor in weights.items():
            if shard := SHARD.fullmatch(name):
                parts.setdefault(f"{shard[1]}.{shard[3]}", {})[int(shard[2])] = tensor
                continue
            if name.startswith("lm_head.") and "lm_head" not in self:
                continue
            turned = name.endswith("conv1d.weight") and tensor.shape[1] == 1
            out[name] = tensor.swapaxes(1, 2) if turned else tensor
        return out | {name: mx.concatenate([rows[i] for i in sorted(rows)]) for name, rows in parts.items()}


DECODER = Decoder(refusals.qwen4_exp, Qwen4ExpTextConfig.complete({}), configuration.read_indexed, network=Qwen4ExpText)
