"""Prompts on their way through the model: chunks of a long one, or several whole short ones."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from .._runtime import mx
from ..models.base import Embedded, LayerKind, Model
from . import cache as kv
from .request import Encoded, Row
from .scheduling import chunk_end, pack_size


@dataclass
class Partial:
    """A long prompt of which `end` tokens are in its cache."""

    prompt: Encoded
    cache: kv.Cache
    end: int


class Prefill:
    """waiting: encoded prompts; partial: the long one under way. step_size: tokens a step."""

    def __init__(self, model: Model, layout: Sequence[LayerKind], step_size: int):
        self._model, self._layout, self.step_size = model, layout, step_size
        self.waiting: deque[Encoded] = deque()
        self.partial: Partial | None = None

    @property
    def rows(self) -> list[Row]:
        under_way = [self.partial.prompt.row] if self.partial else []
        return [*(prompt.row for prompt in self.waiting), *under_way]

    def next(self, slots: int) -> list[Encoded]:
        """The prompts of the next step. slots: free places for rows that decode."""
        if self.partial:
            return [self.partial.prompt]
        if not self.waiting or slots < 1:
            return []
        key = self.waiting[0].row.batch_key
        # What begins with a past is prefilled alone.
        alike = takewhile(lambda prompt: prompt.row.batch_key == key and not prompt.row.request.past, self.waiting)
        count = max(1, min(pack_size([prompt.row.length for prompt in alike], self.step_size), slots))
        prompts = [self.waiting.popleft() for _ in range(count)]
        for prompt in prompts:
            prompt.row.prefill_started = time.perf_counter()
        return prompts

    def step(self, prompts: Sequence[Encoded]) -> tuple[kv.Cache, mx.array] | None:
        """One forward. Returns the cache of these prompts and the logits (B, V) at their ends; None while a long prompt
        is under way."""
        if len(prompts) > 1:
            return self._pack(prompts)
        [prompt] = prompts
        start = self.partial or Partial(prompt, self._empty(prompt.row), prompt.row.computed)
        end, logits = self._chunk(prompt.row, prompt.inputs, start.cache, start.end)
        if end == prompt.row.length:
            self.partial = None
            return start.cache, logits
        kv.evaluate(start.cache)
        mx.clear_cache()
        self.partial = Partial(prompt, start.cache, end)
        return None

    def _empty(self, row: Row) -> kv.Cache:
        """The cache that its prefill begins with."""
        past = row.request.past
        if past:
            return kv.alone(past.cache, 0)
        return kv.make_cache(self._layout, row.request.kv, expected=row.expected_positions)

    def _chunk(self, row: Row, inputs: Embedded, cache: kv.Cache, start: int) -> tuple[int, mx.array]:
        """The next chunk of a row's prompt: where it ends, and the logits (1, V) there."""
        size = row.length if row.runs_alone else self.step_size
        end = chunk_end(start, row.length, size, row.prompt.two_way)
        part = inputs[start - row.computed : end - row.computed]
        part.capture = row.capture()
        return end, self._model(part, cache, at=mx.array([end - start - 1]))

    def _pack(self, prompts: Sequence[Encoded]) -> tuple[kv.Cache, mx.array]:
        """Several prompts at once, which begin with no past."""
        lengths = [prompt.row.length for prompt in prompts]
        expected = max(prompt.row.expected_positions for prompt in prompts)
        cache = kv.make_cache(self._layout, prompts[0].row.request.kv, lengths, expected)
        inputs = Embedded.stack([prompt.inputs for prompt in prompts])
        logits = self._model(inputs, cache, at=mx.array(lengths) - 1)
        kv.finalize(cache)
        return cache, logits

    def with_negatives(
        self, prompts: Sequence[Encoded], cache: kv.Cache, logits: mx.array
    ) -> tuple[list[Row], mx.array]:
        """The rows of these prompts, and as further rows their negative prompts, which are computed now and join
        `cache`; with the logits (B, V) of all."""
        rows = [prompt.row for prompt in prompts]
        for prompt in prompts:
            negative, inputs = prompt.row.negative, prompt.negative_inputs
            if negative is None or inputs is None:
                continue
            alone, end = self._empty(negative), 0
            while end < negative.length:
                end, last = self._chunk(negative, inputs, alone, end)
                kv.evaluate(alone)
            kv.join(cache, alone, len(rows))
            rows.append(negative)
            logits = mx.concatenate([logits, last])
        return rows, logits
