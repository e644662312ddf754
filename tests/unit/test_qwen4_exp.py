"""Qwen4-Exp: what is refused, its caches, and which blocks of keys an indexer chooses."""

from collections.abc import Callable
from typing import Any

import pytest
from invariants.family import Family

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.engine.quantized import QuantizedCache
from mlx_vlgen.errors import LoadError, UnsupportedError
from mlx_vlgen.models.base import Full, Recurrent, Whole
from mlx_vlgen.models.decoders import text_arguments as known_arguments
from mlx_vlgen.models.indexer import best, chosen_keys
from mlx_vlgen.models.qwen4_exp import text_arguments
from mlx_vlgen.models.qwen4_exp_text import Qwen4ExpTextConfig

INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 64,
    "indexer_budget": 64,
    "indexer_compress_ratio": 16,
}


def arguments(**text: Any) -> dict[str, Any]:
    return known_arguments(text_arguments({"model_type": "qwen4_exp", "text_config": INDEXER | text}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"output_gate_type": "tanh"}, "'tanh'"),
        ({"layer_types": ["sliding_attention"]}, "sliding_attention layers"),
        ({"indexer_budget": None}, "no indexer_budget"),
        ({"indexer_kv_heads": 2}, "more than one head"),
        ({"layer_types": ["full_attention"], "ple_layer_ids": [1], "eos_token_id": 2}, "a layer with attention"),
        ({"ple_layer_ids": [1]}, "no end token"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "'llama3'"),
    ],
)
def test_what_the_decoder_would_leave_out_is_refused(change: dict[str, Any], message: str) -> None:
    arguments()
    with pytest.raises(LoadError, match=message):
        arguments(**change)


def test_what_an_indexer_stores_is_neither_quantized_nor_bounded(load_family: Callable[[str], Family]) -> None:
    model = load_family("qwen4_exp").model
    layout = model.cache_layout()
    assert layout == [Recurrent(4), Full(), Full(), Whole(), Whole()]
    quantized = [isinstance(layer, QuantizedCache) for layer in kv.make_cache(layout, KVSettings(bits=8))]
    assert quantized == [False, True, True, False, False]
    with pytest.raises(UnsupportedError, match="max_kv_size=64"):
        kv.check(model, KVSettings(max_size=64))


def test_each_head_of_n_grams_has_a_prime_of_its_own() -> None:
    config = Qwen4ExpTextConfig(
        ngram_vocab_size_base=200, heads_per_ngram=1, ngram_size=3, make_ngram_vocab_size_divisible_by=8
    )
    assert [config.ngram_rows(place) for place in (0, 1)] == [440, 456]  # 211 + 223, then 227 + 229


def test_the_best_are_so_many_of_equal_ones_the_first() -> None:
    scores = mx.array([[0.0, 2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert best(scores, 3).tolist() == [[True, True, False, True, False], [True, True, True, False, False]]
    assert best(scores, 5).all()


def test_a_token_attends_to_its_best_complete_blocks_and_what_follows_them() -> None:
    scores = mx.array([[[1.0, 3.0, 2.0]] * 3])  # tokens 4, 5 and 6, blocks of two keys
    chosen = chosen_keys(scores, 4, size=2, count=1, keys=7)[0, 0]
    causal = mx.arange(7) <= mx.arange(4, 7)[:, None]
    seen = [[key for key, is_seen in enumerate(row) if is_seen] for row in (chosen & causal).tolist()]
    assert seen == [[2, 3, 4], [2, 3], [2, 3, 6]]
