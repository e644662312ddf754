"""A text decoder divided by layers: each rank has some that follow each other, whole, and hands on what they give.

Rank 0 has the embeddings, what encodes media, the last norm and the output layer besides. Every rank runs the family's
whole forward, in which layers of others stand for their caches only. Each state that is handed on is under way as soon
as it is asked for, so that sends and receives come in one order on all ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._runtime import mx, nn, tree_flatten
from ..engine.cache import make_cache
from ..errors import UnsupportedError
from ..inputs.prompt import Prompt
from ..models.base import CrossAttention, LayerKind, Model, Opaque, Recurrent
from ..models.text import unwrapped
from .shard import Group

FORWARDS = (
    "TextModel.forward", "VisionLanguageModel.forward", "MRopeModel.forward", "HunyuanVL.forward",
    "Ernie4_5VLMoe.forward", "Gemma4Decoder.forward",
)  # fmt: skip
"""Those in which a layer with a cache takes of earlier ones their states only, and of a prompt what `ranks` sends."""

STREAMS = ("gemma3n_text",)
"""Text decoders, by `model_type`, with several streams of states, which their forward adds up after the layers."""


def check(model: Model, ranks: int) -> None:
    """UnsupportedError for a model that is not divided, or not by so many."""
    named = f"shard: {model.config['model_type']}"
    if not _is_divided(model):
        raise UnsupportedError(
            f"{named} is not divided by layers, which may take more than the states before them; give --shard tensor "
            "where that has it, or leave shard and ranks out"
        )
    if ranks > (layers := len(_layers(model))):
        raise UnsupportedError(f"{named} has {layers} text layers for {ranks} ranks; expected {layers} ranks at most")


def _is_divided(model: Model) -> bool:
    driver = getattr(model, "driver", None)
    if driver is None or driver.arguments["model_type"] in STREAMS:
        return False
    if type(model).forward.__qualname__ not in FORWARDS:
        return False
    layout = model.cache_layout()
    shares = len(layout) < len(_layers(model))  # keys and values
    return not shares and not any(isinstance(kind, Opaque | CrossAttention) for kind in layout)


def divided(sizes: Sequence[int], beside: int, ranks: int) -> list[int]:
    """How many layers of these bytes each rank has, one at least, so that all have about equally many bytes. beside:
    those that the first has besides."""
    counts, first = list[int](), 0
    for left in range(ranks, 0, -1):
        share = (beside + sum(sizes[first:])) / left
        end, filled = first + 1, beside + sizes[first]
        while end < len(sizes) - (left - 1) and filled + sizes[end] / 2 <= share:
            filled += sizes[end]
            end += 1
        counts.append(end - first)
        first, beside = end, 0
    return counts


class Stage(Model):
    """What a model does beside its family, of which this rank has some layers. _counts: how many each rank has."""

    _layout: Sequence[LayerKind]
    _counts: Sequence[int]

    @property
    def fullest(self) -> float:
        """How many times rank 0's layers the rank has that has most."""
        return max(self._counts) / self._counts[0]

    def cache_layout(self) -> list[LayerKind]:
        return [*self._layout]

    def needs(self, deepstack: int) -> list[bool]:
        """Whether later ranks add each of so many `Embedded.deepstack`; they add what follows rank 0's last layer."""
        layers = getattr(self, "deepstack_layers", None) or range(deepstack)
        return [layer >= self._counts[0] - 1 for layer in layers[:deepstack]]


def divide(model: Model, group: Group) -> None:
    """Keep of the model's text decoder the layers of this rank."""
    rank, ranks = group.rank(), group.size()
    check(model, ranks)
    _ = model.vocab_size, model.embedding_rows  # remembered before the tables are gone
    layers, layout, noted = _layers(model), model.cache_layout(), _noted(model)
    sizes = [_bytes(layer) for layer in layers]
    counts = divided(sizes, _bytes(model) - sum(sizes), ranks)
    first = sum(counts[:rank])
    last = first + counts[rank] - 1
    for index in range(len(layers)):
        if not first <= index <= last:
            layers[index] = Elsewhere(noted[index])
            layout[index] = Recurrent(0) if isinstance(layout[index], Recurrent) else layout[index]
    if rank:
        layers[first - 1] = Received(noted[first - 1], Post(group, rank - 1, noted[first - 1].dtype))
    if rank < ranks - 1:
        layers[last] = Sent(noted[last], Post(group, rank + 1, noted[last].dtype))
    _divide_end(unwrapped(model.text_decoder()), noted[-1].dtype, group)
    kind: Any = type(model)
    model.__class__ = type(kind.__name__, (Stage, kind), {"__module__": kind.__module__})
    model._layout, model._counts = layout, counts


