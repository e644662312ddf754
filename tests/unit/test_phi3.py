"""Phi-3's text decoder: where a row's frequencies change in any family, its window, and its joined layers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity import media
from parity.layouts import read_json, write_checkpoint, write_json

from mlx_vlgen import MediaInputs, PrefixCache, Request, SamplingParams, TokenIterator, load
from mlx_vlgen._runtime import mx
from mlx_vlgen.convert import convert
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.errors import LoadError
from mlx_vlgen.inputs.prompt import Prompt
from mlx_vlgen.models.base import Full, Sliding
from mlx_vlgen.models.decoders import text_arguments

SWITCH = {"phi3": 27, "internvl_phi3": 40}
"""Positions of a row of the tiny checkpoints with the first frequencies."""
COUNT = 6


def counted(count: int) -> Prompt:
    return Prompt(np.arange(300, 300 + count, dtype=np.int32))


def recomputed(model: Any, prompt: Prompt) -> list[int]:
    """Greedy tokens, each by a forward of all before it."""
    features = [model.encode([medium])[0] for medium in prompt.media]
    for _ in range(COUNT):
        logits = model(model.embed(prompt, features), make_cache(model.cache_layout()))
        prompt = replace(prompt, tokens=np.append(prompt.tokens, np.int32(mx.argmax(logits[0, -1]).item())))
    tokens: list[int] = prompt.tokens[-COUNT:].tolist()
    return tokens


def answers(loaded: tuple[Any, Any], prompts: list[Prompt], **named: Any) -> list[list[int]]:
    sampling = SamplingParams(max_tokens=COUNT)
    with TokenIterator(*loaded, **named) as iterator:
        ids = [iterator.add(Request(p, sampling=sampling, end_tokens=frozenset[int]())) for p in prompts]
        last = dict(iterator)
    return [last[row].tokens for row in ids]


@pytest.mark.parametrize("name", SWITCH)
def test_an_answer_goes_on_with_the_second_frequencies(name: str, load_family: Callable[[str], Family]) -> None:
    """In one batch with rows that keep theirs; of one with a picture all is computed again, too."""
    family, switch = load_family(name), SWITCH[name]
    model, processor = family.model, family.processor
    prompts = [counted(switch + more) for more in (-3, -12, 5, -1)]
    if name != "phi3":
        seen = processor.prepare("<IMG_CONTEXT>What?", MediaInputs(images=[media.picture("small")]))
        medium = replace(seen.media[0], pixels=seen.media[0].pixels[:2], spans=((1, 9),))
        tokens = np.concatenate([[300], np.full(8, seen.tokens[seen.media[0].spans[0][0]]), counted(28).tokens])
        prompts.append(Prompt(tokens.astype(np.int32), (medium,)))
        assert model.variant(prompts[-1]) == 0
    truth = [recomputed(model, prompt) for prompt in prompts]
    assert answers((model, processor), prompts) == truth
    assert answers((model, processor), prompts, prefill_step_size=8, max_batch_size=2, reuse=PrefixCache()) == truth
    assert [model.reach(variant) for variant in (0, 1)] == [switch, None]


def test_a_window_slides_over_both_frequencies(tmp_path: Path) -> None:
    write_checkpoint("phi3", "v5", tmp_path)
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", config | {"sliding_window": 10})
    loaded = load(str(tmp_path), dtype="float32")
    assert loaded[0].cache_layout() == [Sliding(10)] * 3
    prompts = [counted(count) for count in (4, 24, 40)]
    assert answers(loaded, prompts, prefill_step_size=7) == [recomputed(loaded[0], prompt) for prompt in prompts]


def test_joined_layers_are_quantized_as_one(tmp_path: Path) -> None:
    source = write_checkpoint("internvl_phi3", "mlx", tmp_path / "first")
    packed = convert(source, tmp_path / "packed", quantize=True, q_bits=8, q_group_size=32)
    settings = {"bits": 8, "group_size": 32}
    models = [load(str(packed), dtype="float32")[0], load(str(source), dtype="float32", quantization=settings)[0]]
    for attention in (model.body.layers[0].self_attn for model in models):
        assert attention.qkv_proj.scales.shape == ((4 + 2 * 2) * 16, 2)
    prompt = counted(5)
    first, second = (np.array(model(model.embed(prompt, []), make_cache(model.cache_layout()))) for model in models)
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "than LongRoPE"),
        ({"rope_scaling": {"type": "yarn", "short_factor": [1.0], "long_factor": [2.0]}}, "'yarn'"),
        ({"hidden_act": "gelu"}, "'gelu'"),
    ],
)
def test_what_no_published_checkpoint_has_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        text_arguments({"model_type": "phi3"} | change)


def test_a_silent_configuration_is_phi_3_mini_4k(load_family: Callable[[str], Family]) -> None:
    args = text_arguments({"model_type": "phi3", "sliding_window": 2047})
    assert (args["num_key_value_heads"], args["max_position_embeddings"]) == (32, 4096)
    assert load_family("phi3").model.cache_layout() == [Full()] * 3  # a window beyond all positions is none
