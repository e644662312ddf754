"""Answers of a given form: a JSON schema's, a regular expression's, a grammar's, or one of some choices.

llguidance (https://github.com/guidance-ai/llguidance, extra `structured`) says which tokens may come next.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from .._runtime import mx
from ..errors import PromptError, UnsupportedError
from .json_schema import OPTIONS, check, place_of
from .text import TextStream
from .thinking import Thinking

if TYPE_CHECKING:
    from .request import Row

# What llguidance says of forms that are right, but that it cannot hold an answer to; all else it says of wrong ones.
_CANNOT = re.compile(
    "supported|Unimplemented|Unknown format|not disjoint|does not fetch|Failed to generate|limit|fuel"
    "|too (large|many|complex|deep)"
)
_NO_BITS = np.zeros(0, dtype=np.uint8)
_WITHOUT_EFFECT = re.compile(r"^\s*[?!]?[\w.-]+\s*\[[^\]\n]*\b(temperature|stop)\b\s*=", re.MULTILINE)


class Form:
    """What an answer must be, for one tokenizer. kind: the keyword that gave it. ll_tokenizer: llguidance's.
    spaced: bits of the tokens that an answer must not begin with, since their space would be lost.

    PromptError for a form that is wrong, UnsupportedError for one that llguidance cannot hold an answer to.
    """

    def __init__(self, ll_tokenizer: Any, kind: str, text: str, spaced: np.ndarray = _NO_BITS):
        self.kind, self.spaced, self._ll_tokenizer = kind, spaced, ll_tokenizer
        self.ends = frozenset(ll_tokenizer.eos_tokens)
        """What llguidance takes for end tokens, which need not be the row's."""
        form: Any = text
        if kind == "json_schema":
            form = check(json.loads(text))
        elif kind == "grammar" and (lost := _WITHOUT_EFFECT.search(text)):
            raise UnsupportedError(f"grammar: a rule's attribute {lost[1]!r} has no effect here; leave it out")
        self._matcher = self._compile(form)
        if reason := self._matcher.get_error():
            place = ""
            if kind == "json_schema":
                place = place_of(form, lambda part: self._compile(part).get_error() == reason)
            error = UnsupportedError if _CANNOT.search(reason) else PromptError
            raise error(f"{kind}{place}: {_readable(reason)}")
        if warnings := self._matcher.get_grammar_warnings():
            raise UnsupportedError(f"{kind}: {'; '.join(warnings)}")

    def _compile(self, form: Any) -> Any:
        from llguidance import LLMatcher

        if self.kind == "json_schema":
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(form), overrides=OPTIONS)
        elif self.kind == "regex":
            grammar = LLMatcher.grammar_from_regex(form)
        elif self.kind == "choices":
            choices = " | ".join(map(json.dumps, json.loads(form)))
            grammar = LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}")
        else:
            grammar = LLMatcher.grammar_from_lark(form)
        return LLMatcher(self._ll_tokenizer, grammar, log_level=0)

    def begin(self) -> Any:
        """A matcher for one answer."""
        return self._matcher.deep_copy()

    def fits(self, text: str) -> bool:
        """Whether the whole text is of this form."""
        matcher, tokens = self.begin(), self._ll_tokenizer.tokenize_str(text)
        return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())


def _readable(reason: str) -> str:
    """An error of llguidance in one line, without its drawings."""
    if match := re.search(r"regex parse error:\n    (.*)\n    ( *)\^.*\nerror: (.*)", reason):
        return f"{match[3]}, at character {len(match[2]) + 1} of {match[1]!r}"
    if "oneOf" in reason:
        return "whether one alternative of oneOf excludes the others cannot be told; use anyOf"
    lines = [line.strip() for line in reason.splitlines() if not re.match(r"\s*(\d+ \||\^|$)", line)]
    text = re.sub(r'^at \d+\(\d+\): invalid regex ".*" \(in regex\): ', "", "; ".join(lines))
    return re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", text)


class Forms:
    """The forms compiled for one tokenizer, of which the last ones are kept."""

    _of: ClassVar["WeakKeyDictionary[Any, Forms]"] = WeakKeyDictionary()  # by tokenizer, while that is in use

    def __init__(self, tokenizer: Any):
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise UnsupportedError(
                "json_schema, regex, grammar and choices need the package llguidance: "
                'pip install "mlx-vlgen[structured]"'
            ) from error
        try:
            ll_tokenizer = from_tokenizer(tokenizer)
        except ValueError as error:
            raise UnsupportedError(f"json_schema, regex, grammar and choices: with this tokenizer, {error}") from error
        spaced = _spaced(tokenizer, ll_tokenizer)
        self.get = lru_cache(maxsize=64)(lambda kind, text: Form(ll_tokenizer, kind, text, spaced))

    @classmethod
    def of(cls, tokenizer: Any) -> "Forms":
        if tokenizer not in cls._of:
            cls._of[tokenizer] = cls(tokenizer)
        return cls._of[tokenizer]


