"""A person's words in a formatted prompt: kept apart from what the template wrote, and tokenized as words.

Words are hidden from the template by other characters, one for one, of a range that the prompt does not use: so a
template trims, joins and cuts them as ever, whatever it lets through is known to be a person's, and `show` gives the
text back.
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
    """Part of a formatted prompt. literal: a person's words that look like what steers a conversation, and do not.
    said: how many characters of it come before the end of a person's last words: only what follows them may open a
    thinking block."""

    text: str
    literal: bool = False
    said: int = 0


Change = Callable[[str], str]
BRACKETS = "<>[]{}()|"
SPACES = np.array([code for code in range(0x10000) if chr(code).isspace()], np.uint32)


class Hiding:
    """Hides words of a prompt that holds `texts`. steering: the strings that steer a conversation."""

    def __init__(self, steering: frozenset[str], texts: Iterable[str]):
        self.steering = Strings.of(steering)
        used = {ord(character) >> 16 for text in texts for character in set(re.findall("[^\0-\uffff]", text))}
        plane = next((plane for plane in range(16, 3, -1) if plane not in used), None)
        if plane is None:
            raise PromptError(
                "the prompt has characters of every range that Unicode has not given a meaning: remove them"
            )
        self._plane = plane
        ends = {text[end] for text in steering for end in (0, -1)}
        self._edges = np.array([ord(character) for character in ends | set(BRACKETS)], np.uint32)

    def all(self, text: str) -> str:
        """Every character but spaces."""
        codes = _codes(text)
        return self._moved(codes, ~np.isin(codes, SPACES))

    def edges(self, text: str) -> str:
        """The characters that steering strings begin or end with, and brackets."""
        codes = _codes(text)
        return self._moved(codes, np.isin(codes, self._edges))

    def matches(self, text: str, strings: "Strings | None" = None) -> str:
        """The steering strings, or others."""
        parts = (strings or self.steering).split(text)
        return "".join(self.all(part) if i % 2 else part for i, part in enumerate(parts))

    def across(self, texts: Sequence[str], strings: "Strings") -> list[str]:
        """`matches`, in texts that a template may join."""
        whole, ends = self.matches("".join(texts), strings), [0, *itertools.accumulate(map(len, texts))]
        return [whole[begin:end] for begin, end in itertools.pairwise(ends)]

    def steering_in(self, text: str) -> list[str]:
        """The steering strings that stand there and are not hidden."""
        return self.steering.split(text)[1::2]

    def show(self, text: str) -> str:
        codes = _codes(text)
        return _text(np.where(codes >> 16 == self._plane, codes & 0xFFFF, codes))

    def cut(self, text: str) -> list[Segment]:
        """A rendered text, shown: what of it is no more than a person's words, though it steers. What the template
        itself wrote has nothing hidden in it."""
        hidden = np.flatnonzero(_codes(text) >> 16 == self._plane)
        end = int(hidden[-1]) + 1 if len(hidden) else 0
        segments: list[Segment] = []
        place = 0
        for number, part in enumerate(self.steering.split(text)):
            for i, own in enumerate([part] if number % 2 else self.steering.split(self.show(part))):
                said = len(own) if i % 2 else min(max(0, end - place), len(own))  # a literal may end in the template's
                segments.append(Segment(own, i % 2 == 1, said))
                place += len(own)
        runs = groupby((segment for segment in segments if segment.text), key=lambda segment: segment.literal)
        return [join(list(run)) for _, run in runs]

    def _moved(self, codes: np.ndarray, which: np.ndarray) -> str:
        return _text(np.where(which & (codes < 0x10000), codes | self._plane << 16, codes))


def mapped(value: Any, change: Change, but: Collection[str] = ()) -> Any:
    """A message with every text in it changed, but those of some keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: item if key in but else mapped(item, change, but) for key, item in value.items()}
    return [mapped(item, change, but) for item in value] if isinstance(value, list | tuple) else value


