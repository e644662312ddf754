"""Runs the plan: the arrays of the rows inside, from their media to the batches that they decode in."""

import time
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence

from .._runtime import mx
from ..models.base import Embedded, Features, Model
from . import beside
from . import cache as kv
from .batch import Batch, Emit, SampledBatch
from .beam import Search
from .columns import forget_indices
from .prefill import Prefill
from .request import Encoded, Row
from .scheduler import Chunk
from .scheduling import is_out_of_memory
from .speculative import Speculative
from .store import Prefixes

CLEAR_EVERY = 256
"""Steps after which MLX's unused buffers are freed, as mlx-lm does."""

Failed = tuple[Sequence[Row], Exception]
"""Rows that cannot go on, and why."""


class Executor:
    """features: of the media that are encoded and not embedded yet, by identity. batches: rows that decode; arrived:
    those that had their first token and join the others at the next step. most: rows that may decode together.
    prefixes: what is reused, if anything is."""

    def __init__(self, model: Model, most: int, prefixes: Prefixes | None = None):
        self._model, self._most, self._prefixes = model, most, prefixes
        self.prefill = Prefill(model)
        self.features: dict[Hashable, Features] = {}
        self.batches: list[Batch] = []
        self.arrived: list[Batch] = []
        self._steps = 0

    @property
    def decoding(self) -> list[Row]:
        """Rows that decode, with the negative prompts among them."""
        return [row for batch in (*self.batches, *self.arrived) for row in batch.rows]

    def clear(self) -> None:
        self.features.clear()
        self.prefill.prompts.clear()
        self.batches.clear()
        self.arrived.clear()
        forget_indices()

    def search(self, rows: Iterable[Row]) -> None:
        """Have rows begin with what is known by now: keys and values, or features of their media."""
        for row in rows:
            row.search()
            if self._prefixes and row.units is not None and not row.embedded:
                for medium in row.media:
                    if (known := self._prefixes.features(medium)) is not None:
                        self.features[medium.identity] = known

    # -- encode

    def encode(self, groups: Iterable[Sequence[tuple[int, int]]], rows: Mapping[int, Row]) -> None:
        """Each group of media through the vision tower as one batch. A row whose media fail gets an error."""
        live = bool(self.batches or self.arrived)
        media = ([rows[id].media[place] for id, place in group if id in rows] for group in groups)
        waiting = [group for group in media if group]
        while waiting:
            group, begun = waiting.pop(0), time.perf_counter()
            wanted = [(row, {m.identity for m in row.media}) for row in rows.values() if not row.embedded]
            sharing = [[row for row, media in wanted if medium.identity in media] for medium in group]
            try:
                encoded = beside.encode(self._model, group)
                arrays = [[f.embeds, *f.deepstack] for f in encoded]
                if live:  # behind the step that runs
                    mx.async_eval(arrays)
                else:
                    mx.eval(arrays)
                self.features |= zip((medium.identity for medium in group), encoded, strict=True)
            except Exception as error:
                if len(group) > 1:  # one by one, to find the one at fault
                    waiting.extend([medium] for medium in group)
                else:
                    for row in sharing[0]:
                        row.error = error
                continue
            if self._prefixes:
                self._prefixes.store_features(group, encoded)
            per_value = (time.perf_counter() - begun) / sum(medium.pixels.size for medium in group)
            for medium, owners in zip(group, sharing, strict=True):
                for row in owners:
                    row.encode_time += per_value * medium.pixels.size / len(owners)

    def embed(self, rows: Sequence[Row], waiting: Container[int]) -> None:
        """Embeddings of the rows whose media are all encoded, and their pixels are let go. One that fails gets an error
        and keeps them: it may only have lacked memory. waiting: ids of rows that are not to be begun."""
        for row in rows:
            encoded = all(medium.identity in self.features for medium in row.media)
            if row.embedded or row.error or row.id in waiting or not encoded:
                continue
            parts = [row, row.negative] if row.negative else [row]
            try:
                prompts = [Encoded(part, self._embed(part)) for part in parts]
                deltas = [prompt.inputs.row_delta for prompt in prompts]
            except Exception as error:
                row.error = error
                continue
            for part, delta in zip(parts, deltas, strict=True):
                part.delta = delta
                if part.reach is None:
                    part.prompt = part.prompt.without_pixels()
            row.embedded = True
            self.prefill.prompts[row.id] = prompts
        self.forget(rows)

    def _embed(self, row: Row) -> Embedded:
        """The prompt's embeddings, or those after its past, whose rotary positions go on from it."""
        past = row.past
        prompt = row.prompt.after(past.length) if past else row.prompt
        inputs = self._model.embed(prompt, [self.features[m.identity] for m in row.media[: len(prompt.media)]])
        if past is not None:
            self._model.move(inputs, row.prompt, past.length, past.delta)
        return inputs

    def forget(self, rows: Sequence[Row]) -> None:
        """All that is of no use to these rows, which are on their way in."""
        self.prefill.prompts = {row.id: self.prefill.prompts[row.id] for row in rows if row.id in self.prefill.prompts}
        wanted = {medium.identity for row in rows if not row.embedded for medium in row.media}
        self.features = {identity: known for identity, known in self.features.items() if identity in wanted}

    # -- prefill

    def compute(self, chunks: Sequence[Chunk]) -> Batch | None:
        """One prefill step. Rows whose prompt is through come back as a batch: their first tokens are drawn, and still
        to be handed out."""
        through = self.prefill.step(chunks, live=bool(self.decoding))
        if through is None:
            return None
        rows, cache, logits = through
        batch = _batch_class(rows[0]).begin(rows, cache, logits)
        kv.evaluate(batch.cache, batch.tokens)
        for place, row in enumerate(rows):
            row.prefilled = time.perf_counter()
            row.store(cache, place)
            self.prefill.prompts.pop(row.id, None)
        return batch

    # -- decode

    def join(self, emit: Emit) -> list[Failed]:
        """The rows that have arrived, with those of their kind. Where memory lacks for that they decode apart."""
        failed: list[Failed] = []
        arrived, self.arrived = self.arrived, []
        for new in arrived:
            key = new.rows[0].batch_key
            place = next((i for i, live in enumerate(self.batches) if live.rows[0].batch_key == key), None)
            if place is None:
                self.batches.append(new)
                continue
            live = self.batches.pop(place)
            try:
                read = live.read(emit)
            except Exception as error:  # its rows end with their next token
                for row in live.rows:
                    row.error = row.error or error
                self.batches += [live, new]
                continue
            if read is None:
                self.batches.append(new)
                continue
            try:
                self.batches.insert(place, read.join(new, self._most))
            except Exception as error:
                failed.append((new.rows, error))
                self.batches.insert(place, read)
                if is_out_of_memory(error):
                    self.batches.append(new)
        return failed

    def decode(self, emit: Emit) -> list[Failed]:
        """One step of every batch. An error ends the rows of the batch, for their caches are half written."""
        failed: list[Failed] = []
        following: list[Batch] = []
        for batch in self.batches:
            try:
                if (going := batch.step(self._model, emit)) is not None:
                    following.append(going)
            except Exception as error:
                failed.append((batch.rows, error))
        self.batches = following
        if not following:
            forget_indices()
        self._steps += 1
        if self._steps % CLEAR_EVERY == 0:
            mx.clear_cache()
        return failed


def _batch_class(row: Row) -> type[Batch]:
    """How a row steps."""
    return Search if row.request.beams else Speculative if row.drafter else SampledBatch
