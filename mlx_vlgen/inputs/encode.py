"""A formatted prompt to token ids: literal segments are text, in which no added token is read."""

import functools
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ..errors import PromptError
from . import template_sandbox
from .literal import Segment, join, join_equal, split_at


@functools.lru_cache(maxsize=16)
def control_tokens(added: frozenset[tuple[str, bool]], template: str, prompt_tokens: str) -> frozenset[str]:
    """The added tokens that control a conversation: special ones, those that the template writes, and marks of thinking
    and of tools; but none that the family documents for prompts.

    added: a tokenizer's added tokens, and whether each is a special one; prompt_tokens: a pattern of the documented
    ones."""
    written = template_sandbox.literals(template)
    return frozenset(
        token
        for token, special in added
        if (special or token in written or re.match(r"[<\[].*(think|tool)", token, re.IGNORECASE))
        and token.strip()
        and not re.fullmatch(prompt_tokens, token)
    )


def encode(
    tokenizer: Any, segments: Sequence[Segment], added: frozenset[str], control: frozenset[str], first_token: bool
) -> np.ndarray:
    """Token ids (L,) int32. added: the tokenizer's added tokens; control: those that no literal segment may become;
    first_token: whether the tokenizer's first token goes before a text that does not begin with it."""
    ids: list[int] = []
    bos = tokenizer.bos_token
    for index, segment in enumerate(_cut_at_added(segments, added)):
        # A template that writes the first token itself must not get a second one.
        written = bos and not segment.literal and segment.text.startswith(bos)
        special = first_token and index == 0 and not written
        if segment.literal:
            literal_ids = _encode_literal(tokenizer, segment.text, first=index == 0, special=special)
            _check_literal(tokenizer, literal_ids[special:], control)
            ids += literal_ids
        else:
            ids += tokenizer.encode(segment.text, add_special_tokens=special, verbose=False)
    return np.array(ids, dtype=np.int32)


def encode_features(
    tokenizer: Any,
    segments: Sequence[Segment],
    added: frozenset[str],
    control: frozenset[str],
    first_token: bool,
    features: frozenset[str],
) -> np.ndarray:
    """`encode`, where each of thousands of equal tokens in a row need not be read: two of them stand for all. features:
    the tokens that stand for one feature each."""
    runs = re.compile("|".join(f"(?:{re.escape(token)})+" for token in sorted(features, key=len, reverse=True)))
    lengths = {token: len(token) for token in features}
    repeats: list[int] = []  # of each feature token that is left in the text

    def shorten(run: re.Match[str]) -> str:
        token = next(token for token in features if run[0].startswith(token))
        count = len(run[0]) // lengths[token]
        repeats.extend([count - 1, 1] if count > 2 else [1] * count)
        return token * min(count, 2)

    short = [s if s.literal else Segment(runs.sub(shorten, s.text)) for s in segments]
    ids = encode(tokenizer, short, added, control, first_token)
    is_feature = np.isin(ids, tokenizer.convert_tokens_to_ids(list(features)))
    if np.count_nonzero(is_feature) != len(repeats):
        return encode(tokenizer, segments, added, control, first_token)
    times = np.ones(len(ids), np.int64)
    times[is_feature] = repeats
    return np.repeat(ids, times)


def _check_literal(tokenizer: Any, ids: Sequence[int], control: frozenset[str]) -> None:
    id_of = tokenizer.added_tokens_encoder
    for token in control - {tokenizer.unk_token}:
        if id_of[token] in ids:
            raise PromptError(
                f"this checkpoint's tokenizer makes {token} of plain text, too, and it steers the conversation: "
                "remove it from the messages"
            )


def _cut_at_added(segments: Sequence[Segment], added: frozenset[str]) -> list[Segment]:
    """The prompt cut where its tokenizer cuts it: at its added tokens. What is between two of them becomes tokens
    together, so that it is literal where a part of it is."""
    if not any(segment.literal for segment in segments):
        return [join(segments)]
    pieces: list[tuple[bool, Segment]] = []  # with whether it is an added token
    for segment in join_equal(segments):
        parts = [segment.text] if segment.literal else split_at(added, segment.text)
        pieces += [(i % 2 == 1, Segment(part, segment.literal)) for i, part in enumerate(parts) if part]
    cut: list[Segment] = []
    for is_added, group in groupby(pieces, key=lambda piece: piece[0]):
        between = [segment for _, segment in group]
        literal = not is_added and any(segment.literal for segment in between)
        cut.append(Segment("".join(segment.text for segment in between), literal))
    return join_equal(cut)


def _encode_literal(tokenizer: Any, text: str, first: bool, special: bool) -> list[int]:
    """Token ids of a text in which no added token is read. first: whether it begins the prompt, which some tokenizers
    put a blank before. special: whether the tokenizer's first token goes before it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python, which cuts no text then
        ids = tokenizer.encode(text, add_special_tokens=special, split_special_tokens=True, verbose=False)
        return [int(token) for token in ids]
    from tokenizers import Tokenizer, models

    bare = Tokenizer(models.BPE())  # the model is put in last: it is large, and shared
    for name in ("normalizer", "pre_tokenizer", "post_processor"):
        if (part := getattr(backend, name)) is not None:
            setattr(bare, name, part)
    if not first:
        bare = Tokenizer.from_str(bare.to_str().replace('"prepend_scheme":"first"', '"prepend_scheme":"never"'))
    bare.model = backend.model
    return [int(token) for token in bare.encode(text, add_special_tokens=special).ids]
