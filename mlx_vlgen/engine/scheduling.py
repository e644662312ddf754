"""Decisions of the loop, as functions of numbers: who is admitted, and what one prefill step holds."""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from ..inputs.prompt import Media, Span


@dataclass
class Slots:
    """How many rows may run together: max_rows, or fewer once memory did not suffice, and one more again after each
    round of rows that ended well, since what took the memory may be gone."""

    max_rows: int
    now: int = field(init=False)
    _ended: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.now = self.max_rows

    def shrink(self, to: int) -> None:
        self.now, self._ended = max(1, to), 0

    def row_ended(self) -> None:
        self._ended += 1
        if self._ended >= self.now < self.max_rows:
            self.now, self._ended = self.now + 1, 0


def admissible(reserves: Iterable[int], taken: int, slots: int, budget: int | None) -> int:
    """How many of the waiting rows, in order of arrival, may come in.

    reserves: what each may come to need of the budget; taken: what the rows inside may; slots: free places.
    A row that is alone inside always may, however large: it could not run later either.
    """
    count = 0
    for reserve in reserves:
        if count == slots or (budget is not None and taken > 0 and taken + reserve > budget):
            break
        taken += reserve
        count += 1
    return count


def pack_size(lengths: Sequence[int], step: int) -> int:
    """How many of the rows at the front go through prefill whole, together, padded to the longest of them, within
    `step` tokens. At least 1; that one is cut into chunks when it is longer."""
    longest, count = 0, 0
    for length in lengths:
        longest = max(longest, length)
        if count and longest * (count + 1) > step:
            break
        count += 1
    return count


def chunk_end(start: int, length: int, step: int, two_way: Sequence[Span]) -> int:
    """Where the chunk that begins at `start` ends: `step` further, or later so that no two-way span is cut."""
    end = min(start + step, length)
    for first, last in sorted(two_way):
        if first < end < last:
            end = last
    return end


def encoding_groups(
    media: Sequence[Media], pixels: int, group: bool = True, packed: Container[str] = ()
) -> Iterator[list[int]]:
    """Indices of media that go through the vision tower together: those of one form, or of one layout where their kind
    is `packed`, within `pixels` values a group (at least one a group). group: whether order may change to bring them
    together; then those of one form lie beside each other."""
    alike = [medium.layout if medium.kind in packed else medium.form for medium in media]
    order = sorted(range(len(media)), key=alike.__getitem__) if group else range(len(media))
    for _, same in groupby(order, key=alike.__getitem__):
        parts: list[list[int]] = []
        room = 0
        for index in same:
            size = media[index].pixels.size
            if not parts or size > room:
                parts.append([])
                room = pixels
            parts[-1].append(index)
            room -= size
        yield from (sorted(part, key=lambda i: media[i].form) if group else part for part in parts)


def is_out_of_memory(error: Exception) -> bool:
    """Whether MLX could not get memory. It has no exception for this, on any backend."""
    if not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    messages = ("allocate", "out of memory", "outofmemory", "insufficient memory", "bad_alloc")
    return any(message in str(error).lower() for message in messages)
