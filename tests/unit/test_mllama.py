"""Llama 3.2 Vision: what each token attends to of its row's pictures, and the cache that holds them."""

import itertools
from typing import Any

import numpy as np
import pytest
from parity import expected, media, ours
from parity.layouts import write_checkpoint

from mlx_vlgen import batch_generate, generate
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.engine.states import CrossCache
from mlx_vlgen.errors import UnsupportedError
from mlx_vlgen.inputs.prompt import Prompt
from mlx_vlgen.models.base import CrossStates
from mlx_vlgen.models.mllama import visible


def pictures_seen(tokens: tuple[int, ...], position: int) -> set[int]:
    """Of a prompt whose pictures are ones: the last one up to a position, and those directly before it."""
    before = [i for i in range(position + 1) if tokens[i]]
    seen = [i for i in before if all(tokens[i : before[-1] + 1])]
    return {sum(tokens[: i + 1]) for i in seen}


@pytest.mark.parametrize("tokens", list(itertools.product((0, 1), repeat=5)))
def test_the_last_pictures_are_seen(tokens: tuple[int, ...]) -> None:
    groups = np.array([*np.repeat(range(1, sum(tokens) + 1), 2), 0, -1])
    mask, some = visible(mx.array([tokens]) == 1, mx.array(groups)[None])
    for position in range(5):
        seen = pictures_seen(tokens, position)
        expected = np.isin(groups, list(seen)) if seen else groups >= 0
        assert np.array(mask[0, 0, position]).tolist() == expected.tolist()
        assert some[0, position, 0].item() == bool(seen)


def row(keys: int) -> CrossCache:
    cache = CrossCache()
    if keys:
        parts = [mx.random.normal((1, 2, keys, 4)), mx.random.normal((1, 2, keys, 4)), mx.ones((1, keys), mx.bool_)]
        cache.write(parts, [keys])
    return cache


def test_rows_with_and_without_pictures_come_and_go() -> None:
    cache, rows = row(3), [row(3), row(0), row(5)]
    rows[0].restore(cache.stored(0))
    for other in rows[1:]:
        cache.extend(other)
    for order in ([0, 1, 2], [2, 1], [1], [1, 1]):
        taken = cache.take(order)
        joined, longest = taken.joined(), max((3, 0, 5)[i] for i in order)
        if not longest:
            assert joined is None and not taken.state
            continue
        assert joined is not None
        for place, number in enumerate(order):
            alone = rows[number].rows[0]
            count = 0 if alone is None else alone[0].shape[2]
            assert np.array(joined[2][place]).tolist() == [True] * count + [False] * (longest - count)
            if alone is not None:
                assert mx.array_equal(joined[0][place, :, :count], alone[0][0])
                assert mx.array_equal(joined[1][place, :, :count], alone[1][0])


def test_states_stack_and_go_with_the_first_positions() -> None:
    one, two = (CrossStates(mx.ones((1, n, 2)), mx.ones((1, n), mx.int32)) for n in (2, 3))
    stacked = CrossStates.stack([one, None, two])
    assert stacked is not None and stacked.states.shape == (3, 3, 2)
    assert stacked.groups.tolist() == [[1, 1, -1], [-1, -1, -1], [1, 1, 1]]
    assert CrossStates.stack([None, None]) is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ours.load(write_checkpoint("mllama", "v5", tmp_path_factory.mktemp("mllama")))


def test_the_placeholder_is_past_the_vocabulary(checkpoint: Any) -> None:
    model, processor = checkpoint
    image = processor.tokenizer.convert_tokens_to_ids("<|image|>")
    assert image == model.vocab_size < model.embedding_rows


def test_no_picture_after_a_past(checkpoint: Any) -> None:
    model, _ = checkpoint
    cache = make_cache(model.cache_layout())
    inputs = model.embed(Prompt(np.array([1, 2, 3], np.int32)), [])
    model(inputs, cache)
    inputs.cross = CrossStates(mx.zeros((1, 2, model.hidden_size)), mx.ones((1, 2), mx.int32))
    with pytest.raises(UnsupportedError, match="leave the past out"):
        model(inputs, cache)


def test_a_window_smaller_than_what_waits_for_pictures(checkpoint: Any) -> None:
    """Tokens before a picture are computed with it, and do not see each other both ways."""
    model, processor = checkpoint
    case = expected.case("mllama", "img1")
    asked = {"max_tokens": 6, "max_kv_size": 8, "logprobs": True}
    picture = media.picture(case.images[0])
    alone = generate(model, processor, case.text, picture, **asked)
    whole = generate(model, processor, case.text, picture, max_tokens=6)
    assert alone.tokens != whole.tokens
    others = [
        generate(model, processor, case.text, picture, prefill_step_size=3, **asked),
        *batch_generate(model, processor, [picture, None], prompts=[case.text, "Hello"], **asked).results[:1],
    ]
    for other in others:
        assert other.error is None and other.tokens == alone.tokens
        assert np.abs(np.array(other.logprobs) - np.array(alone.logprobs)).max() < 1e-4
