"""A text decoder cut for tensor parallelism (Shoeybi et al. 2019, Megatron-LM, section 3): heads, MLP and vocabulary.

Each rank keeps its part of every layer; what follows is the sum of all parts. Rank 0 alone has the embeddings and what
encodes media. Of a tensor that is cut as it lies in its file, the part is read; one that was made of several is read
whole, cut and let go; others are not read.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .._runtime import mx, nn, tree_flatten, tree_unflatten
from ..errors import UnsupportedError
from ..models.base import Model
from ..models.text import unwrapped
from ..notices import notice

Group = mx.distributed.Group

DECODERS = (
    "cohere2", "deepseek", "ernie4_5", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text",
    "gemma4_unified_text", "glm4", "glm4_moe", "granite", "hunyuan_vl_text", "lfm2", "lfm3", "llama", "llama4_text",
    "ministral3", "mistral", "molmo2_text", "qwen2", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe",
)  # fmt: skip
"""Text decoders, by `model_type`, of which the tests compare cut ones with whole ones."""

FORWARDS = (
    "TextModel.forward", "VisionLanguageModel.forward", "MRopeModel.forward", "HunyuanVL.forward",
    "Ernie4_5VLMoe.forward", "Gemma4Decoder.forward",
)  # fmt: skip
"""Those that take of a prompt what `ranks` sends, and nothing else."""


@dataclass
class Ranks:
    """Those of a group, as this one cuts its part. take: `Parts.take` of the checkpoint."""

    group: Group
    take: Callable[[mx.array, int, int, int], mx.array]

    def __post_init__(self) -> None:
        self.rank, self.size = self.group.rank(), self.group.size()


def check(model: Model) -> None:
    """UnsupportedError for a model that is not cut."""
    driver = getattr(model, "driver", None)
    decoder = driver.arguments["model_type"] if driver else model.config["model_type"]
    if decoder not in DECODERS or type(model).forward.__qualname__ not in FORWARDS:
        raise UnsupportedError(
            f"shard: {model.config['model_type']} (its text decoder is {decoder}) runs on one rank only, unless "
            "--shard pipeline divides it; give that, or leave shard and ranks out"
        )


def shard(model: Model, ranks: Ranks) -> None:
    """Keep of the model's text decoder this rank's part. What the ranks do not divide stays whole, with a notice."""
    check(model)
    _ = model.vocab_size, model.embedding_rows  # remembered before the tables are cut
    decoder = unwrapped(model.text_decoder())
    whole: Counter[str] = Counter()
    for layer in decoder.model.layers:
        whole.update(_shard_layer(layer, ranks))
    if "lm_head" in decoder:
        path = next(path for path, module in model.named_modules() if module is decoder.lm_head)
        model.update_modules(tree_unflatten([(path, VocabularyPart(decoder.lm_head, ranks))]))
    else:
        decoder.model.embed_tokens = VocabularyTable(decoder.model.embed_tokens, ranks)
    if ranks.rank == 0:
        for part, count in whole.items():
            times = f"{count} times " if count > 1 else ""
            notice(f"sharding: {times}the {part} is whole on each rank: {ranks.size} ranks do not divide it")


def parameters(model: Model, group: Group) -> Iterator[mx.array]:
    """What this rank computes with, to be read."""
    if group.rank() == 0:
        yield from (tensor for _, tensor in tree_flatten(model.parameters()))
        return
    decoder = unwrapped(model.text_decoder())
    body = decoder.model
    norm = body.embedding_norm if "embedding_norm" in body else body.norm
    for part in [*body.layers, norm, decoder.lm_head if "lm_head" in decoder else body.embed_tokens]:
        yield from (tensor for _, tensor in tree_flatten(part.parameters()))


def rows_of(layer: Any, start: int, stop: int, ranks: Ranks) -> Any:
    """A linear layer or embedding table, quantized or not, with so many of its rows only."""
    part = copy.copy(layer)
    for name, tensor in layer.items():
        if isinstance(tensor, mx.array):
            part[name] = ranks.take(tensor, 0, start, stop)
    return part


def first_rows(layer: Any, count: int) -> Any:
    """The same for the first ones, in the layer's memory."""
    part = copy.copy(layer)
    for name, tensor in layer.items():
        if isinstance(tensor, mx.array):
            part[name] = tensor[:count]
    return part


