"""A model that says the next token by the last one alone, so that every probability is known."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from mlx_vlgen._runtime import mx
from mlx_vlgen.inputs.prompt import Media, Prompt
from mlx_vlgen.models.base import Embedded, Features, Full, LayerKind, Model


class Chain(Model):
    """logits (V, V): row t is what follows token t. Its cache holds the tokens, so that a wrong rollback shows."""

    def __init__(self, logits: np.ndarray):
        super().__init__({"model_type": "chain"})
        self._table = mx.array(logits.astype(np.float32))
        self.forwards = 0
        self.vocab_size = self.embedding_rows = len(logits)

    def cache_layout(self) -> list[LayerKind]:
        return [Full()]

    def encode(self, media: Sequence[Media]) -> list[Features]:
        raise NotImplementedError

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        return Embedded(mx.array(prompt.tokens)[None])

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        self.forwards += 1
        keys = inputs.tokens[:, None, :, None].astype(mx.float32)
        positions = mx.array(cache[0].offset).reshape(-1, 1) + mx.arange(len(inputs))
        positions = mx.broadcast_to(positions, inputs.tokens.shape)
        all_keys, _ = cache[0].update_and_fetch(keys, keys)
        # What it says hangs on what the cache says was last, for each of the new positions.
        last = mx.take_along_axis(all_keys[:, 0, :, 0], positions, axis=1).astype(mx.int32)
        logits = self._table[last]
        return logits if at is None else logits[mx.arange(len(logits)), at]


class Letters:
    """A processor whose tokens are letters."""

    placeholders: ClassVar[dict[str, str]] = {}

    def __init__(self, size: int):
        def decode(tokens: Sequence[int], **_: Any) -> str:
            return "".join(chr(97 + token) for token in tokens)

        self.tokenizer = SimpleNamespace(
            eos_token_id=None,
            decode=decode,
            convert_tokens_to_ids=lambda text: ord(text[0]) - 97,
            convert_ids_to_tokens=lambda token: chr(97 + token),
        )
