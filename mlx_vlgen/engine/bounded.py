"""Keys and values of the first positions and of the last ones only."""

from .._runtime import mx
from .kv_settings import SINKS, KVSettings
from .ragged import Parts, RaggedCache, grow


class BoundedCache(RaggedCache):
    """A token at position p attends to positions below 4 and to the last max_size - 4, itself included: what full
    attention with that mask computes, whatever the chunk, alone and in a batch.

    Holds max_size positions, and the chunk while it is prefilled. Once the window is full each new token takes the
    place of the oldest, which is the same column in all rows: softmax does not ask for order, so a decoding step
    copies nothing and needs no mask array, unless a row is shorter than the window and another is not.

    For layers that attend to every position; sliding and recurrent ones have their bounded caches. A picture
    scrolls out of the window like text: legal causal attention. Tokens that must all see each other may not:
    `KVSettings.check_spans`.
    """

    def __init__(self, settings: KVSettings, rows: int = 1):
        assert settings.max_size is not None
        super().__init__(SINKS, rows)
        self._window = settings.max_size - SINKS
        self._buffers: Parts = []  # keys and values: the head, then the rest, in order until it is full, then as a ring
        self._used = 0  # columns of the rest that are in use
        self._next = 0  # the one that the next token takes

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        new = [keys, values]
        if not self._buffers:
            self._buffers = [mx.zeros((*x.shape[:2], SINKS, x.shape[-1]), x.dtype) for x in new]
        fetched = self._step(new) if keys.shape[2] == 1 else self._chunk(new)
        return fetched[0], fetched[1]

    def _step(self, new: Parts) -> Parts:
        self._write_head(self._buffers, new)
        if self._longest >= SINKS:
            start = SINKS + self._next
            self._buffers = grow(self._buffers, SINKS + self._used, start + 1, SINKS + self._window)
            for buffer, part in zip(self._buffers, new, strict=True):
                buffer[:, :, start : start + 1] = part
            self._used, self._next = self._after_step()
        self.lengths = [length + 1 for length in self.lengths]
        return [buffer[:, :, : min(SINKS, self._longest) + self._used] for buffer in self._buffers]

    def _after_step(self) -> tuple[int, int]:
        """`_used` and `_next` once another token has its column."""
        return min(self._used + 1, self._window), (self._next + 1) % self._window

    def _chunk(self, new: Parts) -> Parts:
        """Columns that the last tokens of a chunk push out are what its first ones attend to."""
        N = new[0].shape[2]
        beyond = self._beyond_head(N)
        self._write_head(self._buffers, new)
        head, rest = self._parts()
        rest = [mx.concatenate([part, x[:, :, beyond:]], axis=2) for part, x in zip(rest, new, strict=True)]
        self.lengths = [length + N for length in self.lengths]
        self._store(head, rest)
        return [mx.concatenate([a[:, :, : self._longest], b], axis=2) for a, b in zip(head, rest, strict=True)]

    def _is_causal(self, N: int) -> bool:
        if N == 1 and self._longest >= SINKS:
            used, _ = self._after_step()
            return self._equal or min(self.lengths) + 1 >= SINKS + used  # then no column is padding
        return self._equal and self._longest + N <= SINKS + self._window

    def _ages(self, N: int) -> mx.array:
        if N > 1:
            return mx.arange(self._used + N - self._beyond_head(N) - 1, -1, -1)
        if self._longest < SINKS:
            return mx.arange(0)
        used, oldest = self._after_step()
        return used - 1 - (mx.arange(used) - oldest) % used

    def _in_reach(self, queries: mx.array, keys: mx.array) -> mx.array:
        return (keys < SINKS) | (keys > queries - self._window)

    @property
    def state(self) -> Parts:
        return self._buffers

    def _parts(self) -> tuple[Parts, Parts]:
        head = [buffer[:, :, :SINKS] for buffer in self._buffers]
        rest = [buffer[:, :, SINKS : SINKS + self._used] for buffer in self._buffers]
        if self._used == self._window and self._next:
            rest = [mx.concatenate([part[:, :, self._next :], part[:, :, : self._next]], axis=2) for part in rest]
        return head, rest

    def _store(self, head: Parts, rest: Parts) -> None:
        if self._true_lengths is None:  # else the newest columns may be padding
            rest = [part[:, :, -self._window :] for part in rest]
        self._used = rest[0].shape[2]
        self._next = 0 if self._used == self._window else self._used
        self._buffers = [mx.concatenate([a, b], axis=2) for a, b in zip(head, rest, strict=True)]
