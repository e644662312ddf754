"""Text decoders: which ones families take, and what is said of the others."""

from collections.abc import Callable
from typing import Any

import pytest
from invariants.family import Family
from parity.decoder_cases import CASES, COHERE2, GEMMA, GRANITE
from tiny_checkpoints import LFM2

from mlx_vlgen import generate
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.errors import LoadError, PromptError, UnsupportedError
from mlx_vlgen.models import find
from mlx_vlgen.models.base import Capture, Embedded
from mlx_vlgen.models.configuration import max_positions
from mlx_vlgen.models.decoders import text_arguments


def build(config: dict[str, Any]) -> Any:
    return find(config).model_class()(config)


@pytest.mark.parametrize("family", ["llava_granite", "granite_vision", "idefics3_granite", "pixtral_cohere2"])
@pytest.mark.parametrize("text", ["phimoe", "gemma4_text", None])
def test_a_text_decoder_without_a_record_is_refused_by_name(family: str, text: str | None) -> None:
    """mlx-lm has many more, and may scale their embeddings: see decoders.py."""
    config = CASES[family].config
    with pytest.raises(LoadError, match=f"text decoder is {text!r}; expected llama, mistral, .*granite"):
        build(config | {"text_config": config["text_config"] | {"model_type": text}})


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        (GRANITE, {"hidden_act": "gelu"}, "'gelu'"),
        (GRANITE, {"head_dim": 8}, "heads of another size"),
        (COHERE2, {"layer_types": ["full_attention", *["sliding_attention"] * 3]}, "irregular order"),
        (COHERE2, {"layer_types": ["sliding_attention"] * 4}, "irregular order"),
        (COHERE2, {"num_hidden_layers": 3}, "no full-attention layer"),
        (COHERE2, {"sliding_window": None}, "no sliding window"),
        (COHERE2, {"tie_word_embeddings": False}, "an untied output layer"),
        (GEMMA, {"use_bidirectional_attention": True}, "two-way"),
        (LFM2, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "scaled rotary"),
        (GEMMA, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "scaled rotary"),
    ],
)
def test_what_a_decoder_would_leave_out_is_refused(text: dict[str, Any], change: dict[str, Any], message: str) -> None:
    text_arguments(text)
    with pytest.raises(LoadError, match=message):
        text_arguments(text | change)


def test_a_silent_configuration_means_what_transformers_assumes() -> None:
    granite, cohere = text_arguments({"model_type": "granite"}), text_arguments({"model_type": "cohere2"})
    assert (granite["embedding_multiplier"], granite["logits_scaling"], granite["num_key_value_heads"]) == (1, 1, 32)
    assert (cohere["logit_scale"], cohere["head_dim"], cohere["sliding_window"]) == (0.0625, 128, 4096)


def test_how_many_positions_a_model_has_is_said_wherever_its_text_decoder_is_described() -> None:
    text, scaling = {"max_position_embeddings": 40960}, {"factor": 4.0, "original_max_position_embeddings": 32768}
    for config in (text, {"text_config": text}, {"llm_config": text}):
        assert max_positions(config) == 40960
    for rope in ({"rope_scaling": scaling | {"type": "yarn"}}, {"rope_parameters": scaling | {"rope_type": "yarn"}}):
        assert max_positions({"text_config": text | rope}) == 131072
    assert max_positions({"text_config": {}}) is None


def test_a_prompt_longer_than_the_positions_of_llm_config_is_refused(load_family: Callable[[str], Family]) -> None:
    family = load_family("internvl")
    config = dict(family.model.config)
    config["llm_config"] = config.pop("text_config") | {"max_position_embeddings": 3}
    model = build(config | {"model_type": "internvl_chat"})
    assert model.max_positions == 3
    with pytest.raises(PromptError, match="the model has 3 positions"):
        generate(model, family.processor, "Describe the user.", max_tokens=1)


def test_attention_weights_that_cannot_be_seen_are_refused() -> None:
    """Layers of Cohere 2 that see everything do not rotate."""
    model = build(text_arguments(COHERE2))
    inputs = Embedded(mx.array([[1, 2, 3]]), capture=Capture(attentions=True))
    with pytest.raises(UnsupportedError, match="output_attentions"):
        model(inputs, make_cache(model.cache_layout()))
    inputs.capture = Capture()
    model(inputs, make_cache(model.cache_layout()))
    assert len(inputs.capture.hidden_states) == 5
