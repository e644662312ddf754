"""load(): text decoders of every kind, their configurations of all releases, their caches."""

import numpy as np
import pytest
from tiny_checkpoints import (
    GEMMA3,
    LFM2,
    LLAMA,
    QWEN3_MOE,
    VOCABULARY,
    draw,
    forbid_network,
    load_error,
    logits,
    parameters,
    write,
)

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.errors import PromptError, UnsupportedError
from mlx_vlgen.inputs.processor import TextProcessor
from mlx_vlgen.inputs.prompt import Media, Prompt
from mlx_vlgen.loading import load
from mlx_vlgen.models import base
from mlx_vlgen.models.text import TextModel

QWEN2 = LLAMA | {"model_type": "qwen2"}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 32, "max_position_embeddings": 512}
PROVED = {c["model_type"]: c for c in (LLAMA, QWEN2, QWEN3, QWEN3_MOE, GEMMA3, LFM2)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    forbid_network(monkeypatch)


@pytest.fixture
def llama(tmp_path):
    return write(tmp_path / "llama", LLAMA, draw(LLAMA))


@pytest.mark.parametrize("model_type", PROVED)
def test_text_decoder_answers_alike_whole_in_chunks_and_at_one_position(tmp_path, model_type):
    config = PROVED[model_type]
    model, processor = load(write(tmp_path / "c", config, draw(config)))
    assert model.config["model_type"] == model_type
    assert str(model.device) == str(mx.default_device())
    assert type(processor) is TextProcessor

    inputs = model.embed(Prompt(np.arange(3, 15, dtype=np.int32)), [])
    whole = np.array(model(inputs, make_cache(model.cache_layout())))[0]
    assert whole.shape == (12, VOCABULARY)
    cache = make_cache(model.cache_layout())
    parts = [np.array(model(inputs[part], cache))[0] for part in (slice(0, 7), slice(7, 8), slice(8, 12))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-5)
    one = model(inputs, make_cache(model.cache_layout()), mx.array([4]))
    np.testing.assert_allclose(np.array(one)[0], whole[4], atol=2e-5)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("model_type", PROVED)
def test_a_text_decoder_as_mlx_vlm_names_it(tmp_path, model_type, quantized):
    config = PROVED[model_type]
    weights = draw(config)
    if quantized:
        quantized_model, _ = load(
            write(tmp_path / "floats", config, weights), quantization={"bits": 4, "group_size": 32}
        )
        weights = parameters(quantized_model)
    expected = parameters(load(write(tmp_path / "plain", config, weights))[0])
    renamed = {f"language_model.{name}": value for name, value in weights.items()}
    ours = parameters(load(write(tmp_path / "renamed", config, renamed))[0])
    assert ours.keys() == expected.keys()
    assert all(mx.array_equal(ours[name], value) for name, value in expected.items())


def test_a_decoder_that_mlx_lm_wraps_keeps_its_names():
    model = TextModel({"model_type": "pixtral", "text_config": LLAMA})
    names = {name for name in parameters(model) if name.startswith("language_model.")}
    assert names and names <= model.sanitize(parameters(model)).keys()


def test_cache_layouts(tmp_path):
    def layout(config):
        return load(write(tmp_path / config["model_type"], config, draw(config)), lazy=True)[0].cache_layout()

    assert layout(LLAMA) == [base.Full(), base.Full()]
    assert layout(GEMMA3) == [base.Sliding(8), base.Full()]
    assert layout(LFM2) == [base.Recurrent(1), base.Full()]


def test_a_model_and_the_processor_of_its_folder(llama):
    model, processor = load(llama)
    assert parameters(model).keys() == draw(LLAMA).keys()  # mlx-lm's names
    assert processor.prepare("w5 w6").tokens.tolist() == [5, 6]


def test_other_decoders_load_with_a_notice_and_run_whole(tmp_path, capsys):
    # Granite divides its logits: its head alone would not do.
    config = LLAMA | {
        "model_type": "granite",
        "logits_scaling": 8.0,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "max_position_embeddings": 512,
        "attention_bias": False,
        "mlp_bias": False,
    }
    plain = load(write(tmp_path / "a", config, draw(config)))[0]
    assert "granite" in capsys.readouterr().err
    scaled = load(write(tmp_path / "b", config | {"logits_scaling": 4.0}, draw(config)))[0]
    np.testing.assert_allclose(logits(scaled), 2 * logits(plain), rtol=1e-4)
    # Its replaced head is the one that runs.
    quantized = load(tmp_path / "a", quantization=8)[0]
    assert 0 < np.abs(logits(quantized) - logits(plain)).max() < 0.05


def test_a_cache_of_another_kind_is_opaque(tmp_path):
    config = LLAMA | {
        "model_type": "mamba2",
        "num_heads": 4,
        "head_dim": 64,
        "state_size": 16,
        "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 1e9],
        "time_step_rank": "auto",
    }
    model, _ = load(write(tmp_path / "m", config, draw(config)))
    assert model.cache_layout() == [base.Recurrent(2)] * 2

    class Foreign:
        pass

    object.__setattr__(model._decoder, "make_cache", lambda: [Foreign(), Foreign()])
    kinds = model.cache_layout()
    assert all(isinstance(kind, base.Opaque) and isinstance(kind.make(), Foreign) for kind in kinds)


def test_a_text_model_refuses_pictures(llama):
    model, _ = load(llama)
    picture = Media("image", np.zeros((4, 4), np.float32), (1, 2, 2), ((0, 1),), (8, 8))
    with pytest.raises(PromptError, match="text-only"):
        model.embed(Prompt(np.array([1, 2], np.int32), (picture,)), [])
    with pytest.raises(UnsupportedError, match="text-only"):
        model.encode([picture])


def test_configurations_of_transformers_5(tmp_path):
    old = LLAMA | {"rope_theta": 500.0}
    new = {key: value for key, value in old.items() if key != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    tensors = draw(LLAMA)
    first = logits(load(write(tmp_path / "old", old, tensors))[0])
    np.testing.assert_array_equal(logits(load(write(tmp_path / "new", new, tensors))[0]), first)
    other = logits(load(write(tmp_path / "other", LLAMA, tensors))[0])
    assert np.abs(other - first).max() > 1e-2

    scaled = new | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}
    old_scaled = old | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    np.testing.assert_array_equal(
        logits(load(write(tmp_path / "new-scaled", scaled, tensors))[0]),
        logits(load(write(tmp_path / "old-scaled", old_scaled, tensors))[0]),
    )


def test_gemma3_of_transformers_5(tmp_path):
    old = GEMMA3 | {"rope_theta": 3000.0, "rope_local_base_freq": 70.0, "sliding_window_pattern": 2}
    new = {key: value for key, value in old.items() if not key.startswith("rope_") and key != "sliding_window_pattern"}
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 3000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
    }
    tensors = draw(old)
    np.testing.assert_array_equal(
        logits(load(write(tmp_path / "old", old, tensors))[0]), logits(load(write(tmp_path / "new", new, tensors))[0])
    )


