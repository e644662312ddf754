"""Of a prompt's last layer only the positions are computed whose logits are wanted, and keys and values of all."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from invariants.family import Family

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.models.backbone import MANY
from mlx_vlgen.models.base import Embedded

FAMILIES = ("qwen3_vl", "hunyuan_vl", "gemma3", "paligemma", "qwen3_5", "internvl")
CASES = [*((name, KVSettings()) for name in FAMILIES), ("qwen3_vl", KVSettings(bits=8, group_size=32))]
LENGTHS = (MANY // 2 - 9, MANY, MANY // 2)


def rows(model: Any) -> list[Embedded]:
    """Texts, embedded as prompts with pictures are."""
    tokens = [mx.array(np.random.default_rng(length).integers(20, 60, (1, length)), mx.int32) for length in LENGTHS]
    return [Embedded(some, model.embed_tokens(some)) for some in tokens]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_logits_of_one_position_are_those_of_all_there(
    load_family: Callable[[str], Family], name: str, settings: KVSettings
) -> None:
    model = load_family(name).model
    inputs, layout = Embedded.stack(rows(model)), model.cache_layout()

    def forward(at: mx.array | None) -> tuple[mx.array, mx.array]:
        """Logits, and those of a token after them."""
        cache = kv.make_cache(layout, settings, padded=LENGTHS)
        logits = model(inputs, cache, at=at)
        kv.finalize(cache)
        return logits, model(Embedded(mx.array([[21]] * len(LENGTHS))), cache)[:, 0]

    for ends in ([length - 1 for length in LENGTHS], [3, MANY - 1, 0], [MANY - 1] * 3):
        (wanted, after), (every, after_every) = forward(mx.array(ends)), forward(None)
        expected = every[mx.arange(len(ends)), mx.array(ends)]
        assert mx.abs(wanted - expected).max().item() < 1e-4 * max(1, expected.std().item())
        assert mx.abs(after - after_every).max().item() < 1e-4 * max(1, after_every.std().item())


@pytest.mark.parametrize("length", [MANY - 1, MANY])
def test_the_last_layer_is_given_what_is_wanted(load_family: Callable[[str], Family], length: int) -> None:
    model = load_family("qwen3_vl").model
    seen: list[int] = []
    layer = model.body.layers[-1]
    mlp, computed = layer.mlp, type(layer.mlp)

    class Counted(computed):  # type: ignore[misc, valid-type]
        def __call__(self, x: mx.array) -> mx.array:
            seen.append(x.shape[1])
            return super().__call__(x)

    mlp.__class__ = Counted
    try:
        tokens = mx.zeros((1, length), mx.int32)
        model(Embedded(tokens), kv.make_cache(model.cache_layout()), at=mx.array([length - 1]))
    finally:
        mlp.__class__ = computed
    assert seen == ([length] if length < MANY else [length, 1])  # the first is built and dropped
