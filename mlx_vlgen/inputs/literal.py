"""User text in a formatted prompt: kept apart from what the chat template wrote, so that it is read as text only.

User text is masked before the template sees it: each character is replaced by another one, of a Unicode plane that the
prompt does not use. So a template trims, joins and cuts it as ever, whatever it lets through is known to be a user's,
and `unmask` gives the text back.
"""

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from ..errors import PromptError


@dataclass(frozen=True)
class Segment:
    """Part of a formatted prompt. literal: user text that looks like a control token, and is none. tail_start: where
    in it the last user text ends: only what follows may open a thinking block."""

    text: str
    literal: bool = False
    tail_start: int = 0


Mask = Callable[[str], str]
BRACKETS = "<>[]{}()|"
SPACES = np.array(
    [*range(0x09, 0x0E), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F,
     0x3000], np.uint32
)  # fmt: skip
"""Those of `str.isspace`."""


class Masker:
    """Masks text of a prompt that holds `texts`. control: the strings that control a conversation."""

    def __init__(self, control: frozenset[str], texts: Iterable[str]):
        self.control = control
        used = {ord(character) >> 16 for text in texts for character in set(re.findall("[^\0-\uffff]", text))}
        plane = next((plane for plane in range(16, 3, -1) if plane not in used), None)
        if plane is None:
            raise PromptError(
                "the prompt has characters of every range that Unicode has not given a meaning: remove them"
            )
        self._plane = plane
        edges = {text[end] for text in control for end in (0, -1)}
        self._edges = np.array([ord(character) for character in edges | set(BRACKETS)], np.uint32)

    def mask_all(self, text: str) -> str:
        """Masks every character but spaces."""
        codes = _codes(text)
        return self._masked(codes, ~_in(codes, SPACES))

    def mask_edges(self, text: str) -> str:
        """Masks brackets, and the characters that control strings begin or end with."""
        codes = _codes(text)
        return self._masked(codes, _in(codes, self._edges))

    def mask_control(self, text: str) -> str:
        """Masks the control strings."""
        return self.mask_strings(text, self.control)

    def mask_strings(self, text: str, strings: frozenset[str]) -> str:
        parts = split_at(strings, text)
        return "".join(self.mask_all(part) if i % 2 else part for i, part in enumerate(parts))

    def mask_across(self, texts: Sequence[str], strings: frozenset[str]) -> list[str]:
        """`mask_strings` in texts that a template may join."""
        joined, ends = self.mask_strings("".join(texts), strings), [0, *itertools.accumulate(map(len, texts))]
        return [joined[begin:end] for begin, end in itertools.pairwise(ends)]

    def unmasked_control(self, text: str) -> list[str]:
        """The control strings in a text that are not masked."""
        return split_at(self.control, text)[1::2]

    def unmask(self, text: str) -> str:
        codes = _codes(text)
        return _text(np.where(codes >> 16 == self._plane, codes & 0xFFFF, codes))

    def segments(self, text: str) -> list[Segment]:
        """A rendered text, unmasked, and which control strings in it are user text. Those that the template itself
        wrote have no masked character."""
        masked = np.flatnonzero(_codes(text) >> 16 == self._plane)
        user_end = int(masked[-1]) + 1 if len(masked) else 0
        segments: list[Segment] = []
        position = 0
        for number, part in enumerate(split_at(self.control, text)):
            pieces = [part] if number % 2 else split_at(self.control, self.unmask(part))
            for i, piece in enumerate(pieces):
                literal = i % 2 == 1  # whole, though its end may be the template's
                tail_start = len(piece) if literal else min(max(0, user_end - position), len(piece))
                segments.append(Segment(piece, literal, tail_start))
                position += len(piece)
        return join_equal([segment for segment in segments if segment.text])

    def _masked(self, codes: np.ndarray, which: np.ndarray) -> str:
        return _text(np.where(which & (codes < 0x10000), codes | self._plane << 16, codes))


def map_text(value: Any, function: Mask, skip: Collection[str] = ()) -> Any:
    """A message with every text in it changed, but those under the keys in `skip`."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {key: item if key in skip else map_text(item, function, skip) for key, item in value.items()}
    return [map_text(item, function, skip) for item in value] if isinstance(value, list | tuple) else value


def iter_text(value: Any) -> Iterator[str]:
    """Every text in a message."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from iter_text(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from iter_text(item)


def check_text(text: str) -> None:
    """PromptError for halves of characters, which stand for bytes that were no text."""
    if re.search("[\ud800-\udfff]", text):
        raise PromptError("the prompt holds bytes that are not text in UTF-8: convert it, or remove them")


def split_at(strings: frozenset[str], text: str) -> list[str]:
    """A text cut at `strings`, which are the odd items; at each position the longest one counts. There may be
    thousands of strings: a regular expression would try each of them at each position."""
    lengths, first = _by_first_character(strings)
    parts, end, position = [], 0, 0
    while match := first.search(text, position):
        position = match.start()
        for length in lengths[match.group()]:
            if (string := text[position : position + length]) in strings:
                parts += [text[end:position], string]
                end = position = position + length
                break
        else:
            position += 1
    return [*parts, text[end:]]


@functools.lru_cache(maxsize=64)
def _by_first_character(strings: frozenset[str]) -> tuple[dict[str, list[int]], re.Pattern[str]]:
    """The lengths of the strings that begin with each character, longest first, and a pattern of those characters."""
    lengths = {
        first: sorted({len(string) for string in strings if string[0] == first}, reverse=True)
        for first in {string[0] for string in strings}
    }
    return lengths, re.compile(f"[{re.escape(''.join(lengths))}]" if strings else "(?!)")


def join(segments: Sequence[Segment]) -> Segment:
    """Several segments, all literal or none, as one."""
    text, tail_start = "", 0
    for segment in segments:
        if segment.tail_start:
            tail_start = len(text) + segment.tail_start
        text += segment.text
    return Segment(text, segments[0].literal, tail_start)


def join_equal(segments: Iterable[Segment]) -> list[Segment]:
    """Neighbours that are literal, or that are not, joined."""
    return [join(list(group)) for _, group in groupby(segments, key=lambda segment: segment.literal)]


def rewritten(segments: Iterable[Segment], change: Callable[[str], str]) -> list[Segment]:
    """Segments with the text of each that is not literal changed."""
    return [
        segment
        if segment.literal
        else Segment(change(segment.text), tail_start=len(change(segment.text[: segment.tail_start])))
        for segment in segments
    ]


def _in(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of them are among `others`: by a table, since to sort them NumPy imports a module for 20 ms."""
    return np.isin(codes, others, kind="table")


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _text(codes: np.ndarray) -> str:
    return codes.astype(np.uint32).tobytes().decode("utf-32-le")
