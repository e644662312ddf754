"""A row's thinking block: where it begins and ends, and the budget for what is inside."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import PromptError


@dataclass(frozen=True)
class Marks:
    """The tokens that open and close a thinking block, and their strings."""

    start: tuple[int, ...]
    end: tuple[int, ...]
    strings: tuple[str, str] = ("<think>", "</think>")

    @classmethod
    def of(cls, tokenizer: Any, start: str | None = None, end: str | None = None) -> "Marks | None":
        """From the strings given, or else `<think>` and `</think>` where the vocabulary has both as tokens; None for
        a model without them. PromptError when only one string is given."""
        if start is None and end is None:
            start, end = cls.strings
            if not (_is_token(tokenizer, start) and _is_token(tokenizer, end)):
                return None
        if not start or not end:
            raise PromptError("thinking_start_token and thinking_end_token go together: give both or neither")
        opening, closing = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (start, end))
        return cls(opening, closing, (start, end))

    def open_in(self, prompt: Sequence[int] | str) -> bool:
        """Whether a prompt opens a block and does not close it. A string decides by itself, for its tokens may join
        the marks with what stands beside them."""
        if isinstance(prompt, str):
            start, end = self.strings
            return prompt.rfind(start) > prompt.rfind(end)
        return _last(prompt, self.start) > _last(prompt, self.end)


def _is_token(tokenizer: Any, text: str) -> bool:
    """Whether the vocabulary has it. Asked of each request: a table of 151,936 words takes 0.1 s to make."""
    token = tokenizer.convert_tokens_to_ids(text)
    return token is not None and tokenizer.convert_ids_to_tokens(token) == text


class Thinking:
    """Follows one row's tokens. A block that the prompt opened and did not close is open from the first of them.

    prompt: what of it can open one, as text; token ids where there is no text. budget: how many tokens may stand
    inside; None is no bound. Once they do, `forced` gives the tokens of the closing mark one by one, and what comes
    after is the answer. A second block has what the first one left; where `over` is set there is none any more.
    """

    def __init__(self, marks: Marks, prompt: Sequence[int] | str, budget: int | None = None):
        self.marks, self._budget = marks, budget
        self._tokens: list[int] = []
        self.inside = marks.open_in(prompt)
        self._blocks: list[tuple[int, int]] = [(0, 0)] if self.inside else []  # ranges of the row's tokens, no marks
        self._answer_from = 0
        self.over = False

    @property
    def count(self) -> int:
        """Tokens inside so far."""
        return sum(end - begin for begin, end in self._blocks)

    @property
    def happened(self) -> bool:
        return bool(self._blocks)

    def add(self, token: int) -> None:
        self._tokens.append(token)
        here = len(self._tokens)
        if self.inside:
            begin = self._blocks[-1][0]
            self.inside = not _ends_with(self._tokens, begin, self.marks.end)
            self._blocks[-1] = begin, here if self.inside else here - len(self.marks.end)
            self._answer_from = here
        elif not self.over and _ends_with(self._tokens, self._answer_from, self.marks.start):
            self.inside = True
            self._blocks.append((here, here))
            self._answer_from = here

    @property
    def undecided(self) -> bool:
        """Whether an unread token decides if the one after it is forced."""
        if self._budget is None:
            return False
        return self.count + int(self.inside) >= self._budget

    @property
    def decider(self) -> tuple[int, bool] | None:
        """Where `undecided` is true, the mark that decides if the unread token is it, and whether that forces the
        closing mark, or all else does. None where it has several tokens: such a row waits until its token is read."""
        mark = self.marks.end if self.inside else self.marks.start
        return (mark[0], not self.inside) if len(mark) == 1 else None

    @property
    def forced(self) -> int | None:
        """The token that has to come next; None while the model is free."""
        if not self.inside or self._budget is None:
            return None
        begin = self._blocks[-1][0]
        begun = _overlap(self._tokens, begin, self.marks.end)  # of the closing mark, forced or drawn by the model
        return self.marks.end[begun] if self.count - begun >= self._budget else None

    def ranges(self, over: bool) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """Where the row's tokens are inside, and where after the last block: nowhere while one is open. What may turn
        out to be the beginning of a mark is in neither, unless the row is over."""
        blocks, begin, end = list(self._blocks), self._answer_from, len(self._tokens)
        if self.inside:
            start = blocks[-1][0]
            blocks[-1] = start, end if over else end - _overlap(self._tokens, start, self.marks.end)
            return blocks, (begin, begin)
        begun = 0 if over or self.over else _overlap(self._tokens, begin, self.marks.start)
        return blocks, (begin, end - begun)


def _ends_with(tokens: Sequence[int], begin: int, mark: tuple[int, ...]) -> bool:
    """Whether the tokens from `begin` on end with `mark`. Asked at every token: it looks at the last few only."""
    return len(tokens) - begin >= len(mark) and tuple(tokens[-len(mark) :]) == mark


def _overlap(tokens: Sequence[int], begin: int, mark: tuple[int, ...]) -> int:
    """How many of the last tokens, all from `begin` on, are the beginning of `mark`."""
    longest = min(len(mark) - 1, len(tokens) - begin)
    return next((n for n in range(longest, 0, -1) if tuple(tokens[-n:]) == mark[:n]), 0)


def _last(tokens: Sequence[int], mark: tuple[int, ...]) -> int:
    """Where `mark` stands last; -1 where it does not."""
    first = np.flatnonzero(np.asarray(tokens) == mark[0])[::-1].tolist()
    return next((at for at in first if tuple(tokens[at : at + len(mark)]) == mark), -1)
