"""`model(**inputs)` and what else code written for transformers reads of a model."""

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
from conftest import LoadFamily
from invariants.family import Family

import mlx_vlgen
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.errors import PromptError, UnsupportedError
from mlx_vlgen.hf.encoding import Array
from mlx_vlgen.models.config_dict import Config

TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def demo(load_family: LoadFamily) -> Family:
    return load_family("demo")


def alone(family: Family, text: str, *pictures: Any) -> np.ndarray:
    """(L, V), from the model's forward."""
    prompt = family.processor.prepare(text, mlx_vlgen.MediaInputs(images=pictures))
    inputs = family.model.embed(prompt, [family.model.encode([media])[0] for media in prompt.media])
    return np.array(family.model(inputs, make_cache(family.model.cache_layout()))[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_call_gives_logits_of_every_position(demo: Family, side: str) -> None:
    picture = np.full((96, 64, 3), 90, np.uint8)
    texts = [TURN.format("<|vision_start|><|image_pad|><|vision_end|>What is it?"), TURN.format("Hello")]
    tensors = demo.processor(
        text=texts, images=[[picture], None], padding=True, padding_side=side, return_tensors="mlx"
    )
    expected = [alone(demo, texts[0], picture), alone(demo, texts[1])]
    for out in (demo.model(**tensors, use_cache=False, return_dict=True), demo.model(tensors)):
        assert isinstance(out.logits, Array) and out[0] is out["logits"] is out.logits
        assert out.logits.shape == (*tensors.input_ids.shape, demo.model.vocab_size)
        mask = np.array(tensors.attention_mask) == 1
        for row, is_token, logits in zip(out.logits, mask, expected, strict=True):
            assert np.abs(np.array(row)[is_token] - logits).max() < 1e-4


def test_a_call_of_ids_alone(demo: Family) -> None:
    ids = demo.processor.tokenizer.encode("Hello there")
    expected = alone(demo, "Hello there")
    for batch in ([ids], mx.array([ids]), np.array([ids]), ids):
        assert np.abs(np.array(demo.model(batch).logits)[0] - expected).max() < 1e-4
    assert demo.model.generate([ids], max_new_tokens=1)[0, -1].item() == demo.model([ids]).logits[0, -1].argmax().item()


@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma4"])
def test_every_family_can_be_called(load_family: LoadFamily, family: str) -> None:
    loaded = load_family(family)
    ids = loaded.processor.prepare(loaded.asks["short" if "short" in loaded.asks else "words5"].text).tokens
    logits = loaded.model(input_ids=ids[None]).logits
    assert logits.shape == (1, len(ids), loaded.model.vocab_size)


def wrong() -> Any:
    yield {"labels": [[1, 2]]}, UnsupportedError, "labels=.*: no loss is computed"
    yield {"output_hidden_states": True}, UnsupportedError, "output_hidden_states=True: call model.generate"
    yield {"past_key_values": "x"}, UnsupportedError, "past_key_values='x'"
    yield {"return_dict": False}, UnsupportedError, "return_dict=False"
    yield {"inputs_embeds": mx.zeros((1, 2, 4))}, UnsupportedError, "inputs_embeds: give input_ids"
    yield {"pixel_valuez": 1}, TypeError, "did you mean 'pixel_values'"
    yield {"max_new_tokens": 1}, TypeError, "unknown keyword 'max_new_tokens'"
    yield {"attention_mask": [[0, 0]]}, PromptError, "the prompt is empty"
    yield {"attention_mask": [[1]]}, PromptError, "attention_mask has shape"
    yield {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, PromptError, "zeros between its tokens"
    yield {"input_ids": [[1, 576]]}, PromptError, "^input_ids: 576 is no token"
    yield {"input_ids": None}, PromptError, "no input_ids"


@pytest.mark.parametrize(("keywords", "error", "message"), list(wrong()), ids=lambda value: str(value)[:40])
def test_what_a_call_does_not_compute_is_refused(
    demo: Family, keywords: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        demo.model(**{"input_ids": [[1, 2]], **keywords})
    with pytest.raises(TypeError, match="by name"):
        demo.model([[1, 2]], [[1, 1]])


def test_what_is_read_of_a_model(demo: Family) -> None:
    model = demo.model
    assert model.eval() is model and model.device == mx.default_device()
    assert model.dtype == mx.float32
    assert mlx_vlgen.load("demo", dtype="bfloat16")[0].dtype == mx.bfloat16
    assert mlx_vlgen.load("demo", quantization=4, dtype="float16")[0].dtype == mx.float16


def test_ids_that_come_back_can_be_moved_nowhere(demo: Family) -> None:
    ids = demo.model.generate([[1, 2]], max_new_tokens=2)
    for part in (ids, ids[:, 2:], ids[0]):
        assert part.to("cuda") is part is part.cpu() and part.cpu().numpy().tolist() == part.tolist()


# -- the configuration


def test_a_configuration_is_a_dict_and_has_attributes(demo: Family) -> None:
    config = demo.model.config
    assert config.model_type == config["model_type"] == config.get("model_type") == "qwen3_vl"
    assert config.text_config.hidden_size == config["text_config"]["hidden_size"] == 192
    assert isinstance(config, dict) and {**config} == config == json.loads(json.dumps(config))
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), copy.copy(config)):
        assert other == config and other.text_config.hidden_size == 192
    with pytest.raises(AttributeError, match="the configuration has no 'hidden_sizes'"):
        config.hidden_sizes  # noqa: B018
    assert not hasattr(config, "audio_config") and hasattr(config, "vision_config")
    assert getattr(config, "audio_config", None) is None


def test_generation_config_may_be_set_as_transformers_is(load_family: LoadFamily) -> None:
    model, _ = mlx_vlgen.load("demo", lazy=True)
    model.generation_config.max_new_tokens = 3
    assert model.generation_config["max_new_tokens"] == 3 == model.generation_config.max_new_tokens
    assert model.generate([[1, 2]], eos_token_id=None).shape == (1, 5)
    del model.generation_config.max_new_tokens
    assert "max_new_tokens" not in model.generation_config


def test_lists_of_layers_are_configurations_too() -> None:
    config = Config({"layers": [{"kind": "full"}], "items": 3})
    assert config.layers[0].kind == "full"
    assert dict(config.items()) == config and config["items"] == 3
