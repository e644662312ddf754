"""Qwen4-Exp: Qwen3.5's tower, and a text decoder with hyper-connections, sparse attention and hashed n-grams.

Source: transformers' Qwen4ExpForConditionalGeneration.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .._runtime import mx
from .backbone import gather_last, output_layer
from .base import Embedded, LayerKind, Model
from .configuration import with_rope
from .qwen3_5 import Qwen3_5
from .qwen4_exp_text import Qwen4ExpTextConfig

TABLE = re.compile(r"(.*\.layers\.(\d+)\..*\.ngram_embedding)(\.\w+|)")


class Qwen4Exp(Qwen3_5):
    text_types = ("qwen4_exp_text",)
    last_norm = Model.last_norm  # shows nothing: its layers' states are several streams

    def __init__(self, config: dict[str, Any]):
        super().__init__(config, text_arguments(config))
        for layer in self.body.layers:
            if "self_attn" in layer:
                layer.self_attn.indexer.rope = self._rope

    def cache_layout(self) -> list[LayerKind]:
        layout: list[LayerKind] = self.language_model.cache_layout()
        return layout

    def published(self, name: str) -> tuple[str, ...]:
        """Tables of n-grams are published in parts."""
        table = TABLE.fullmatch(name)
        parts = self.language_model.args.split_ngram_parts
        if table is None or len(self.body.layers[int(table[2])].ple.ple_embedding.ngram_embedding.weight) % parts:
            return (name,)
        return tuple(f"{table[1]}.shards.{part}{table[3]}" for part in range(parts))

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        h = self.body(inputs, cache, self._rope.offset(inputs, cache))
        h, _ = self.body.hyper_connection_mixer(gather_last(h, at))
        return output_layer(self.language_model, h)


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text decoder's configuration with its rotary settings as `with_rope` gives them."""
    text = Qwen4ExpTextConfig.complete(with_rope(config["text_config"], 10_000.0))
    return text | {
        "model_type": "qwen4_exp_text",
        "partial_rotary_factor": text["rope_scaling"].get("partial_rotary_factor", text["partial_rotary_factor"]),
        "tie_word_embeddings": config.get("tie_word_embeddings", text["tie_word_embeddings"]),
    }