def test_gemma3_embeddings_are_scaled_exactly(tmp_path):
    config = GEMMA3 | {"hidden_size": 72}  # sqrt(72) is not a bfloat16, and mlx-lm makes it one
    tensors = draw(config)
    rounded = mx.array(72**0.5, mx.bfloat16).item()
    scaled = {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"] * (72**0.5 / rounded)}
    exact = load(write(tmp_path / "scaled", config, tensors | scaled))[0].text_decoder()(mx.array([[5, 6]]))
    model, _ = load(write(tmp_path / "g", config, tensors))
    ours = logits(model, (5, 6))
    np.testing.assert_allclose(ours, np.array(exact)[0], atol=1e-5)
    assert np.abs(ours - np.array(model.text_decoder()(mx.array([[5, 6]])))[0]).max() > 1e-4


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "llama", "hidden_act": "gelu"}, "gelu"),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 4,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "sliding",
        ),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "sliding"),
        (GEMMA3 | {"use_bidirectional_attention": True}, "two-way"),
        (GEMMA3 | {"final_logit_softcapping": 30.0}, "soft-capped"),
        (GEMMA3 | {"layer_types": ["full_attention", "sliding_attention"]}, "irregular"),
        (LFM2 | {"tie_word_embeddings": False}, "output layer"),
    ],
)
def test_what_a_decoder_would_leave_out_is_refused(tmp_path, change, expected):
    config = LLAMA | change
    assert expected in load_error(write(tmp_path / "c", config, {"x": mx.zeros(1)}))