def _divide_end(decoder: Any, dtype: mx.Dtype, group: Group) -> None:
    """What follows the layers is rank 0's. Only those positions travel there whose logits are wanted."""
    rank, last, body = group.rank(), group.size() - 1, decoder.model
    norm = body.embedding_norm if "embedding_norm" in body else body.norm
    name = next(name for name, child in body.items() if child is norm)
    if rank == 0:
        body[name] = Last(norm, Post(group, last, dtype))
        return
    body[name] = Returned(Post(group, 0, dtype)) if rank == last else nn.Identity()
    decoder.lm_head = nn.Identity()


class Noted(nn.Module):
    """A layer that remembers of what type its states are, and how many values it gives beside them.

    layer_type: the layer's, by which some forwards choose its mask.
    """

    dtype: mx.Dtype
    beside: int

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.layer_type = layer, getattr(layer, "layer_type", None)

    def __call__(self, h: mx.array, *arguments: Any) -> Any:
        given = self.layer(h, *arguments)
        h, *others = given if isinstance(given, tuple) else (given,)
        self.dtype, self.beside = h.dtype, len(others)
        return given


class Elsewhere(nn.Module):
    """A layer that another rank has: the states go past it, and its cache goes on."""

    def __init__(self, noted: Noted):
        super().__init__()
        self.layer_type, self._beside = noted.layer_type, noted.beside

    def __call__(self, h: mx.array, *arguments: Any) -> Any:
        cache = next(argument for argument in arguments if hasattr(argument, "advance"))
        cache.advance(h.shape[1])
        return (h, *[None] * self._beside) if self._beside else h


class Received(Elsewhere):
    """One whose output the rank before sends."""

    def __init__(self, noted: Noted, post: "Post"):
        super().__init__(noted)
        self._post = post

    def __call__(self, h: mx.array, *arguments: Any) -> Any:
        return super().__call__(self._post.receive(h), *arguments)


class Sent(nn.Module):
    """A layer, whose output the next rank gets."""

    def __init__(self, noted: Noted, post: "Post"):
        super().__init__()
        self.layer, self.layer_type, self._post = noted.layer, noted.layer_type, post

    def __call__(self, h: mx.array, *arguments: Any) -> Any:
        given = self.layer(h, *arguments)
        self._post.send(given[0] if isinstance(given, tuple) else given)
        return given


class Returned(nn.Module):
    """What stands in the place of the last norm on the last rank: the states go to rank 0."""

    def __init__(self, post: "Post"):
        super().__init__()
        self._post = post

    def __call__(self, h: mx.array) -> mx.array:
        self._post.send(h)
        return h


class Last(nn.Module):
    """The last norm, of what the last rank sends."""

    def __init__(self, norm: nn.Module, post: "Post"):
        super().__init__()
        self.norm, self._post = norm, post

    def __call__(self, h: mx.array) -> mx.array:
        return self.norm(self._post.receive(h))


@dataclass(frozen=True)
class Post:
    """Where states go to, or come from: another rank. dtype: theirs, which both know."""

    group: Group
    other: int
    dtype: mx.Dtype

    def send(self, h: mx.array) -> None:
        mx.async_eval(mx.distributed.send(h.astype(self.dtype), self.other, group=self.group))

    def receive(self, like: mx.array) -> mx.array:
        """States of this shape."""
        h = mx.distributed.recv(like.shape, self.dtype, self.other, group=self.group)
        mx.async_eval(h)
        return h


def _layers(model: Model) -> list[Any]:
    layers: list[Any] = unwrapped(model.text_decoder()).model.layers
    return layers


def _noted(model: Model) -> list[Noted]:
    """The layers as they are, by a forward that is built and never computed."""
    cache, layers = make_cache(model.cache_layout()), _layers(model)
    plain, noted = [*layers], [Noted(layer) for layer in layers]
    layers[:] = noted
    model(model.embed(Prompt(np.zeros(1, np.int32)), ()), cache)
    layers[:] = plain
    return noted


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for _, tensor in tree_flatten(module.parameters()))
