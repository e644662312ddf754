"""What a request asks of the KV cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import UnsupportedError
from ..inputs.prompt import Span

BITS = (2, 3, 4, 6, 8)
GROUP_SIZES = (32, 64, 128)
MAX_POSITION = 2**31 - 1
"""The last position that MLX can count."""

SINKS = 4
"""First positions that a bounded cache keeps (Xiao et al. 2024, Efficient Streaming Language Models with Attention
Sinks, section 3.2)."""


@dataclass(frozen=True)
class KVSettings:
    """How the layers that attend to every position store their keys and values. Rows with equal settings can run in
    one batch.

    bits (`kv_bits`): 2, 3, 4, 6 or 8 to quantize them as they are written; default None, the model's dtype.
    group_size (`kv_group_size`): 32, 64 or 128 values that share a scale; default 64. start (`quantized_kv_start`):
    positions below it stay whole; default 0.
    max_size (`max_kv_size`): a token at position p attends to positions below 4 and to the last max_size - 4, itself
    included; at least 5; default None, to all.

    ValueError for a value out of range. UnsupportedError for quantization and a bound together.
    """

    bits: int | None = None
    group_size: int = 64
    start: int = 0
    max_size: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits not in BITS:
            raise ValueError(f"kv_bits={self.bits}: expected 2, 3, 4, 6 or 8, or None for a whole cache")
        if self.group_size not in GROUP_SIZES:
            raise ValueError(f"kv_group_size={self.group_size}: expected 32, 64 or 128")
        if not 0 <= self.start <= MAX_POSITION:
            raise ValueError(f"quantized_kv_start={self.start}: expected a position, 0 to {MAX_POSITION}")
        if self.max_size is not None and self.max_size <= SINKS:
            raise ValueError(
                f"max_kv_size={self.max_size}: expected at least {SINKS + 1}, for the {SINKS} first tokens are kept; "
                "give more, or None for no bound"
            )
        if self.max_size is not None and self.max_size > MAX_POSITION:
            raise ValueError(f"max_kv_size={self.max_size}: expected at most {MAX_POSITION}; None is no bound")
        if self.bits is not None and self.max_size is not None:
            raise UnsupportedError(
                f"kv_bits={self.bits} and max_kv_size={self.max_size} do not go together: leave one of them out"
            )
        if self.bits is None:  # nothing is quantized, whatever the other two say: one batch
            object.__setattr__(self, "group_size", 64)
            object.__setattr__(self, "start", 0)

    @classmethod
    def of(cls, keywords: Mapping[str, int | None]) -> "KVSettings":
        """From the faces' keywords, by their names."""
        names = {
            "kv_bits": "bits",
            "kv_group_size": "group_size",
            "quantized_kv_start": "start",
            "max_kv_size": "max_size",
        }
        return cls(**{names[name]: value for name, value in keywords.items()})  # type: ignore[arg-type]

    def check_spans(self, two_way: Sequence[Span]) -> None:
        """UnsupportedError for a prompt with tokens that all see each other (`Prompt.two_way`) but would not: a span
        longer than the window of max_kv_size. A picture without such a span may scroll out of the window, as any
        causal text does."""
        longest = max((end - start for start, end in two_way), default=0)
        if self.max_size is not None and longest > self.max_size - SINKS:
            raise UnsupportedError(
                f"max_kv_size={self.max_size}: the prompt has {longest} tokens (a picture's, or its prefix) that must "
                f"all see each other: give at least {longest + SINKS}, or leave it out"
            )