def part_of(layer: Any, ranks: Ranks) -> Any:
    """This rank's rows of a linear layer."""
    count = _outputs(layer) // ranks.size
    return rows_of(layer, ranks.rank * count, (ranks.rank + 1) * count, ranks)


def columns_of(layer: Any, ranks: Ranks) -> Any:
    """A linear layer with this rank's part of its inputs; a bias stays as it is."""
    part = copy.copy(layer)
    for name, tensor in layer.items():
        if isinstance(tensor, mx.array) and name != "bias":
            part[name] = _split(tensor, ranks, axis=-1)
    return part


def _split(tensor: mx.array, ranks: Ranks, axis: int = 0) -> mx.array:
    count = tensor.shape[axis] // ranks.size
    return ranks.take(tensor, axis, ranks.rank * count, (ranks.rank + 1) * count)


def _split_joined(layer: Any, starts: Sequence[int], ranks: Ranks) -> None:
    """Keep this rank's rows of each of several layers that are joined to one; all but the first start there."""
    for name, tensor in layer.items():
        if isinstance(tensor, mx.array):
            parts = []
            for start, stop in pairwise([0, *starts, len(tensor)]):
                count = (stop - start) // ranks.size
                parts.append(ranks.take(tensor, 0, start + ranks.rank * count, start + (ranks.rank + 1) * count))
            layer[name] = mx.concatenate(parts)


class SummedLinear(nn.Module):
    """A linear layer whose inputs are cut: each rank multiplies its part, and the products are added."""

    def __init__(self, linear: Any, ranks: Ranks):
        super().__init__()
        self.linear, self._group = columns_of(linear, ranks), ranks.group
        if "bias" in linear:
            self.bias = self.linear.pop("bias")

    def __call__(self, x: mx.array) -> mx.array:
        y = mx.distributed.all_sum(self.linear(x), group=self._group)
        return y + self.bias if "bias" in self else y


class Summed(nn.Module):
    """What a mixture of experts that are cut becomes beside its class: the ranks' outputs (B, L, d) are added."""

    _group: Group

    def __call__(self, *arguments: Any) -> mx.array:
        return mx.distributed.all_sum(super().__call__(*arguments), group=self._group)


class VocabularyPart(nn.Module):
    """An output layer, of which each rank computes its part of the vocabulary: (..., d) -> (..., V)."""

    def __init__(self, linear: Any, ranks: Ranks):
        super().__init__()
        self.linear, self._size, self._group = _vocabulary_part(linear, ranks), _outputs(linear), ranks.group

    def __call__(self, h: mx.array) -> mx.array:
        return _gather(self.linear(h), self._size, self._group)


