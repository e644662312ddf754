"""What one step does, decided from sizes and clocks: who is admitted, read, encoded, prefilled and ended.

Pure: it changes nothing and knows no array. The plan is data, so that ranks of one model can follow it.
"""

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

from .._runtime import mx
from ..inputs.prompt import Media
from ..models.base import Model
from ..results import FinishReason
from .budget import Budget
from .prefix import LEAST, agreement, cut_back
from .request import Row
from .scheduling import admissible, chunk_end, encoding_groups, packs

READ_AHEAD = 8
"""Rows that are read before there is room for them, at most: their pixels are in memory meanwhile."""

SLOW = 0.5
"""Seconds after which a row that is still being read is overtaken by those behind it."""


FORWARD = {"cpu": 64, "metal": 256, "cuda": 1024}
"""Tokens in the time that a forward takes beside its own: on a CPU to read the weights once more, on a GPU to launch it
(20 ms on an H100, which computes 50 tokens of a 4B model in one). Metal's is a guess between the two."""


@dataclass(frozen=True)
class Limits:
    """step_size, decode_step_size: prompt tokens a step, while nobody decodes and while somebody does; vision_pixels,
    decode_vision_pixels: pixel values in one group of media. group: whether media that can be encoded together are
    brought together. packed: see `Model.packed`. forward: see `packs`."""

    step_size: int = 2048
    decode_step_size: int = 512
    vision_pixels: int = 3 * 4096 * 1024
    group: bool = True
    packed: Container[str] = ()
    decode_vision_pixels: int = 3 * 1024 * 1024
    forward: int = FORWARD["cpu"]

    @classmethod
    def of(cls, model: Model, step: int, decode_step: int, vision_pixels: int | None, group: bool) -> "Limits":
        """Those of a model on its device. A CPU gains nothing by large groups of media, whose states are in its cache
        no more: 16 pictures of 256 x 256 took 1.1 of the time of four times 4."""
        on_cpu = model.device.type.name == "cpu"
        if vision_pixels is None:
            vision_pixels = 3 * 768 * 512 if on_cpu else cls.vision_pixels
        forward = FORWARD["cpu" if on_cpu else "cuda" if mx.cuda.is_available() else "metal"]
        return cls(step, decode_step, vision_pixels, group, model.packed, forward=forward)


@dataclass(frozen=True)
class Chunk:
    """Positions of the prompt of the row `id`, or of its negative prompt. stored: so many of its first positions are
    stored after it, for others begin with them."""

    id: int
    start: int
    end: int
    negative: bool = False
    stored: int = 0


@dataclass(frozen=True)
class Plan:
    """One step. ended: rows and why; admitted: rows that come in; encoded: groups of media, each as (id of its row,
    place among the row's media); prefilled: forwards, each one chunk of a prompt, or several whole ones, which are then
    of like length; waiting: rows that are inside and wait for what another one is about to compute.

    unread: rows to read ahead, in order; lacks: whether another row could come in, had the first of them been read."""

    ended: tuple[tuple[int, FinishReason], ...] = ()
    admitted: tuple[int, ...] = ()
    encoded: tuple[tuple[tuple[int, int], ...], ...] = ()
    prefilled: tuple[tuple[Chunk, ...], ...] = ()
    waiting: frozenset[int] = frozenset()
    unread: tuple[int, ...] = ()
    lacks: bool = False


