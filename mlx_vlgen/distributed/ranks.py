"""The ranks of one model: rank 0 decides, and the others compute their parts of what it computes.

Rank 0 runs the engine as if it were alone. A `CacheLog` among the caches of some rows notes each operation on them, and
every forward sends the notes and its inputs to the other ranks (`follow`), which hold the same caches of their heads.
So nothing that clocks, users or memory decide can make ranks diverge: they are told what came of it.

A forward's header goes by a `Link`; its arrays, the layers' sums and the logits through MLX's group, in one order.
"""

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._runtime import mx
from ..errors import UnsupportedError
from ..loading.loader import assemble
from ..loading.parts import Parts
from ..models.base import Embedded, Followed, LayerKind, Model
from ..models.deepstack import Deepstack
from ..models.few_rows import hasten_few_rows
from ..models.gemma4_text import Gemma4Decoder
from ..notices import print_stderr
from .followed import CacheLog, Replica
from .link import Link, RankError, failure, uninterrupted
from .pipeline import Stage, divide
from .shard import Group, Ranks, parameters, shard

SHARDINGS = ("tensor", "pipeline")


def load_part(path: str | Path, group: Group, sharding: str = "tensor", **options: Any) -> tuple[Model, Any]:
    """`load`, but only what this rank computes with. On rank 0 the model is used as any other, until `dismiss`; on the
    others `follow` runs it. sharding: "tensor", a part of each layer (`shard`), or "pipeline", some whole layers
    (`pipeline`); the same on all ranks."""
    if sharding not in SHARDINGS:
        raise UnsupportedError(f"sharding={sharding!r:.80}: expected {' or '.join(SHARDINGS)}")
    if sharding == "tensor" and options.get("adapter_path") is not None:
        raise UnsupportedError(
            f"adapter_path={options['adapter_path']!s:.80}: adapters are not cut yet; use one rank, or whole layers on "
            'each rank (--shard pipeline, sharding="pipeline")'
        )
    loaded = assemble(path, any_thread=True, **options)
    model = loaded.model
    if sharding == "pipeline":
        divide(model, group)
    else:
        shard(model, Ranks(group, Parts(loaded.files, loaded.stored).take))
    del loaded  # which holds what was cut
    hasten_few_rows(model.text_decoder())
    for tensor in parameters(model, group):  # one at a time, see `load`
        mx.eval(tensor)
    if group.rank() == 0:
        kind: Any = type(model)
        model.__class__ = type(kind.__name__, (Leading, kind), {"__module__": kind.__module__})
        model._link = Link(group)
    return model, model.processor