def _spaced(tokenizer: Any, ll_tokenizer: Any) -> np.ndarray:
    """Bits of the tokens that begin with a space, where the tokenizer leaves out that of a text's first one (as Llama
    2's)."""
    if tokenizer.decode(ll_tokenizer.tokenize_str(" a"), clean_up_tokenization_spaces=False) != "a":
        return _NO_BITS
    begins = [ll_tokenizer.decode_bytes([token]).startswith(b" ") for token in range(ll_tokenizer.vocab_size)]
    return np.packbits(begins, bitorder="little")


class Constraint:
    """Which tokens one row's answer may go on with.

    What is thought before the answer is free; only the row must not end inside a thinking block. Such a block is open
    since the prompt, or the model opens it as the first thing it does, where `opening`, the tokens that open one, are
    given. Once the answer has begun none opens.
    """

    def __init__(self, form: Form, ends: frozenset[int], thinking: Thinking | None = None, opening: Sequence[int] = ()):
        self._form, self._ends, self._thinking, self._opening = form, ends, thinking, opening
        self._matcher = form.begin()
        self._answer: list[int] = []
        self._opened = 0  # tokens of the opening mark that were drawn
        self._fault = ""

    @property
    def _thinks(self) -> bool:
        return self._thinking is not None and self._thinking.inside

    def allowed(self, vocabulary: int) -> np.ndarray:
        """(vocabulary / 8,) uint8, rounded up: a bit for each token that may come next, lowest first. UnsupportedError
        where there are none."""
        bits = np.zeros(-(-vocabulary // 8), dtype=np.uint8)
        if self._thinks:
            bits[:] = 255
            _set(bits, self._ends, False)
        elif self._opened:
            _set(bits, [self._opening[self._opened]], True)
        else:
            if not self._fault:
                self._fill(bits, vocabulary)
            if self._fault:
                raise UnsupportedError(f"{self._form.kind}: {self._fault}")
        return bits

    def _fill(self, bits: np.ndarray, vocabulary: int) -> None:
        """Set what the answer may go on with, in bits of nothing."""
        known = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)[: len(bits)]
        bits[: len(known)] = known  # embeddings are often padded
        if self._matcher.is_error():
            self._fault = f"llguidance gave up: {self._matcher.get_error().splitlines()[0]}"
            return
        if not self._answer:
            begins = self._form.spaced[: len(bits)]
            bits[: len(begins)] &= ~begins
        _set(bits, self._form.ends | self._ends, False)
        if self._matcher.is_accepting():
            _set(bits, self._ends, True)
        if self._may_think:
            _set(bits, [self._opening[0]], True)
        _set(bits, range(vocabulary, 8 * len(bits)), False)
        if not bits.any():
            self._fault = "no token of this model can go on with the answer, and it is not whole"

    @property
    def _may_think(self) -> bool:
        """Whether the model may open a thinking block now."""
        return bool(self._opening) and not self._answer and not (self._thinking and self._thinking.happened)

    def add(self, token: int) -> None:
        """A token of the row, which `thinking` does not know yet."""
        if self._thinks or self._fault:
            return
        if self._opened or (self._may_think and self._is_opening(token)):
            self._opened = (self._opened + 1) % len(self._opening)
            return
        if self._thinking:
            self._thinking.over = True
        if token in self._ends:
            return
        self._answer.append(token)
        if not self._matcher.consume_token(token):
            self._fault = f"token {token} was drawn, which is not allowed: what else was asked for leaves none that is"

    def _is_opening(self, token: int) -> bool:
        """Whether a first token opens a thinking block; where it can begin the answer, it does that."""
        return token == self._opening[0] and not self._matcher.validate_tokens([token])

    @property
    def over(self) -> bool:
        """Whether the answer is whole and the row has no token that says so."""
        return not self._ends and not self._thinks and not self._fault and bool(self._matcher.is_stopped())

    def met(self, text: TextStream) -> bool:
        """Whether the answer, as it is, is of the form. text: the row's, which a stop string may have cut."""
        if self._thinks or self._opened or self._fault:
            return False
        return self._form.fits(text.decode(self._answer)) if text.stopped else bool(self._matcher.is_accepting())


def _set(bits: np.ndarray, tokens: Iterable[int], value: bool) -> None:
    for token in tokens:
        if token < 8 * len(bits):
            one = 1 << (token & 7)
            bits[token >> 3] = bits[token >> 3] | one if value else bits[token >> 3] & (255 ^ one)


_ONE_BIT = 1 << np.arange(8, dtype=np.uint8)


def constrain(rows: "Sequence[Row]", logits: mx.array) -> mx.array:
    """logits (B, V) with the tokens at -inf that the rows' forms do not allow. A row whose form allows none gets an
    error; its logits then mean nothing, and no other row's change. Nothing here waits for the logits."""
    if not any(row.constraint for row in rows):
        return logits
    vocabulary = logits.shape[-1]
    allowed = np.full((len(rows), -(-vocabulary // 8)), 255, dtype=np.uint8)
    for place, row in enumerate(rows):
        if row.constraint and row.error is None:
            try:
                allowed[place] = row.constraint.allowed(vocabulary)
            except Exception as error:  # whatever llguidance raises ends that row only
                row.error = error
    bits = mx.array(allowed)[..., None] & mx.array(_ONE_BIT)  # (B, V / 8, 8)
    return mx.where((bits > 0).reshape(len(rows), -1)[:, :vocabulary], logits, -mx.inf)