def make_plan(
    queue: Iterable[Row],
    coming: Sequence[Row],
    decoding: Sequence[Row],
    encoded: Container[Hashable],
    slots: int,
    budget: Budget,
    limits: Limits,
    now: float,
) -> Plan:
    """queue: rows that wait, coming: those that are admitted and do not decode yet, both in order of arrival; decoding:
    with negative prompts. encoded: identities of the media whose features are there. slots: rows that may be inside
    together."""
    ended = [(row.id, reason) for row in coming if (reason := end_of(row, limits.step_size, now))]
    gone = {id for id, _ in ended}
    coming = [row for row in coming if row.id not in gone]
    admitted, refused, unread, lacks = _admit(queue, coming, decoding, slots, budget, limits, now)
    new = {row.id for row in admitted}
    ahead = (row for row in islice(queue, slots) if row.ready and row.id not in new)
    shared = shared_lengths([*coming, *admitted, *ahead])
    waiting = {id for ids in shared.values() for id in ids}
    inside = [*coming, *admitted]
    groups = _groups([row for row in inside if row.id not in waiting], encoded, limits, live=bool(decoding))
    first = list(takewhile(lambda row: row.id not in waiting, inside))  # nobody is overtaken
    return Plan(
        ended=(*ended, *refused),
        admitted=tuple(row.id for row in admitted),
        encoded=tuple(tuple(refs) for refs, _ in groups),
        prefilled=_chunks(
            first, encoded, {m.identity for _, media in groups for m in media}, slots, decoding, limits, shared
        ),
        waiting=frozenset(waiting),
        unread=tuple(row.id for row in unread),
        lacks=lacks,
    )


def end_of(row: Row, step_size: int, now: float) -> FinishReason | None:
    """Why a row that was read ends before it decodes, if it does. One whose time is up has its first token only where
    it is one forward away."""
    if row.error:
        return "error"
    if row.cancelled:
        return "cancelled"
    late = row.deadline is not None and now >= row.deadline
    if row.sampling.max_tokens == 0 or (late and (row.begun or row.length > step_size)):
        return "length"
    return None


def _admit(
    queue: Iterable[Row],
    coming: Sequence[Row],
    decoding: Sequence[Row],
    slots: int,
    budget: Budget,
    limits: Limits,
    now: float,
) -> tuple[list[Row], list[tuple[int, FinishReason]], list[Row], bool]:
    """Rows that come in: as many as there is room for, but no more at once than one prefill step takes; rows that end;
    rows to read ahead; and whether one is lacking that is being read."""
    admitted: list[Row] = []
    refused: list[tuple[int, FinishReason]] = []
    unread: list[Row] = []
    inside = [row for row in (*coming, *decoding) if row.positive is None]
    taken = sum(map(budget.needed, inside))
    tokens = sum(row.length - row.computed for row in coming if not row.prefill_started)
    full = lacks = False
    ahead = 0
    for row in queue:
        full = full or tokens >= limits.step_size
        if full or lacks:
            ahead += 1
            if ahead > READ_AHEAD:
                break
        if not row.ready:
            unread.append(row)
            lacks = lacks or not (full or row.is_slow(now, SLOW))
            continue
        if full or lacks:
            continue
        if reason := end_of(row, limits.step_size, now):
            refused.append((row.id, reason))
            continue
        need = budget.needed(row)
        if not admissible([need], taken, slots - len(decoding) - len(coming) - len(admitted), budget.limit):
            full = True
            continue
        admitted.append(row)
        tokens, taken = tokens + row.length - row.computed, taken + need
    return admitted, refused, unread, lacks


def shared_lengths(rows: Sequence[Row]) -> dict[int, dict[int, int]]:
    """For the rows that are computed first, in order: which rows wait, since they begin alike, and with how many
    positions. None waits where it is less than a quarter of what it has to compute, for rows that are prefilled
    together are faster than one after another, or where what is shared could not be used any more."""
    shared: dict[int, dict[int, int]] = {}
    alike: dict[Hashable, list[Row]] = {}
    for row in rows:
        if row.units is None or row.length <= LEAST:
            continue
        computing = alike.setdefault((row.request.kv, row.units[:LEAST].tobytes()), [])
        if not row.embedded:
            lengths = ((other, _shared_length(row, other)) for other in computing)
            other, length = next((pair for pair in lengths if pair[1]), (None, 0))
            if other:
                shared.setdefault(other.id, {})[row.id] = length
                continue
        computing.append(row)
    return shared