class VocabularyTable(nn.Module):
    """Embeddings that are the output layer, too: rank 0 has all of them, the others their part of the vocabulary."""

    def __init__(self, table: Any, ranks: Ranks):
        super().__init__()
        self._size, self._group = _outputs(table), ranks.group
        self.table = table if ranks.rank == 0 else _vocabulary_part(table, ranks)

    def __call__(self, tokens: mx.array) -> mx.array:
        embeds: mx.array = self.table(tokens)
        return embeds

    def as_linear(self, h: mx.array) -> mx.array:
        table, group = self.table, self._group
        if group.rank() == 0:
            table = first_rows(table, -(-self._size // group.size()))
        return _gather(table.as_linear(h), self._size, group)


def _vocabulary_part(layer: Any, ranks: Ranks) -> Any:
    """This rank's rows of an output layer. All have equally many: what the last ones lack is filled up with zeros."""
    size = _outputs(layer)
    count = -(-size // ranks.size)
    start, stop = (min(size, (ranks.rank + more) * count) for more in (0, 1))
    part = rows_of(layer, start, stop, ranks)
    for name, tensor in part.items():
        if isinstance(tensor, mx.array):
            part[name] = mx.pad(tensor, [(0, count - len(tensor))] + [(0, 0)] * (tensor.ndim - 1))
    return part


def _gather(part: mx.array, size: int, group: Group) -> mx.array:
    """(..., n) of each rank -> (..., size), the first of all that they have."""
    parts = mx.distributed.all_gather(part[None], group=group)
    return mx.moveaxis(parts, 0, -2).reshape(*part.shape[:-1], -1)[..., :size]


def _shard_layer(layer: Any, ranks: Ranks) -> Iterator[str]:
    """Cut what can be cut of a layer; gives what cannot."""
    if "linear_attn" in layer:
        if not _shard_delta_net(layer.linear_attn, ranks):
            yield f"linear attention of {layer.linear_attn.num_k_heads} heads"
    elif "conv" in layer:
        if not _shard_conv(layer.conv, ranks):
            yield f"convolution of {_inputs(layer.conv.out_proj)} channels"
    elif not _shard_attention(layer.self_attn, ranks):
        heads, pairs = (getattr(layer.self_attn, name) for name in _head_names(layer.self_attn))
        yield f"attention of {heads} heads on {pairs} of keys and values"
    name = "mlp" if "mlp" in layer else "feed_forward"
    mlp = layer[name]
    if "experts" in layer:  # Gemma 4's, beside another MLP
        experts = layer.experts.switch_glu
        if not _shard_experts(layer.experts, [experts], ranks):
            yield f"MLP of experts of width {_inputs(experts.down_proj)}"
    if several := [mlp[part] for part in ("switch_mlp", "switch_mlp_1", "experts") if part in mlp]:
        if not _shard_experts(mlp, several, ranks):
            yield f"MLP of experts of width {_inputs(several[0].down_proj)}"
    else:
        gate, up, down = next(names for names in _MLPS if all(name in mlp for name in names))
        if not _shard_mlp(mlp, gate, up, down, ranks):
            yield f"MLP of width {_inputs(mlp[down])}"


_HEADS = (
    ("n_heads", "n_kv_heads"),
    ("heads", "kv_heads"),
    ("heads", "groups"),
    ("num_attention_heads", "num_key_value_heads"),
    ("num_attention_heads", "num_kv_heads"),
)
"""What attention modules call the numbers of their heads."""


def _head_names(attention: Any) -> tuple[str, str]:
    return next(names for names in _HEADS if all(hasattr(attention, name) for name in names))


def _shard_attention(attention: Any, ranks: Ranks) -> bool:
    """Cut by heads, if the ranks divide them; some ranks share those of keys and values where these are fewer."""
    names, size = _head_names(attention), ranks.size
    heads, pairs = (getattr(attention, name) for name in names)
    if "att_proj" in attention:
        return _shard_joined_attention(attention, heads, pairs, ranks)
    last = "o_proj" if "o_proj" in attention else "out_proj"
    if heads % size or (pairs % size and size % pairs) or not _cuts_inputs(attention[last], size):
        return False
    count = max(1, pairs // size)
    first = ranks.rank * pairs // size
    attention.q_proj = part_of(attention.q_proj, ranks)
    for name in ("k_proj", "v_proj"):
        if name in attention:  # of a layer that has its own, or those of keys for both
            width = _outputs(attention[name]) // pairs
            attention[name] = rows_of(attention[name], first * width, (first + count) * width, ranks)
    if "gate_proj" in attention:  # LFM3's, of each head
        attention.gate_proj = part_of(attention.gate_proj, ranks)
    attention[last] = SummedLinear(attention[last], ranks)
    for name, number in zip(names, (heads // size, count), strict=True):
        setattr(attention, name, number)
    return True


def _shard_joined_attention(attention: Any, heads: int, pairs: int, ranks: Ranks) -> bool:
    """Cut Molmo 2's, if the ranks divide all heads and none is normalised with the others."""
    size = ranks.size
    if heads % size or pairs % size or not attention.per_head or not _cuts_inputs(attention.attn_out, size):
        return False
    width = _outputs(attention.att_proj) // (heads + 2 * pairs)
    ends = heads * width, (heads + pairs) * width
    _split_joined(attention.att_proj, ends, ranks)
    attention.attn_out = SummedLinear(attention.attn_out, ranks)
    attention.heads, attention.groups = heads // size, pairs // size
    attention._ends = ends[0] // size, ends[1] // size
    return True


def _shard_delta_net(net: Any, ranks: Ranks) -> bool:
    """Cut a gated delta net by heads, if the ranks divide those of its keys, which those of its values share."""
    size, keys = ranks.size, net.key_dim
    if net.num_k_heads % size or not _cuts_inputs(net.out_proj, size):
        return False
    for layer in (net.in_proj_qkv, net.conv1d):
        _split_joined(layer, [keys, 2 * keys], ranks)
    net.conv1d.groups //= size
    net.in_proj_z, net.in_proj_b, net.in_proj_a = (
        part_of(layer, ranks) for layer in (net.in_proj_z, net.in_proj_b, net.in_proj_a)
    )
    net.dt_bias, net.A_log = _split(net.dt_bias, ranks), _split(net.A_log, ranks)
    net.out_proj = SummedLinear(net.out_proj, ranks)
    for name in ("num_k_heads", "num_v_heads", "key_dim", "value_dim", "conv_dim"):
        setattr(net, name, getattr(net, name) // size)
    return True


def _shard_conv(conv: Any, ranks: Ranks) -> bool:
    """Cut LFM2's short convolution by channels, if the ranks divide them."""
    channels = _inputs(conv.out_proj)
    if not _cuts_inputs(conv.out_proj, ranks.size):
        return False
    _split_joined(conv.in_proj, [channels, 2 * channels], ranks)
    _split_joined(conv.conv, [], ranks)
    conv.conv.groups //= ranks.size
    conv.out_proj = SummedLinear(conv.out_proj, ranks)
    conv.args = copy.copy(conv.args)  # which says how wide a state is, and may be frozen
    object.__setattr__(conv.args, "hidden_size", channels // ranks.size)
    return True


_MLPS = (
    ("gate_proj", "up_proj", "down_proj"),
    ("w1", "w3", "w2"),
    ("gate_up_proj", "gate_up_proj", "down_proj"),
    ("ff_proj", "ff_proj", "ff_out"),
)
"""What MLPs call their layers, the first two of which may be one."""


def _shard_mlp(mlp: Any, gate: str, up: str, down: str, ranks: Ranks) -> bool:
    """Cut by its inner width, if the ranks divide that, and no value depends on the others, as Gemma 3n's do."""
    if not _cuts_inputs(mlp[down], ranks.size) or getattr(mlp, "_deviations", None) is not None:
        return False
    if gate == up:
        _split_joined(mlp[gate], [_inputs(mlp[down])], ranks)
    else:
        mlp[gate], mlp[up] = part_of(mlp[gate], ranks), part_of(mlp[up], ranks)
    mlp[down] = SummedLinear(mlp[down], ranks)
    return True


def _shard_experts(mixture: Any, experts: Sequence[Any], ranks: Ranks) -> bool:
    """Cut each expert by its inner width, if the ranks divide that: all ranks choose the same ones. experts: one or
    several modules, each of all experts of a kind."""
    shared = mixture.get("shared_expert", mixture.get("shared_experts"))
    downs = [part.down_proj for part in (*experts, shared) if part]
    if not all(_cuts_inputs(down, ranks.size) for down in downs):
        return False
    for part in experts:
        for layer, axis in ((part.gate_proj, 1), (part.up_proj, 1), (part.down_proj, 2)):
            for name, tensor in layer.items():
                if isinstance(tensor, mx.array):  # (E, out, in)
                    layer[name] = _split(tensor, ranks, axis)
    if shared:
        shared.gate_proj, shared.up_proj = part_of(shared.gate_proj, ranks), part_of(shared.up_proj, ranks)
        shared.down_proj = columns_of(shared.down_proj, ranks)
    kind = type(mixture)
    mixture.__class__ = type(kind.__name__, (Summed, kind), {"__module__": kind.__module__})
    mixture._group = ranks.group
    return True


def _cuts_inputs(layer: Any, ranks: int) -> bool:
    """Whether the inputs of a linear layer can be cut: within no group of quantized ones."""
    return _inputs(layer) % (ranks * (layer.group_size if "scales" in layer else 1)) == 0


def _inputs(layer: Any) -> int:
    columns: int = layer.weight.shape[-1]
    return columns * 32 // layer.bits if "scales" in layer else columns


def _outputs(layer: Any) -> int:
    rows: int = layer.weight.shape[0]
    return rows
