"""Promise 1 for text decoders that any family may have, and for YaRN as cards recommend it: see decoder_cases.py."""

import functools
import json
from typing import Any

import numpy as np
import pytest

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.inputs.prompt import Media, Prompt
from mlx_vlgen.models import find
from mlx_vlgen.models.base import Model

from .decoder_cases import CASES, FILE, FIRST, VOCABULARY, DecoderCase, rules
from .weights import draw, projection


@functools.cache
def reference() -> dict[str, np.ndarray]:
    return dict(np.load(FILE))


def build(name: str) -> Model:
    """The network with the reference's configuration and weights."""
    record = json.loads(reference()["records"].tobytes())[name]
    model = find(record["config"]).model_class()(record["config"])
    tensors = draw({key: tuple(shape) for key, shape in record["shapes"].items()}, 0, rules(name))
    model.load_weights(list(model.sanitize({key: mx.array(value) for key, value in tensors.items()}).items()))
    model.eval()
    return model


def prompt_of(case: DecoderCase) -> Prompt:
    """Its ids, and the picture with the pixels of the reference."""
    tokens = np.array(case.tokens, np.int32)
    if case.features is None:
        return Prompt(tokens)
    span = len(FIRST), len(FIRST) + case.features
    pixels = case.drawn_pixels
    pixels = pixels[0] if pixels.ndim == 5 else pixels
    return Prompt(tokens, (Media("image", pixels, case.grid, (span,), (1, 1)),))


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str) -> None:
    """Of the whole prompt at once, and of the last token after the others, which goes by the cache's positions."""
    model, prompt = build(name), prompt_of(CASES[name])
    inputs = model.embed(prompt, [model.encode([medium])[0] for medium in prompt.media])

    def projected(logits: mx.array) -> np.ndarray[Any, Any]:
        return np.array(logits)[0].astype(np.float64) @ projection(VOCABULARY)

    expected = reference()[name]
    whole = projected(model(inputs, make_cache(model.cache_layout())))
    assert np.abs(whole - expected).max() < 1e-4
    cache = make_cache(model.cache_layout())
    model(inputs[:-1], cache)
    last = inputs[len(inputs) - 1 :]
    last.positions = None
    assert np.abs(projected(model(last, cache)) - expected[-1:]).max() < 1e-4
