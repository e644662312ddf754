"""Prompts on their way through the model: chunks of a long one, or several whole short ones."""

import time
from collections.abc import Sequence

from .._runtime import mx
from ..models.base import Embedded, Model
from . import cache as kv
from .request import Encoded, Row
from .scheduler import Chunk

PROMPT_UNIT = 64 if mx.cuda.is_available() else 1
"""Whole prompts are padded to a multiple of it. On CUDA the attention of a new length waits 43 ms for cuDNN's plan (on
an H100), where 512 tokens take 33 ms."""

Through = tuple[list[Row], kv.Cache, mx.array]
"""Rows whose prompts are through, with the negative prompts among them, their cache, and the logits (B, V) there."""


class Prefill:
    """prompts: encoded ones by their row's id, each with its negative prompt where it has one."""

    def __init__(self, model: Model):
        self._model, self._layout = model, model.cache_layout()
        self.prompts: dict[int, list[Encoded]] = {}

    def step(self, chunks: Sequence[Chunk], live: bool) -> Through | None:
        """One forward, launched; None while a prompt is under way. live: whether rows decode, behind whose step a GPU
        is given it; else it waits for its layers on the way, so that no more than two are in memory, and on a CPU
        for the whole chunk."""
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        paced = not (live and on_gpu)
        for chunk in chunks:
            row = self.prompts[chunk.id][0].row
            row.prefill_started = row.prefill_started or time.perf_counter()
        if len(chunks) > 1 or self._is_whole(chunks[0]):
            rows, cache, logits = self._pack([self.prompts[chunk.id][0] for chunk in chunks], paced)
            for place, chunk in enumerate(chunks):
                rows[place].share(cache, place, chunk.stored)
            return rows, cache, logits
        [chunk] = chunks
        prompts = self.prompts[chunk.id]
        cache = self._chunk(prompts[chunk.negative], chunk, paced)
        if not chunk.negative:
            prompts[0].row.share(cache, 0, chunk.stored)
        if all(prompt.row.filled == prompt.row.length for prompt in prompts):
            return self._together(prompts)
        if live or on_gpu:
            mx.async_eval([layer.state for layer in cache])
        else:  # where no layer was waited for
            kv.evaluate(cache)
        if not live:
            mx.clear_cache()  # not while a step runs: giving memory back waits for the device
        return None

    def _is_whole(self, chunk: Chunk) -> bool:
        """Whether it is a prompt that can be padded, where that is of use."""
        row = self.prompts[chunk.id][0].row
        whole = row.packs and not row.runs_alone and (chunk.start, chunk.end) == (row.computed, row.length)
        return PROMPT_UNIT > 1 and whole

    def restart(self, row: Row) -> None:
        """Forget what was computed of a prompt whose forward failed."""
        for prompt in self.prompts[row.id]:
            prompt.row.filled, prompt.cache, prompt.logits = prompt.row.computed, None, None

    def _chunk(self, prompt: Encoded, chunk: Chunk, paced: bool) -> kv.Cache:
        row = prompt.row
        if prompt.cache is None:
            cache = kv.make_cache(self._layout, row.request.kv, expected=row.expected_positions, prompts=[row.length])
            prompt.cache = row.past.begin(cache) if row.past else cache
        part = prompt.inputs[chunk.start - row.computed : chunk.end - row.computed]
        part.capture, part.paced = row.capture(), paced
        prompt.logits = self._model(part, prompt.cache, at=mx.array([chunk.end - chunk.start - 1]))
        row.filled = chunk.end
        return prompt.cache

    def _pack(self, prompts: Sequence[Encoded], paced: bool) -> Through:
        """Whole prompts at once, which begin with the same."""
        rows = [prompt.row for prompt in prompts]
        lengths, past = [row.length for row in rows], rows[0].past
        expected = max(row.expected_positions for row in rows)
        cache = kv.make_cache(self._layout, rows[0].request.kv, lengths, expected, rows[0].computed, lengths)
        if past:
            cache = past.begin(cache)
        inputs = Embedded.stack([prompt.inputs for prompt in prompts], PROMPT_UNIT)
        inputs.paced = paced
        logits = self._model(inputs, cache, at=mx.array([len(prompt.inputs) - 1 for prompt in prompts]))
        kv.finalize(cache)
        for row in rows:
            row.filled = row.length
        return rows, cache, logits

    def _together(self, prompts: Sequence[Encoded]) -> Through:
        """A row, and its negative prompt beside it."""
        rows = [prompt.row for prompt in prompts]
        caches = [prompt.cache for prompt in prompts if prompt.cache is not None]
        logits = [prompt.logits for prompt in prompts if prompt.logits is not None]
        for count, negative in enumerate(caches[1:], 1):
            kv.join(caches[0], negative, count)
        return rows, caches[0], mx.concatenate(logits)
