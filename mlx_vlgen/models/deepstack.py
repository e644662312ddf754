"""What a tower's layers give beside its features, added to the states between text layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from .._runtime import mx


@dataclass
class Deepstack:
    """Of media only, and not of all tokens: a long text about one picture holds no zeros for its words.

    layers: for each layer the (n, d) of each medium of all rows, in order.
    places: (B, L) int32, on the host, which of these, counted over all media from 1 on, is added at a token; 0 for
    none.
    """

    layers: Sequence[Sequence[mx.array]]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, span: slice) -> "Deepstack | None":
        """Of the positions of `span`, with what is added there alone; None where nothing is."""
        places = self.places[:, span]
        if not places.any():
            return None
        first, last = int(places[places > 0].min()) - 1, int(places.max())

        def cut(parts: Sequence[mx.array]) -> list[mx.array]:
            starts = np.cumsum([0, *map(len, parts)]).tolist()
            kept = (
                part[max(0, first - start) : max(0, last - start)] for part, start in zip(parts, starts, strict=False)
            )
            return [part for part in kept if len(part)]

        return Deepstack([cut(parts) for parts in self.layers], np.where(places > 0, places - first, 0))

    def added(self, h: mx.array, index: int) -> mx.array:
        """States h (B, L, d) after one layer, with what is added there."""
        nothing = mx.zeros((1, h.shape[-1]), h.dtype)
        table = mx.concatenate([nothing, *(part.astype(h.dtype) for part in self.layers[index])])
        return h + table[mx.array(self.places)]

    @staticmethod
    def stack(rows: Sequence["Deepstack | None"], length: int) -> "Deepstack | None":
        """Of single rows, some without any, as one batch of `length` positions; None where no row has any."""
        known = [row for row in rows if row is not None]
        if not known:
            return None
        places, count = np.zeros((len(rows), length), np.int32), 0
        for place, row in zip(places, rows, strict=True):
            if row is not None:
                place[: row.places.shape[1]] = np.where(row.places[0] > 0, row.places[0] + count, 0)
                count += sum(map(len, row.layers[0]))
        return Deepstack([[*chain(*layer)] for layer in zip(*(row.layers for row in known), strict=True)], places)
