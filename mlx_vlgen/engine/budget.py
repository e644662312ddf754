"""What the caches of the rows that run together may take."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from .._runtime import memory_available
from ..models.base import CrossAttention, Followed, LayerKind, Opaque, PromptWindow, Recurrent, Sliding, Whole
from . import cache as kv
from .kv_settings import KVSettings
from .request import Row
from .states import StateCache

MEMORY_SHARE = 0.8
"""Of the memory that is free, what caches may take: forwards need some, slots to spare, and so do other programs."""


@dataclass(frozen=True)
class LayerSize:
    """What one layer stores of one row. width: values a position, of the keys and values of all heads; itemsize: bytes
    a value, where it is not quantized; state: bytes that do not depend on the length."""

    width: int = 0
    itemsize: int = 0
    state: int = 0

    @classmethod
    def of(cls, cache: object) -> "LayerSize":
        """Read off the shapes of a cache that was used, here or on another rank only."""
        if isinstance(cache, StateCache):
            return cls(state=cache.row_bytes)
        if not (arrays := cache.state[:2]):  # type: ignore[attr-defined]
            return cls()
        keys, values = arrays
        return cls(sum(part.shape[1] * part.shape[3] for part in (keys, values)), keys.dtype.size)


Layers = Mapping[tuple[LayerKind, LayerSize], int]
"""How many layers of each kind and size a model has."""


def bytes_needed(layers: Layers, settings: KVSettings, positions: int) -> int:
    """Bytes that a row of so many positions takes in its caches with these settings."""
    return sum(count * _layer_bytes(*layer, settings, positions) for layer, count in layers.items())


def _layer_bytes(kind: LayerKind, size: LayerSize, settings: KVSettings, positions: int) -> int:
    whole, packed = positions, 0
    if isinstance(kind, Recurrent | CrossAttention):
        whole = 0
    elif isinstance(kind, Sliding):
        whole = min(positions, kind.window)
    elif isinstance(kind, PromptWindow | Whole):
        pass  # it has all positions, whatever the settings
    elif settings.max_size is not None:
        whole = min(positions, settings.max_size)
    elif settings.bits is not None:
        whole = min(positions, settings.start)
        # A scale and a bias for each group beside its values.
        bits = settings.bits * settings.group_size + 2 * 8 * size.itemsize
        packed = (positions - whole) * size.width * bits // (8 * settings.group_size)
    return whole * size.width * size.itemsize + packed + size.state


@dataclass
class Budget:
    """layout: the model's. limit: positions that the admitted rows may need together; None is as many bytes as fit into
    free memory, which `learn` finds out."""

    layout: Sequence[LayerKind]
    limit: int | None
    _layers: Layers | None = field(default=None, init=False)  # while None, `limit` is of positions

    def learn(self, cache: kv.Cache) -> None:
        """Read the sizes of the layers off the cache of the first rows."""
        if self.limit is not None or any(isinstance(kind, Opaque) for kind in self.layout):
            return
        if (available := memory_available()) is not None:
            self._layers = Counter(zip(self.layout, map(LayerSize.of, cache), strict=True))
            self.limit = kv.nbytes(cache) + int(MEMORY_SHARE * available)

    def needed(self, row: Row) -> int:
        """What the row may come to take, in the limit's unit; in bytes of free memory what it will probably take."""
        if self._layers is None:
            return sum(row.sequences())
        positions = row.sequences(likely=True)
        return int(self._fullest * sum(bytes_needed(self._layers, row.request.kv, count) for count in positions))

    @cached_property
    def _fullest(self) -> float:
        return max((kind.fullest for kind in self.layout if isinstance(kind, Followed)), default=1.0)
