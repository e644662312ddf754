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


def packs(lengths: Sequence[int], step: int, forward: int) -> list[list[int]]:
    """Of the rows at the front those that go through prefill whole in one step, at least the first: indices of rows of
    like length, each group one forward, padded to its longest. All within `step` tokens with their padding. forward: a
    forward costs as much as so many tokens beside its own."""
    count = 1
    while count < len(lengths) and sum(lengths[: count + 1]) <= step:
        count += 1
    while True:
        groups = _alike(lengths[:count], forward)
        if count == 1 or sum(len(group) * max(lengths[i] for i in group) for group in groups) <= step:
            return sorted(groups)
        count -= 1


def _alike(lengths: Sequence[int], forward: int) -> list[list[int]]:
    """Groups of least cost: of rows in order of their lengths, where the last of the first so many begins."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, starts = [0], [0]
    for end, index in enumerate(order, 1):
        cost, start = min((costs[i] + forward + lengths[index] * (end - i), i) for i in range(end))
        costs.append(cost)
        starts.append(start)
    groups, end = [], len(order)
    while end:
        groups.append(sorted(order[starts[end] : end]))
        end = starts[end]
    return groups


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
