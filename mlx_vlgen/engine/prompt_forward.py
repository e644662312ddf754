"""The forwards of prompts: a chunk of a long one, or several whole short ones."""

from collections.abc import Sequence

from .._runtime import mx
from ..models.base import Embedded, LayerKind, Model
from . import cache as kv
from . import prefill
from .request import Row


class PromptForward:
    """step_size: tokens of a chunk."""

    def __init__(self, model: Model, layout: Sequence[LayerKind], step_size: int):
        self._model, self._layout, self._step_size = model, layout, step_size

    def empty(self, row: Row) -> kv.Cache:
        """The cache that its prefill begins with."""
        past = row.request.past
        return kv.alone(past.cache, 0) if past else kv.make_cache(self._layout, row.request.kv)

    def chunk(self, row: Row, cache: kv.Cache, start: int) -> tuple[int, mx.array]:
        """The next chunk of its prompt: where it ends, and the logits (1, V) there."""
        assert row.prompt and row.inputs
        size = row.length if row.runs_alone else self._step_size
        end = prefill.chunk_end(start, row.length, size, row.prompt.two_way)
        inputs = row.inputs[start - row.computed : end - row.computed]
        inputs.capture = row.capture()
        return end, self._model(inputs, cache, at=mx.array([end - start - 1]))

    def pack(self, rows: Sequence[Row]) -> tuple[kv.Cache, mx.array]:
        """Several prompts at once, which begin with no past: their cache and the logits (B, V) at their ends."""
        lengths = [row.length for row in rows]
        cache = kv.make_pack(self._layout, lengths, rows[0].request.kv)
        inputs = Embedded.stack([row.inputs for row in rows if row.inputs])
        logits = self._model(inputs, cache, at=mx.array(lengths) - 1)
        kv.finalize(cache, lengths)
        return cache, logits

    def with_negative(
        self, rows: Sequence[Row], cache: kv.Cache, logits: mx.array, negative: Row
    ) -> tuple[list[Row], kv.Cache, mx.array]:
        """The rows with a negative prompt, which is computed now, as one more."""
        alone, end = self.empty(negative), 0
        while end < negative.length:
            end, last = self.chunk(negative, alone, end)
            kv.evaluate(alone)
        together = [*rows, negative]
        joined = kv.join(cache, alone, [row.length for row in together])
        return together, joined, mx.concatenate([logits, last])
