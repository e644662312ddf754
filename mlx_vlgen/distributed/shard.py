"""A text decoder cut for tensor parallelism (Shoeybi et al. 2019, Megatron-LM, section 3): heads, MLP and vocabulary.

Each rank keeps its part of every layer; what follows is the sum of all parts. Rank 0 alone has the embeddings and what
encodes media. Weights that are lazy stay so: a cut tensor is read whole, cut and let go, and others are not read.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from .._runtime import mx, nn, tree_flatten, tree_unflatten
from ..errors import UnsupportedError
from ..models.base import Model
from ..models.mrope import MRopeModel
from ..models.text import TextModel, unwrapped
from ..models.vision_language import VisionLanguageModel
from ..notices import notice

Group = mx.distributed.Group

DECODERS = (
    "cohere2", "ernie4_5", "gemma", "gemma2", "gemma3_text", "glm4", "glm4_moe", "granite", "lfm2", "llama",
    "ministral3", "mistral", "qwen2", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe",
)  # fmt: skip
"""Text decoders, by `model_type`, of which the tests compare cut ones with whole ones."""

FORWARDS = (TextModel.forward, VisionLanguageModel.forward, MRopeModel.forward)
"""Those that take of a prompt what `ranks` sends, and nothing else."""


def check(model: Model) -> None:
    """UnsupportedError for a model that is not cut."""
    driver = getattr(model, "driver", None)
    decoder = driver.arguments["model_type"] if driver else model.config["model_type"]
    if decoder not in DECODERS or getattr(type(model), "forward", None) not in FORWARDS:
        raise UnsupportedError(
            f"shard: {model.config['model_type']} (its text decoder is {decoder}) runs on one rank only; leave shard "
            "and ranks out"
        )


def shard(model: Model, group: Group) -> None:
    """Keep of the model's text decoder this rank's part. What the ranks do not divide stays whole, with a notice."""
    check(model)
    _ = model.vocab_size, model.embedding_rows  # remembered before the tables are cut
    decoder = unwrapped(model.text_decoder())
    whole: Counter[str] = Counter()
    for layer in decoder.model.layers:
        whole.update(_shard_layer(layer, group))
    if "lm_head" in decoder:
        path = next(path for path, module in model.named_modules() if module is decoder.lm_head)
        model.update_modules(tree_unflatten([(path, VocabularyPart(decoder.lm_head, group))]))
    else:
        decoder.model.embed_tokens = VocabularyTable(decoder.model.embed_tokens, group)
    if group.rank() == 0:
        for part, count in whole.items():
            times = f"{count} times " if count > 1 else ""
            notice(f"sharding: {times}the {part} is whole on each rank: {group.size()} ranks do not divide it")


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


def rows_of(layer: Any, start: int, stop: int, apart: bool = True) -> Any:
    """A linear layer or embedding table, quantized or not, with so many of its rows only. apart: in memory of their
    own."""
    part = copy.copy(layer)
    for name, tensor in layer.items():
        if isinstance(tensor, mx.array):
            part[name] = mx.contiguous(tensor[start:stop]) if apart else tensor[start:stop]
    return part


def part_of(layer: Any, group: Group) -> Any:
    """This rank's rows of a linear layer."""
    count = _outputs(layer) // group.size()
    return rows_of(layer, group.rank() * count, (group.rank() + 1) * count)


def columns_of(layer: Any, group: Group) -> Any:
    """A linear layer with this rank's part of its inputs; a bias stays as it is."""
    part = copy.copy(layer)
    for name, tensor in layer.items():
        if isinstance(tensor, mx.array) and name != "bias":
            part[name] = _split(tensor, group, axis=-1)
    return part


def _split(tensor: mx.array, group: Group, axis: int = 0) -> mx.array:
    return mx.contiguous(mx.split(tensor, group.size(), axis=axis)[group.rank()])


def _split_joined(layer: Any, starts: Sequence[int], group: Group) -> None:
    """Keep this rank's rows of each of several layers that are joined to one; all but the first start there."""
    for name, tensor in layer.items():
        if isinstance(tensor, mx.array):
            parts = mx.split(tensor, list(starts))
            layer[name] = mx.contiguous(mx.concatenate([_split(part, group) for part in parts]))


