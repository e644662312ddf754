"""Checks that tokens have rows in the embeddings: the tokenizer's, a family's placeholders, the end tokens."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LoadError
from ..models.base import Model


def check_tokens(folder: Path, model: Model) -> None:
    """LoadError for a token past the rows of the embeddings: MLX would read its row from other memory.

    Embeddings may have more rows than there are tokens. A special token may be past them where only its name in a
    prompt makes it, as in published Gemma 3 text checkpoints and padded Llamas, and so may a family's `prompt_tokens`,
    which transformers' PaliGemma processor adds to tokenizers that lack them. Each request's tokens are checked too.
    """
    tokenizer, rows = model.processor.tokenizer, model.embedding_rows
    known: dict[str, int] = tokenizer.get_vocab()
    documented = re.compile(model.processor.prompt_tokens)
    named_only = {
        id
        for id, token in tokenizer.added_tokens_decoder.items()
        if token.special or documented.fullmatch(token.content)
    }
    named_only -= {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    path = folder / "tokenizer.json"
    for token, id in known.items():
        if id >= rows and id not in named_only:
            raise LoadError(f"{path}: the token {token!r:.80} has the id {id}, and the embeddings have {rows} rows.")
    features = {**model.processor.placeholders, **model.processor.feature_tokens}
    for kind, token in features.items():
        if token not in known:
            raise LoadError(f"{path} has no token {token!r:.80}, which stands for the features of each {kind}.")
        if known[token] >= rows:
            raise LoadError(f"{path}: {token!r:.80} has the id {known[token]}, and the embeddings have {rows} rows.")
    # The eos_token_id of config.json is not used where generation_config.json has one.
    name = "generation_config.json" if "eos_token_id" in model.generation_config else "config.json"
    settings = model.generation_config if name == "generation_config.json" else model.config
    check_end_tokens(folder / name, settings, rows)


def check_end_tokens(path: Path, settings: Mapping[str, Any], rows: int | None = None) -> None:
    """LoadError for an `eos_token_id` that is no token, no list of tokens and not null. rows: of the embeddings."""
    end_tokens = settings.get("eos_token_id")
    for end in end_tokens if isinstance(end_tokens, list) else [] if end_tokens is None else [end_tokens]:
        if type(end) is not int or end < 0 or (rows is not None and end >= rows):
            expected = "from 0 on" if rows is None else f"from 0 to {rows - 1}"
            raise LoadError(f"{path} says eos_token_id = {end_tokens!r:.80}; expected tokens, {expected}, or null.")