def _shared_length(row: Row, other: Row) -> int:
    """How many positions a row will find once `other` has computed them; 0 where it need not wait for them."""
    assert row.units is not None and other.units is not None
    length = cut_back(agreement(row.units, other.units), row.prompt)
    length = min(length, cut_back(length, other.prompt))
    too_late = other.stops_to_share and other.filled >= length
    least = max(LEAST, (row.length - row.computed) // 4)
    return 0 if too_late or length < row.computed + least else length


def _groups(
    rows: Sequence[Row], encoded: Container[Hashable], limits: Limits, live: bool
) -> list[tuple[list[tuple[int, int]], list[Media]]]:
    """What goes through the vision tower: all groups, each one batch; while rows decode what comes first, and little of
    it."""
    found: dict[Hashable, tuple[Media, tuple[int, int]]] = {}
    for row in rows:
        if not row.embedded:
            for place, medium in enumerate(row.media):
                if medium.identity not in encoded:
                    found.setdefault(medium.identity, (medium, (row.id, place)))
    media, places = [medium for medium, _ in found.values()], [place for _, place in found.values()]
    pixels = min(limits.vision_pixels, limits.decode_vision_pixels) if live else limits.vision_pixels
    groups = list(encoding_groups(media, pixels, limits.group, limits.packed))
    if live:
        groups = list(_first_of(sorted(groups, key=min), media, pixels))
    return [([places[i] for i in group], [media[i] for i in group]) for group in groups]


def _first_of(groups: Sequence[list[int]], media: Sequence[Media], pixels: int) -> Iterator[list[int]]:
    """The first groups, within so many pixel values; at least one. Rows with pictures of mixed sizes would come in one
    by one otherwise, each a step of all that decode later."""
    values = 0
    for group in groups:
        values += sum(media[i].pixels.size for i in group)
        if values > pixels and group is not groups[0]:
            return
        yield group


def _chunks(
    rows: Sequence[Row],
    encoded: Container[Hashable],
    being_encoded: Container[Hashable],
    slots: int,
    decoding: Sequence[Row],
    limits: Limits,
    shared: Mapping[int, Mapping[int, int]],
) -> tuple[tuple[Chunk, ...], ...]:
    """What is prefilled: what is under way; or the first rows whose media are encoded. Nobody is overtaken. shared:
    how many positions others wait for."""

    def embedded(row: Row) -> bool:
        return row.embedded or all(m.identity in encoded or m.identity in being_encoded for m in row.media)

    free = slots - len(decoding)
    rows = list(takewhile(embedded, rows))
    if not rows or free < 1:
        return ()
    size = min(limits.step_size, limits.decode_step_size) if decoding else limits.step_size
    first = rows[0]
    lengths = {row.id: sorted(shared.get(row.id, {}).values()) for row in rows}
    stops = {row.id for row in rows if lengths[row.id] and row.stops_to_share}
    if not first.packs or first.id in stops:
        return ((_chunk(first, size, lengths[first.id]),),)
    alike = takewhile(lambda row: row.packs and row.pack_key == first.pack_key and row.id not in stops, rows[:free])
    groups = packs([row.length - row.computed for row in alike], size, limits.forward)
    if groups == [[0]]:
        return ((_chunk(first, size, lengths[first.id]),),)
    whole = [Chunk(row.id, row.computed, row.length, stored=max(lengths[row.id], default=0)) for row in rows]
    return tuple(tuple(whole[place] for place in group) for group in groups)


def _chunk(row: Row, size: int, lengths: Sequence[int]) -> Chunk:
    """The next chunk of a row's prompt, or after it of its negative prompt. lengths: what others wait for, in order."""
    negative = row.negative if row.filled == row.length else None
    part = negative or row
    end = chunk_end(part.filled, part.length, part.length if row.runs_alone else size, part.prompt.two_way)
    if lengths and row.stops_to_share:
        end = min(end, lengths[0])
    stored = 0 if negative else max((length for length in lengths if length <= end), default=0)
    return Chunk(row.id, part.filled, end, negative is not None, stored)