class SummedLinear(nn.Module):
    """A linear layer whose inputs are cut: each rank multiplies its own, and the products are added."""

    def __init__(self, linear: Any, group: Group):
        super().__init__()
        self.linear, self._group = columns_of(linear, group), group
        if "bias" in linear:
            self.bias = self.linear.pop("bias")

    def __call__(self, x: mx.array) -> mx.array:
        y = mx.distributed.all_sum(self.linear(x), group=self._group)
        return y + self.bias if "bias" in self else y


class Summed(nn.Module):
    """A mixture of experts that are cut: the ranks' outputs (B, L, d) are added."""

    def __init__(self, mixture: Any, group: Group):
        super().__init__()
        self.mixture, self._group = mixture, group

    def __call__(self, x: mx.array) -> mx.array:
        return mx.distributed.all_sum(self.mixture(x), group=self._group)


class VocabularyPart(nn.Module):
    """An output layer, of which each rank computes its part of the vocabulary: (..., d) -> (..., V)."""

    def __init__(self, linear: Any, group: Group):
        super().__init__()
        self.linear, self._size, self._group = _vocabulary_part(linear, group), _outputs(linear), group

    def __call__(self, h: mx.array) -> mx.array:
        return _gather(self.linear(h), self._size, self._group)


class VocabularyTable(nn.Module):
    """Embeddings that are the output layer, too: rank 0 has all of them, the others their part of the vocabulary."""

    def __init__(self, table: Any, group: Group):
        super().__init__()
        self._size, self._group = _outputs(table), group
        self.table = table if group.rank() == 0 else _vocabulary_part(table, group)

    def __call__(self, tokens: mx.array) -> mx.array:
        embeds: mx.array = self.table(tokens)
        return embeds

    def as_linear(self, h: mx.array) -> mx.array:
        table, group = self.table, self._group
        if group.rank() == 0:
            table = rows_of(table, 0, -(-self._size // group.size()), apart=False)
        return _gather(table.as_linear(h), self._size, group)


def _vocabulary_part(layer: Any, group: Group) -> Any:
    """This rank's rows of an output layer. All have equally many: what the last ones lack is filled up with zeros."""
    size = _outputs(layer)
    count = -(-size // group.size())
    start, stop = (min(size, (group.rank() + more) * count) for more in (0, 1))
    part = rows_of(layer, start, stop)
    for name, tensor in part.items():
        if isinstance(tensor, mx.array):
            part[name] = mx.pad(tensor, [(0, count - len(tensor))] + [(0, 0)] * (tensor.ndim - 1))
    return part


def _gather(part: mx.array, size: int, group: Group) -> mx.array:
    """(..., n) of each rank -> (..., size), the first of all that they have."""
    parts = mx.distributed.all_gather(part[None], group=group)
    return mx.moveaxis(parts, 0, -2).reshape(*part.shape[:-1], -1)[..., :size]


def _shard_layer(layer: Any, group: Group) -> Iterator[str]:
    """Cut what can be cut of a layer; gives what cannot."""
    if "linear_attn" in layer:
        if not _shard_delta_net(layer.linear_attn, group):
            yield f"linear attention of {layer.linear_attn.num_k_heads} heads"
    elif "conv" in layer:
        if not _shard_conv(layer.conv, group):
            yield f"convolution of {_inputs(layer.conv.out_proj)} channels"
    elif not _shard_attention(layer.self_attn, group):
        heads, pairs = (getattr(layer.self_attn, name) for name in _head_names(layer.self_attn))
        yield f"attention of {heads} heads on {pairs} of keys and values"
    name = "mlp" if "mlp" in layer else "feed_forward"
    mlp = layer[name]
    if "switch_mlp" in mlp:
        if _shard_experts(mlp, group):
            layer[name] = Summed(mlp, group)
        else:
            yield f"MLP of experts of width {_inputs(mlp.switch_mlp.down_proj)}"
    elif not _shard_mlp(mlp, group):
        yield f"MLP of width {_inputs(mlp.w2 if 'w2' in mlp else mlp.down_proj)}"


_HEADS = (("n_heads", "n_kv_heads"), ("heads", "kv_heads"), ("num_attention_heads", "num_key_value_heads"))
"""What attention modules call the numbers of their heads."""


def _head_names(attention: Any) -> tuple[str, str]:
    return next(names for names in _HEADS if hasattr(attention, names[0]))


def _shard_attention(attention: Any, group: Group) -> bool:
    """Cut by heads, if the ranks divide them; some ranks share those of keys and values where these are fewer."""
    names, ranks = _head_names(attention), group.size()
    heads, pairs = (getattr(attention, name) for name in names)
    last = "o_proj" if "o_proj" in attention else "out_proj"
    if heads % ranks or (pairs % ranks and ranks % pairs) or not _cuts_inputs(attention[last], ranks):
        return False
    width = _outputs(attention.k_proj) // pairs
    count = max(1, pairs // ranks)
    first = group.rank() * pairs // ranks
    attention.q_proj = part_of(attention.q_proj, group)
    attention.k_proj, attention.v_proj = (
        rows_of(layer, first * width, (first + count) * width) for layer in (attention.k_proj, attention.v_proj)
    )
    attention[last] = SummedLinear(attention[last], group)
    for name, number in zip(names, (heads // ranks, count), strict=True):
        setattr(attention, name, number)
    return True


def _shard_delta_net(net: Any, group: Group) -> bool:
    """Cut a gated delta net by heads, if the ranks divide those of its keys, which those of its values share."""
    ranks, keys = group.size(), net.key_dim
    if net.num_k_heads % ranks or not _cuts_inputs(net.out_proj, ranks):
        return False
    for layer in (net.in_proj_qkv, net.conv1d):
        _split_joined(layer, [keys, 2 * keys], group)
    net.conv1d.groups //= ranks
    net.in_proj_z, net.in_proj_b, net.in_proj_a = (
        part_of(layer, group) for layer in (net.in_proj_z, net.in_proj_b, net.in_proj_a)
    )
    net.dt_bias, net.A_log = _split(net.dt_bias, group), _split(net.A_log, group)
    net.out_proj = SummedLinear(net.out_proj, group)
    for name in ("num_k_heads", "num_v_heads", "key_dim", "value_dim", "conv_dim"):
        setattr(net, name, getattr(net, name) // ranks)
    return True


def _shard_conv(conv: Any, group: Group) -> bool:
    """Cut LFM2's short convolution by channels, if the ranks divide them."""
    channels = _inputs(conv.out_proj)
    if not _cuts_inputs(conv.out_proj, group.size()):
        return False
    _split_joined(conv.in_proj, [channels, 2 * channels], group)
    _split_joined(conv.conv, [], group)
    conv.conv.groups //= group.size()
    conv.out_proj = SummedLinear(conv.out_proj, group)
    conv.args = copy.copy(conv.args)  # which says how wide a state is
    conv.args.hidden_size = channels // group.size()
    return True


def _shard_mlp(mlp: Any, group: Group) -> bool:
    """Cut by its inner width, if the ranks divide that."""
    gate, up, down = ("w1", "w3", "w2") if "w2" in mlp else ("gate_proj", "up_proj", "down_proj")
    if not _cuts_inputs(mlp[down], group.size()):
        return False
    if "gate_up_proj" in mlp:
        _split_joined(mlp.gate_up_proj, [_inputs(mlp[down])], group)
    else:
        mlp[gate], mlp[up] = part_of(mlp[gate], group), part_of(mlp[up], group)
    mlp[down] = SummedLinear(mlp[down], group)
    return True


def _shard_experts(mixture: Any, group: Group) -> bool:
    """Cut each expert by its inner width, if the ranks divide that: all ranks choose the same ones."""
    experts, shared = mixture.switch_mlp, mixture.get("shared_expert", mixture.get("shared_experts"))
    downs = [experts.down_proj] + ([shared.down_proj] if shared else [])
    if not all(_cuts_inputs(down, group.size()) for down in downs):
        return False
    for layer, axis in ((experts.gate_proj, 1), (experts.up_proj, 1), (experts.down_proj, 2)):
        for name, tensor in layer.items():
            if isinstance(tensor, mx.array):  # (E, out, in)
                layer[name] = _split(tensor, group, axis)
    if shared:
        shared.gate_proj, shared.up_proj = part_of(shared.gate_proj, group), part_of(shared.up_proj, group)
        shared.down_proj = columns_of(shared.down_proj, group)
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
