"""What one step does, decided from sizes and clocks: who is admitted, read, encoded, prefilled and ended.

Pure: it changes nothing and knows no array. The plan is data, so that ranks of one model can follow it.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ..inputs.prompt import Media
from ..results import FinishReason
from .budget import Budget
from .request import Row
from .scheduling import admissible, chunk_end, encoding_groups, pack_size

READ_AHEAD = 3
"""Rows that are read before there is room for them, at most: their pixels are in memory meanwhile."""

SLOW = 0.5
"""Seconds after which a row that is still being read is overtaken by those behind it."""


@dataclass(frozen=True)
class Limits:
    """step_size, decode_step_size: prompt tokens a step, while nobody decodes and while somebody does; vision_pixels,
    decode_vision_pixels: pixel values in one group of media. group: whether pictures of equal shape are brought
    together."""

    step_size: int = 2048
    decode_step_size: int = 512
    vision_pixels: int = 3 * 4096 * 1024
    decode_vision_pixels: int = 3 * 1024 * 1024
    group: bool = True


@dataclass(frozen=True)
class Chunk:
    """Positions of the prompt of the row `id`, or of its negative prompt."""

    id: int
    start: int
    end: int
    negative: bool = False


@dataclass(frozen=True)
class Plan:
    """One step. ended: rows and why; admitted: rows that come in; encoded: groups of media, each as (id of its row,
    place among the row's media); prefilled: one chunk of a long prompt, or several whole short ones.

    unread: rows to read ahead, in order; lacks: whether another row could come in, had the first of them been read."""

    ended: tuple[tuple[int, FinishReason], ...] = ()
    admitted: tuple[int, ...] = ()
    encoded: tuple[tuple[tuple[int, int], ...], ...] = ()
    prefilled: tuple[Chunk, ...] = ()
    unread: tuple[int, ...] = ()
    lacks: bool = False


def make_plan(
    queue: Iterable[Row],
    coming: Sequence[Row],
    decoding: Sequence[Row],
    encoded: Container[Media],
    slots: int,
    budget: Budget,
    limits: Limits,
    now: float,
) -> Plan:
    """queue: rows that wait, coming: those that are admitted and do not decode yet, both in order of arrival; decoding:
    with negative prompts. encoded: the media whose features are there. slots: rows that may be inside together."""
    ended = [(row.id, reason) for row in coming if (reason := end_of(row, limits.step_size, now))]
    gone = {id for id, _ in ended}
    coming = [row for row in coming if row.id not in gone]
    admitted, refused, unread, lacks = _admit(queue, coming, decoding, slots, budget, limits, now)
    inside = [*coming, *admitted]
    groups = _groups(inside, encoded, limits, live=bool(decoding))
    return Plan(
        ended=(*ended, *refused),
        admitted=tuple(row.id for row in admitted),
        encoded=tuple(tuple(refs) for refs, _ in groups),
        prefilled=_chunks(inside, encoded, {m for _, media in groups for m in media}, slots, decoding, limits),
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
    tokens = sum(row.length for row in coming if not row.prefill_started)
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
        tokens, taken = tokens + row.length, taken + need
    return admitted, refused, unread, lacks


def _groups(
    rows: Sequence[Row], encoded: Container[Media], limits: Limits, live: bool
) -> list[tuple[list[tuple[int, int]], list[Media]]]:
    """What goes through the vision tower: all groups; while rows decode only the one that comes first, and small."""
    refs: dict[Media, tuple[int, int]] = {}
    for row in rows:
        if not row.embedded:
            for place, medium in enumerate(row.media):
                if medium not in encoded:
                    refs.setdefault(medium, (row.id, place))
    media, places = list(refs), list(refs.values())
    pixels = min(limits.vision_pixels, limits.decode_vision_pixels) if live else limits.vision_pixels
    groups = list(encoding_groups(media, pixels, limits.group))
    if live and groups:
        groups = [min(groups)]
    return [([places[i] for i in group], [media[i] for i in group]) for group in groups]


def _chunks(
    rows: Sequence[Row],
    encoded: Container[Media],
    being_encoded: Container[Media],
    slots: int,
    decoding: Sequence[Row],
    limits: Limits,
) -> tuple[Chunk, ...]:
    """What is prefilled: what is under way; or the first rows whose media are encoded. Nobody is overtaken."""

    def embedded(row: Row) -> bool:
        return row.embedded or all(medium in encoded or medium in being_encoded for medium in row.media)

    free = slots - len(decoding)
    rows = list(takewhile(embedded, rows))
    if not rows or free < 1:
        return ()
    size = min(limits.step_size, limits.decode_step_size) if decoding else limits.step_size
    first = rows[0]
    if not first.packs:
        return (_chunk(first, size),)
    alike = takewhile(lambda row: row.packs and row.batch_key == first.batch_key, rows)
    count = min(pack_size([row.length for row in alike], size), free)
    if count <= 1:
        return (_chunk(first, size),)
    return tuple(Chunk(row.id, 0, row.length) for row in rows[:count])


def _chunk(row: Row, size: int) -> Chunk:
    """The next chunk of a row's prompt, or after it of its negative prompt."""
    negative = row.negative if row.filled == row.length else None
    part = negative or row
    end = chunk_end(part.filled, part.length, part.length if row.runs_alone else size, part.prompt.two_way)
    return Chunk(row.id, part.filled, end, negative is not None)
