"""The gate for token ids: MLX reads, and writes, whatever memory an index outside its array points to."""

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np

from ..errors import LoadError, PromptError
from ..inputs.prompt import Prompt


def check_ids(name: str, ids: np.ndarray | Iterable[Any], vocab_size: int) -> None:
    """PromptError, which names the argument, for what is no token of the model."""
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        wrong = ids[(ids < 0) | (ids >= vocab_size)][:1].tolist()
    else:
        listed = ids.flatten().tolist() if isinstance(ids, np.ndarray) else ids
        wrong = [token for token in listed if not is_id(token, vocab_size)]
    if wrong:
        raise PromptError(
            f"{name}: {wrong[0]!r:.80} is no token of this model: expected ids, whole numbers from 0 to "
            f"{vocab_size - 1}"
        )


def is_id(token: Any, vocab_size: int) -> bool:
    return isinstance(token, Integral) and not isinstance(token, bool) and 0 <= int(token) < vocab_size


def check_prompt(name: str, prompt: Prompt, vocab_size: int, rows: int) -> None:
    """PromptError for a prompt that cannot be embedded: ids that are none, media or spans outside the tokens. rows: of
    the embeddings, which those of media may have alone."""
    tokens = prompt.tokens
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1:
        raise PromptError(f"{name}: its tokens are {tokens!r:.80}; expected a numpy array of ids (L,)")
    check_ids(name, tokens, rows)
    spans = [*prompt.two_way, *(span for media in prompt.media for span in media.spans)]
    for start, end in spans:
        if not 0 <= start < end <= len(tokens):
            raise PromptError(f"{name}: it has a span ({start}, {end}) outside its {len(tokens)} tokens")
    if rows > vocab_size:
        check_ids(name, prompt.text_tokens, vocab_size)


def ids_of_file(name: str, value: Any, vocab_size: int) -> list[int]:
    """Ids that a checkpoint's file gives, of which those that its layers do not have stand for no token.

    LoadError for what is neither None, a number nor a list of numbers.
    """
    listed = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in listed):
        raise LoadError(
            f"the checkpoint's {name} is {value!r:.80}; expected a token id or a list of them: mend its "
            "generation_config.json or config.json"
        )
    return [token for token in listed if is_id(token, vocab_size)]
