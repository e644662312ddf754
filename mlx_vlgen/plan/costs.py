"""What a forward of a model stores, reads and computes, on one rank of many: by shapes, without weights."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any

import numpy as np

from .._runtime import mx, nn, tree_flatten
from ..distributed.pipeline import divided
from ..distributed.shard import Ranks, Summed, SummedLinear, check, parameters, shard
from ..engine.budget import LayerSize, bytes_needed
from ..engine.cache import make_cache
from ..engine.kv_settings import KVSettings
from ..errors import UnsupportedError
from ..inputs.prompt import Prompt
from ..models.base import LayerKind, Model, Opaque, Sliding
from ..models.building import building_only
from ..models.configuration import text_config
from ..models.text import unwrapped
from .picture import Tower

Cache = tuple[LayerKind, LayerSize]


@dataclass(frozen=True)
class Layer:
    """A layer of the text decoder, on one rank.

    dense: bytes that every forward reads. experts: bytes of all experts, of which a token takes `chosen` of `of`.
    flops: of a token, pair_flops: of its attention to one position, window: how many positions it sees. sums: over
    ranks.
    """

    dense: int = 0
    experts: int = 0
    chosen: int = 1
    of: int = 1
    flops: float = 0
    pair_flops: float = 0
    window: float = math.inf
    sums: int = 0

    def read(self, tokens: float) -> float:
        """Bytes that a forward of so many tokens reads, if each chooses its experts by chance."""
        return self.dense + self.experts * (1 - (1 - self.chosen / self.of) ** tokens)

    def prompt_flops(self, tokens: float) -> float:
        return tokens * (self.flops + self.pair_flops * min(self.window, tokens / 2))


@dataclass(frozen=True)
class Costs:
    """One rank's part, or the whole model.

    stored: bytes of the parameters. head: bytes of the output layer. width: of hidden states, vocabulary: rows of the
    output layer, itemsize: bytes of a float. tied: whether it is the embeddings, too.
    """

    layers: Sequence[Layer]
    caches: Sequence[Cache]
    stored: int
    head: float
    head_flops: float
    width: int
    vocabulary: int
    itemsize: int
    tied: bool
    tower: Tower | None

    def cache(self, positions: int) -> int:
        """Bytes of one row's keys, values and states."""
        return bytes_needed(Counter(self.caches), KVSettings(), positions)

    @property
    def sums(self) -> int:
        return sum(layer.sums for layer in self.layers)

    def stages(self, count: int) -> Iterator["Costs"]:
        """Divided by layers, as `distributed.pipeline` does it: the first has all besides the layers."""
        sizes = [layer.dense + layer.experts for layer in self.layers]
        beside, begin, total = self.stored - sum(sizes), 0, len(self.layers)
        for stage, number in enumerate(divided(sizes, beside, count)):
            end = begin + number
            caches = self.caches[len(self.caches) * begin // total : len(self.caches) * end // total]
            stored, layers = sum(sizes[begin:end]), self.layers[begin:end]
            if stage == 0:
                yield replace(self, layers=layers, caches=caches, stored=stored + beside)
            else:
                yield replace(self, layers=layers, caches=caches, stored=stored, head=0, head_flops=0, tower=None)
            begin = end


class _Rank:
    """Stands for a group where nothing is sent."""

    def __init__(self, rank: int, size: int):
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


def _take(tensor: mx.array, axis: int, start: int, stop: int) -> mx.array:
    """A part of a tensor along an axis."""
    return mx.take(tensor, mx.arange(start, stop), axis)


def costs_of(model: Model) -> Costs:
    """Of the whole model. UnsupportedError for one whose caches are known to itself only."""
    layout = model.cache_layout()
    if any(isinstance(kind, Opaque) for kind in layout):
        raise UnsupportedError(
            f"plan: {model.config['model_type']} runs whole, by code whose caches are not known here"
        )
    cache = make_cache(layout)
    with building_only():
        model(model.embed(Prompt(np.zeros(1, np.int32)), ()), cache)
    caches = [(kind, LayerSize.of(layer)) for kind, layer in zip(layout, cache, strict=True)]
    decoder = unwrapped(model.text_decoder())
    chosen = _chosen(model)
    layers = [_layer(layer, chosen) for layer in decoder.model.layers]
    if len(layers) == len(caches):
        layers = [
            replace(layer, window=kind.window) if isinstance(kind, Sliding) else layer
            for layer, (kind, _) in zip(layers, caches, strict=True)
        ]
    head = decoder.lm_head if "lm_head" in decoder else _embeddings(decoder.model)
    table = _bytes(head)
    return Costs(
        layers=layers,
        caches=caches,
        stored=sum(tensor.nbytes for _, tensor in tree_flatten(model.parameters())),
        head=table,
        head_flops=2 * math.prod(_shape(head)),
        width=_shape(head)[1],
        vocabulary=_shape(head)[0],
        itemsize=model.dtype.size,
        tied="lm_head" not in decoder,
        tower=Tower.of(model),
    )


def rank_costs(model: Model, whole: Costs, rank: int, ranks: int) -> Costs:
    """Of one rank of many: `model` is cut as `distributed` cuts it, and of no use afterwards. UnsupportedError for one
    that is not cut. whole: its `costs_of`."""
    check(model)
    group: Any = _Rank(rank, ranks)
    layers = unwrapped(model.text_decoder()).model.layers
    before = [_heads(layer) for layer in layers]
    shard(model, Ranks(group, _take))
    chosen = _chosen(model)
    cut = [
        replace(_layer(layer, chosen), window=uncut.window) for layer, uncut in zip(layers, whole.layers, strict=True)
    ]
    parts = [_heads(layer) / count for layer, count in zip(layers, before, strict=True)]
    caches = [
        (kind, LayerSize(int(size.width * part), size.itemsize, int(size.state * part)))
        for (kind, size), part in zip(whole.caches, chain(parts, repeat(1)), strict=False)  # an indexer's are whole
    ]
    return replace(
        whole,
        layers=cut,
        caches=caches,
        stored=sum(tensor.nbytes for tensor in parameters(model, group)),
        head=whole.head / ranks,
        head_flops=whole.head_flops / ranks,
        tower=whole.tower if rank == 0 else None,
    )


_CHOSEN = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k", "moe_top_k", "num_experts_per_token")


def _chosen(model: Model) -> int:
    """How many experts a token takes."""
    config = text_config(model.config)
    found = next((config[name] for name in _CHOSEN if config.get(name)), 1)
    return max(found) if isinstance(found, list | tuple) else int(found)


def _layer(layer: Any, chosen: int) -> Layer:
    dense, experts, of, flops = 0, 0, 1, 0.0
    for _, module in layer.named_modules():
        if (shape := _shape(module)) is None:
            dense += sum(value.nbytes for value in module.values() if isinstance(value, mx.array))
        elif hasattr(module, "num_experts"):  # mlx-lm's SwitchLinear: (E, out, in)
            of = shape[0]
            experts += _bytes(module)
            flops += 2 * chosen * shape[1] * shape[2]
        else:
            dense += _bytes(module)
            flops += 2 * math.prod(shape)
    return Layer(dense, experts, min(chosen, of), of, flops, _pair_flops(layer), sums=_sums(layer))


def _sums(layer: Any) -> int:
    """Of a cut mixture of experts the sum stands around all of it."""
    return sum(isinstance(module, Summed | SummedLinear) for _, module in layer.named_modules())


def _pair_flops(layer: Any) -> float:
    """Products of a query with a key and of its weight with a value, over all heads."""
    attention = layer.get("self_attn") or layer.get("attention")
    if attention is None:
        return 0
    last = next((attention[name] for name in ("o_proj", "out_proj", "wo", "dense") if name in attention), None)
    last = getattr(last, "linear", last)
    shape = _shape(last)
    return 4 * shape[1] if shape else 0


def _heads(layer: Any) -> int:
    """What of a layer's cache a cut divides: heads of keys and values, or channels of a state; 1 where all ranks have
    the whole, as of latent keys."""
    if "linear_attn" in layer:
        return int(layer.linear_attn.num_v_heads)
    if "conv" in layer:
        return int(layer.conv.args.hidden_size)
    attention = layer.self_attn
    names = ("n_kv_heads", "kv_heads", "num_key_value_heads")
    return int(next((getattr(attention, name) for name in names if hasattr(attention, name)), 1))


def _embeddings(body: Any) -> Any:
    """The table that is the output layer, too: the one with most rows."""
    tables = [module for _, module in body.named_modules() if isinstance(module, nn.Embedding | nn.QuantizedEmbedding)]
    return max(tables, key=lambda table: _shape(table)[0])


def _bytes(module: Any) -> int:
    return sum(value.nbytes for value in module.values() if isinstance(value, mx.array))


def _shape(module: Any) -> Any:
    """Of the weight as if it were not quantized; None without a matrix."""
    weight = module.get("weight") if isinstance(module, nn.Module) else None
    if not isinstance(weight, mx.array) or weight.ndim < 2:
        return None
    shape = list(weight.shape)
    if "scales" in module:
        shape[-1] = shape[-1] * 32 // module.bits
    return tuple(shape)
