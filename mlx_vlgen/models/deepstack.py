"""What a tower's layers give beside its features, added to the states between text layers."""

from collections.abc import Sequence
from dataclasses import dataclass

from .._runtime import mx


@dataclass
class Deepstack:
    """Of media only, and not of all tokens: a long text about one picture holds no zeros for its words.

    layers: for each layer the (n, d) of each medium of all rows, in order.
    places: (B, L) int32, which of these, counted over all media from 1 on, is added at a token; 0 for none.
    """

    layers: Sequence[Sequence[mx.array]]
    places: mx.array

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, span: slice) -> "Deepstack":
        """Of the positions of `span`."""
        return Deepstack(self.layers, self.places[:, span])

    def table(self, index: int) -> mx.array:
        """All that is added after one layer (M, d)."""
        return mx.concatenate([*self.layers[index]])

    def added(self, h: mx.array, index: int) -> mx.array:
        """States h (B, L, d) after one layer, with what is added there."""
        table = self.table(index).astype(h.dtype)
        return h + mx.pad(table, [(1, 0), (0, 0)])[self.places]

    @staticmethod
    def stack(rows: Sequence["Deepstack | None"], lengths: Sequence[int], longest: int) -> "Deepstack | None":
        """Of single rows of these lengths, some without any, as one batch padded on the right; None where no row has
        any."""
        known = [row for row in rows if row is not None]
        if not known:
            return None
        places, count = [], 0
        for row, length in zip(rows, lengths, strict=True):
            own = mx.zeros((1, length), mx.int32) if row is None else row.places
            places.append(mx.pad(mx.where(own > 0, own + count, 0), [(0, 0), (0, longest - length)]))
            count += 0 if row is None else sum(map(len, row.layers[0]))
        layers = [
            [part for parts in layer for part in parts] for layer in zip(*(row.layers for row in known), strict=True)
        ]
        return Deepstack(layers, mx.concatenate(places))