class Leading(Model):
    """What rank 0's model does beside its family: it has the other ranks compute the same."""

    _link: Link
    embed_answer: Callable[[mx.array], mx.array]

    def cache_layout(self) -> list[LayerKind]:
        link, fullest = self._link, self.fullest if isinstance(self, Stage) else 1.0
        return [*super().cache_layout(), Followed(lambda *arguments: CacheLog.make(link, *arguments), fullest)]

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        link, log = self._link, cache[-1]
        if link.broken:
            raise RankError("mlx_vlgen: error: an earlier forward failed on one rank, so that the ranks cannot go on")
        if inputs.capture is not None:
            raise UnsupportedError("hidden states and attention weights: no rank has all of them; use one rank")
        arrays = [*self._token_inputs(inputs), inputs.positions, inputs.two_way]
        deepstack = inputs.deepstack
        layers = [] if deepstack is None else [mx.concatenate([*parts]) for parts in deepstack.layers]
        arrays += layers
        needed = [True] * len(arrays)
        if isinstance(self, Stage):  # others take states for embeddings
            needed = [False, True, True, True, *self.needs(len(layers))]
        header = {
            "cache": log.number,
            "at": None if at is None else np.array(at).tolist(),
            "delta": inputs.delta if isinstance(inputs.delta, int | float) else np.array(inputs.delta).tolist(),
            "types": None if inputs.token_types is None else inputs.token_types.tolist(),
            "variant": inputs.variant,
            "places": None if deepstack is None else deepstack.places.tolist(),
            "arrays": [
                None if array is None else [array.shape, _name(array.dtype), sent]
                for array, sent in zip(arrays, needed, strict=True)
            ],
        }
        with link.lock, uninterrupted():
            try:
                link.begin()
                link.send(**header)
                arrays = [
                    link.share(array) if sent and array is not None else array
                    for array, sent in zip(arrays, needed, strict=True)
                ]
                logits = super().forward(_embedded(arrays, inputs.tokens, inputs.delta, header), cache[:-1], at)
                link.launch(logits)
            except BaseException as error:
                link.broken = True
                if not isinstance(error, Exception):
                    raise
                raised = failure(f"a forward failed on rank 0: {error}")
                if threading.current_thread() is not threading.main_thread():  # which does not end with this one
                    print_stderr(str(raised))
                    signal.raise_signal(signal.SIGTERM)
                raise raised from error
        return logits

    def _token_inputs(self, inputs: Embedded) -> list[mx.array | None]:
        """What the family's forward makes of the tokens, whose tables no other rank has: embeddings, and what each
        layer takes beside them."""
        if isinstance(self, Gemma4Decoder):
            embeds = self.embed_tokens(inputs.tokens) if inputs.embeds is None else inputs.embeds
            return [embeds, self.per_layer_inputs(inputs.tokens, embeds)]
        return [self.embed_answer(inputs.tokens) if inputs.embeds is None else inputs.embeds, None]


def dismiss(model: Model) -> bool:
    """End the other ranks' `follow`, and say whether all went well. The model computes nothing any more."""
    link: Link = model._link
    with link.lock, uninterrupted():
        if link.broken:
            return False
        link.broken = True
        try:
            link.begin()
            link.send(end=True)
            mx.synchronize()
        except (OSError, RuntimeError):  # one of them is gone
            return False
        return True


def follow(model: Model, group: Group) -> None:
    """Compute this rank's part of all that rank 0 computes, until it says that this was all."""
    link, replica = Link(group), Replica(model.cache_layout())
    while True:
        message = link.receive()
        for note in message["notes"]:
            replica.repeat(*note)
        if message.get("end"):
            return
        arrays = [None if array is None else _received(link, *array) for array in message["arrays"]]
        delta, at = message["delta"], message["at"]
        tokens = mx.zeros(message["arrays"][0][0][:2], mx.int32)
        delta = mx.array(delta) if isinstance(delta, list) else delta
        inputs = _embedded(arrays, tokens, delta, message)
        cache = replica.caches[message["cache"]]
        try:
            logits = model.forward(inputs, cache, None if at is None else mx.array(at))
            link.launch(logits, [layer.state for layer in cache])
        except Exception as error:
            raise failure(f"a forward failed on rank {group.rank()}: {error}") from error


def _received(link: Link, shape: Sequence[int], dtype: str, sent: bool) -> mx.array:
    """What rank 0 has; zeros, where only its shape is of use here."""
    zeros = mx.zeros(shape, getattr(mx, dtype))
    return link.share(zeros) if sent else zeros


def _embedded(arrays: Sequence[Any], tokens: mx.array, delta: float | mx.array, header: Mapping[str, Any]) -> Embedded:
    """What the ranks compute with. arrays: embeds, per_layer, positions, two_way and the deepstack layers. tokens:
    zeros but on rank 0, for nobody reads them beside the embeddings."""
    embeds, per_layer, positions, two_way, *layers = arrays
    deepstack = Deepstack([[layer] for layer in layers], np.array(header["places"], np.int32)) if layers else None
    types = None if header["types"] is None else np.array(header["types"], np.int32)
    return Embedded(tokens, embeds, positions, delta, deepstack, two_way, types, per_layer, variant=header["variant"])


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]
