"""Keys and values quantized as they are written."""

from typing import Any

from .._runtime import mx
from ..errors import UnsupportedError
from .kv_settings import GROUP_SIZES, KVSettings
from .ragged import Parts, RaggedCache, grow

PACKED_QUERIES = 16
"""Up to so many tokens a row, attention reads the packed arrays: at one token and 4,096 positions three to six times
faster than unpacking them first (CPU). From about 64 on it is slower, and holds all scores, which a fused kernel does
not."""


class QuantizedCache(RaggedCache):
    """Positions below `start` whole, the others quantized (`mx.quantize`, affine); both under one softmax.

    Every query sees quantized keys and values at `start` and beyond, those of its chunk too: an answer
    depends on no chunk. With start = 0 a decoding step hands mlx-lm's quantized attention the packed arrays; longer
    chunks, and any step with start > 0, unpack this layer's keys and values for the time of its attention.
    bits: set while what was fetched last is packed, by which mlx-lm's attention knows.

    UnsupportedError on the first update where `group_size` does not divide a head size.
    """

    bits: int

    def __init__(self, settings: KVSettings, rows: int = 1):
        assert settings.bits is not None
        super().__init__(settings.start, rows)
        self.group_size, self._bits = settings.group_size, settings.bits
        self._whole: Parts = []  # keys and values of the head
        self._rest: Parts = []  # packed, scales and biases of the keys, then of the values
        self._used = 0  # columns of the rest that are in use

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        if not self._rest:
            self._begin(keys, values)
        N, columns = keys.shape[2], self._longest
        beyond = self._beyond_head(N)
        if min(self.lengths) < self.head:
            self._whole = grow(self._whole, min(columns, self.head), min(columns + N, self.head), self.head)
            self._write_head(self._whole, [keys, values])
        if beyond < N:
            self._append(self._quantize(keys[:, :, beyond:]) + self._quantize(values[:, :, beyond:]))
        self.lengths = [length + N for length in self.lengths]
        head, rest = self._parts()
        if self.head == 0 and N <= PACKED_QUERIES:
            self.bits = self._bits
            return tuple(rest[:3]), tuple(rest[3:])
        if hasattr(self, "bits"):
            del self.bits
        if self._used == 0:
            return head[0], head[1]
        keys, values = self._dequantize(rest[:3]), self._dequantize(rest[3:])
        if self.head == 0:
            return keys, values
        return mx.concatenate([head[0], keys], axis=2), mx.concatenate([head[1], values], axis=2)

    def _begin(self, keys: mx.array, values: mx.array) -> None:
        for part in (keys, values):
            if part.shape[-1] % self.group_size:
                raise UnsupportedError(_misfit(part.shape[-1], self.group_size))

        def empty(like: mx.array) -> mx.array:
            return mx.zeros((*like.shape[:2], 0, like.shape[-1]), like.dtype)

        self._whole = [empty(keys), empty(values)]
        # Quantized for their widths and dtypes only; never computed.
        self._rest = [empty(part) for new in (keys, values) for part in self._quantize(new[:, :, :1])]

    def _quantize(self, x: mx.array) -> Parts:
        return list(mx.quantize(x, group_size=self.group_size, bits=self._bits))

    def _dequantize(self, parts: Parts) -> mx.array:
        packed, scales, biases = parts
        return mx.dequantize(packed, scales, biases, group_size=self.group_size, bits=self._bits)

    def _append(self, new: Parts) -> None:
        end = self._used + new[0].shape[2]
        self._rest = grow(self._rest, self._used, end)
        for buffer, part in zip(self._rest, new, strict=True):
            buffer[:, :, self._used : end] = part
        self._used = end

    def _is_causal(self, N: int) -> bool:
        return self._equal

    def _ages(self, N: int) -> mx.array:
        return mx.arange(max(0, self._longest + N - self.head) - 1, -1, -1)

    @property
    def state(self) -> Parts:
        return [*self._whole, *self._rest]

    def _parts(self) -> tuple[Parts, Parts]:
        head = min(self.head, self._longest)
        return [part[:, :, :head] for part in self._whole], [part[:, :, : self._used] for part in self._rest]

    def _store(self, head: Parts, rest: Parts) -> None:
        self._whole, self._rest, self._used = head, rest, rest[0].shape[2]


def _misfit(head_size: int, group_size: int) -> str:
    fitting = [size for size in GROUP_SIZES if head_size % size == 0]
    remedy = (
        f"give {' or '.join(map(str, fitting))}" if fitting else "none of 32, 64 and 128 does, so leave kv_bits out"
    )
    return f"kv_group_size={group_size} does not divide this model's attention head size of {head_size}: {remedy}"