def check_text(text: str) -> None:
    """PromptError for halves of characters, which stand for bytes that were no text."""
    if re.search("[\ud800-\udfff]", text):
        raise PromptError("the prompt holds bytes that are not text in UTF-8: convert it, or remove them")


def texts(value: Any) -> Iterator[str]:
    """Every text in a message."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


class Strings:
    """Finds strings in a text, at each place the longest that stands there. There may be thousands of them, of which
    a regular expression would try each at each place."""

    def __init__(self, strings: frozenset[str]):
        self._strings = strings
        self._lengths = {
            first: sorted({len(string) for string in strings if string[0] == first}, reverse=True)
            for first in {string[0] for string in strings}
        }
        self._first = re.compile(f"[{re.escape(''.join(self._lengths))}]" if strings else "(?!)")

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(strings: frozenset[str]) -> "Strings":
        return Strings(strings)

    def split(self, text: str) -> list[str]:
        """What is between those that stand there, and at odd places they."""
        parts, done, place = [], 0, 0
        while match := self._first.search(text, place):
            place = match.start()
            for length in self._lengths[match.group()]:
                if (string := text[place : place + length]) in self._strings:
                    parts += [text[done:place], string]
                    done = place = place + length
                    break
            else:
                place += 1
        return [*parts, text[done:]]


def join(segments: Sequence[Segment]) -> Segment:
    """Several, all literal or none, as one."""
    said = max(
        (place + own.said for own, place in zip(segments, _places(segments), strict=True) if own.said), default=0
    )
    return Segment("".join(own.text for own in segments), segments[0].literal, said)


def _places(segments: Sequence[Segment]) -> list[int]:
    return [0, *itertools.accumulate(len(own.text) for own in segments)][:-1]


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _text(codes: np.ndarray) -> str:
    return codes.astype(np.uint32).tobytes().decode("utf-32-le")


# -- tokenizing


def runs(segments: Sequence[Segment], tokens: frozenset[str]) -> list[Segment]:
    """The prompt cut where its tokenizer cuts it, too: at `tokens`, its added ones. A run with literal words in it is
    literal as a whole, for words that stand side by side become tokens together."""
    if not any(segment.literal for segment in segments):
        return [join(segments)]
    strings = Strings.of(tokens)
    pieces: list[tuple[bool, Segment]] = []  # with whether it is an added token
    for segment in (join(list(run)) for _, run in groupby(segments, key=lambda segment: segment.literal)):
        parts = [segment.text] if segment.literal else strings.split(segment.text)
        pieces += [(i % 2 == 1, Segment(part, segment.literal)) for i, part in enumerate(parts) if part]
    cut: list[Segment] = []
    for token, run in groupby(pieces, key=lambda piece: piece[0]):
        own = [segment for _, segment in run]
        literal = not token and any(segment.literal for segment in own)
        cut.append(Segment("".join(segment.text for segment in own), literal))
    return [join(list(group)) for _, group in groupby(cut, key=lambda segment: segment.literal)]


def encode_words(tokenizer: Any, text: str, first: bool, special: bool) -> list[int]:
    """Token ids of a text in which no added token is read. first: whether it begins the prompt, which some tokenizers
    put a blank before. special: whether the tokenizer's own first token goes before it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python, which cuts no text then
        ids = tokenizer.encode(text, add_special_tokens=special, split_special_tokens=True, verbose=False)
        return [int(token) for token in ids]
    from tokenizers import Tokenizer, models

    bare = Tokenizer(models.BPE())  # the model is put in last: it is large, and shared
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if (own := getattr(backend, part)) is not None:
            setattr(bare, part, own)
    if not first:
        bare = Tokenizer.from_str(bare.to_str().replace('"prepend_scheme":"first"', '"prepend_scheme":"never"'))
    bare.model = backend.model
    return [int(token) for token in bare.encode(text, add_special_tokens=special).ids]
