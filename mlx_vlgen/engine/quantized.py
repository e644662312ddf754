"""Keys and values quantized as they are written."""

from collections.abc import Sequence
from typing import Any

from .._runtime import mx
from ..errors import UnsupportedError
from .columns import Columns, Parts
from .kv_settings import GROUP_SIZES, KVSettings
from .slots import AttentionCache

PACKED_QUERIES = 16
"""Up to so many tokens a row, attention reads the packed arrays: at one token and 4,096 positions three to six times
faster than unpacking them first (CPU). From about 64 on it is slower, and holds all scores, which a fused kernel does
not. CUDA's kernels take no part of a larger array: there it is unpacked (MLX 0.32's `supports_qmv`)."""


class QuantizedCache(AttentionCache):
    """Positions below `start` whole, the others quantized (`mx.quantize`, affine); both under one softmax.

    Every query sees quantized keys and values at `start` and beyond, those of its chunk too: an answer
    depends on no chunk. With start = 0 a decoding step hands mlx-lm's quantized attention the packed arrays; longer
    chunks, any step with start > 0, and CUDA unpack this layer's keys and values for the time of its attention.
    bits: set while what was fetched last is packed, by which mlx-lm's attention knows.

    UnsupportedError on the first update where `group_size` does not divide a head size.
    """

    bits: int

    def __init__(self, settings: KVSettings, padded: Sequence[int] | None = None, expected: int = 0):
        assert settings.bits is not None
        self.group_size, self._bits, self._start = settings.group_size, settings.bits, settings.start
        super().__init__(padded=padded, expected=expected)

    def _make_columns(self) -> list[Columns]:
        """Keys and values of the start; packed, scales and biases of the keys, then of the values."""
        return [Columns(last=self._start), Columns(first=self._start)]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        [whole, packed], before = self.columns, self.lengths
        rows, N, longest = len(before), keys.shape[2], self._longest + keys.shape[2]
        if not packed.arrays:
            self._check_widths(keys, values)
        beyond = min(N - 1, max(0, self._start - self._longest))  # at least one token, for the widths
        new = self._quantize(keys[:, :, beyond:]) + self._quantize(values[:, :, beyond:])
        for columns, parts, first in ((whole, [keys, values], 0), (packed, new, beyond)):
            columns.make_room(rows, longest, parts, self._expected)
            columns.write([length + first for length in before], [N - first] * rows, parts)
        self.lengths = [length + N for length in before]
        head = [part[:rows, :, : whole.count(longest)] for part in whole.arrays]
        rest = [part[:rows, :, : packed.count(longest)] for part in packed.arrays]
        if self._start == 0 and N <= PACKED_QUERIES and not mx.cuda.is_available():
            self.bits = self._bits
            return tuple(rest[:3]), tuple(rest[3:])
        if hasattr(self, "bits"):
            del self.bits
        if longest <= self._start:
            return head[0], head[1]
        unpacked = self._dequantize(rest[:3]), self._dequantize(rest[3:])
        if self._start == 0:
            return unpacked
        return mx.concatenate([head[0], unpacked[0]], axis=2), mx.concatenate([head[1], unpacked[1]], axis=2)

    def _check_widths(self, keys: mx.array, values: mx.array) -> None:
        for part in (keys, values):
            if part.shape[-1] % self.group_size:
                raise UnsupportedError(_misfit(part.shape[-1], self.group_size))

    def _quantize(self, x: mx.array) -> Parts:
        return list(mx.quantize(x, group_size=self.group_size, bits=self._bits))

    def _dequantize(self, parts: Parts) -> mx.array:
        packed, scales, biases = parts
        return mx.dequantize(packed, scales, biases, group_size=self.group_size, bits=self._bits)


def _misfit(head_size: int, group_size: int) -> str:
    fitting = [size for size in GROUP_SIZES if head_size % size == 0]
    remedy = (
        f"give {' or '.join(map(str, fitting))}" if fitting else "none of 32, 64 and 128 does, so leave kv_bits out"
    )
    return f"kv_group_size={group_size} does not divide this model's attention head size of {head_size}: {remedy}"
