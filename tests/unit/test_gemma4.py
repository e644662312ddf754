"""Gemma 4 where the tiny checkpoints do not reach: published configurations, sizes, frames, layout, refusals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from PIL import Image

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.cache import check, make_cache
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.errors import LoadError, UnsupportedError
from mlx_vlgen.inputs.gemma4 import fitted, spread
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models.base import Full, Sliding
from mlx_vlgen.models.decoders import text_arguments
from mlx_vlgen.models.gemma4 import Gemma4

VISION: dict[str, Any] = {"model_type": "gemma4_vision", "num_hidden_layers": 1}
# The smallest as published, with fewer layers of vision to build.
E2B: dict[str, Any] = {
    "model_type": "gemma4",
    "text_config": {
        "model_type": "gemma4_text", "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35,
        "num_attention_heads": 8, "num_key_value_heads": 1, "num_global_key_value_heads": None,
        "num_kv_shared_layers": 20, "use_double_wide_mlp": True, "final_logit_softcapping": 30.0,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
    },
    "vision_config": VISION | {"use_clipped_linears": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def gemma(load_family: Callable[[str], Family]) -> Family:
    return load_family("gemma4")


def test_the_smallest_is_read_with_the_defaults_of_transformers() -> None:
    model = Gemma4(E2B)
    assert model.cache_layout() == [*[Sliding(512)] * 4, Full()] * 3
    layers = model.body.layers
    assert [layers[i].self_attn.q_proj.weight.shape for i in (0, 4)] == [(2048, 1536), (4096, 1536)]
    assert [layers[i].mlp.up_proj.weight.shape for i in (14, 15)] == [(6144, 1536), (12288, 1536)]
    assert model.body.embed_tokens_per_layer.weight.shape == (262144, 35 * 256)
    assert model.vision_tower.patch_embedder.position_embedding_table.shape == (2, 10240, 768)
    assert model._media_tokens.tolist() == [258880, 258884, 258881]


def test_a_silent_text_configuration_has_the_defaults_of_transformers() -> None:
    args = text_arguments({"model_type": "gemma4_text"})
    assert args["layer_types"] == [*["sliding_attention"] * 5, "full_attention"] * 5
    assert (args["final_logit_softcapping"], args["num_kv_shared_layers"], args["num_key_value_heads"]) == (None, 0, 4)
    last = text_arguments({"model_type": "gemma4_text", "num_hidden_layers": 8})["layer_types"][-1]
    assert last == "full_attention"  # whatever the order says


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_activation": "gelu"}, "'gelu'"),
        ({"attention_bias": True}, "biases"),
        ({"use_bidirectional_attention": "all"}, "all tokens"),
        ({"per_layer_config": {"5": {"head_dim": 64}, "11": {"head_dim": 32}}}, "unlike sizes"),
        ({"per_layer_config": {"5": {"head_dim": 64}}}, "unlike sizes"),
        ({"per_layer_config": {key: {"num_key_value_heads": 1} for key in ("5", "11")}}, "unlike sizes"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e6}}}, "rotary"),
    ],
)
def test_what_the_decoder_would_leave_out_is_refused(change: dict[str, Any], message: str) -> None:
    config = {"model_type": "gemma4_text", "num_hidden_layers": 12}
    text_arguments(config | {"per_layer_config": {"5": {"head_dim": 64}, "11": {"head_dim": 64}}})
    with pytest.raises(LoadError, match=message):
        text_arguments(config | change)


def test_what_hears_and_bounds_that_are_not_used_are_left_in_the_file() -> None:
    bound = "vision_tower.encoder.layers.0.mlp.up_proj.input_max"
    weights = {f"model.{bound}": mx.array(1.0), "lm_head.weight": mx.zeros((2, 2))}
    weights |= {"model.audio_tower.layers.0.norm_out.weight": mx.ones(2), "embed_audio.any.weight": mx.ones(2)}
    assert list(Gemma4(E2B).sanitize(weights)) == [bound]
    assert list(Gemma4(E2B | {"vision_config": VISION}).sanitize(weights)) == []


# (height, width), tokens, and what transformers' get_aspect_ratio_preserving_size makes of it.
@pytest.mark.parametrize(
    ("original", "tokens", "size"),
    [
        ((480, 640), 280, (672, 912)),
        ((10, 10), 280, (768, 768)),
        ((1000, 10), 280, (8016, 48)),
        ((1000, 1), 280, (13440, 48)),
        ((10, 5000), 70, (48, 3360)),
        ((1080, 1920), 70, (288, 528)),
    ],
)
def test_a_pictures_size(original: tuple[int, int], tokens: int, size: tuple[int, int]) -> None:
    assert fitted(*original, 48, tokens) == size


def test_frames_are_kept_as_transformers_keeps_them() -> None:
    frames = spread(300, 32).tolist()
    assert (frames[:4], frames[-2:]) == ([0, 9, 18, 28], [281, 290])
    assert spread(2, 4).tolist() == [0, 0, 1, 1]


def test_max_pixels_chooses_the_number_of_tokens(gemma: Family) -> None:
    def count(**bounds: int) -> int:
        media = MediaInputs(images=[Image.new("RGB", (300, 300))], **bounds)
        (start, end), = gemma.processor.prepare("<|image|>", media).media[0].spans  # fmt: skip
        return end - start

    side = 12
    assert [count(max_pixels=tokens * side**2) for tokens in (70, 279, 280, 99999)] == [64, 121, 256, 1089]
    assert count() == 16
    with pytest.raises(ValueError, match="10080"):
        count(max_pixels=69 * side**2)
    with pytest.raises(UnsupportedError, match="min_pixels"):
        count(min_pixels=1)


def test_frames_are_told_in_minutes_and_seconds(gemma: Family) -> None:
    media = MediaInputs(videos=[np.zeros((3, 24, 36, 3), np.uint8)], video_fps=1 / 33)
    prompt = gemma.processor.prepare("<|video|>", media)
    assert "".join(gemma.processor.tokenizer.decode(prompt.text_tokens).split()) == (
        "<bos>00:00<|image><image|>00:33<|image><image|>01:06<|image><image|>"
    )


def test_the_template_gets_a_systems_parts_as_words(gemma: Family) -> None:
    messages = [{"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]}]
    [segment] = gemma.processor.format([*messages, {"role": "user", "content": "Hi"}])
    assert segment.text.startswith("<bos><|turn>system\nBe brief.<turn|>\n")


@pytest.mark.parametrize("name", ["gemma4", "gemma4_moe"])
def test_a_position_has_the_same_logits_alone(load_family: Callable[[str], Family], name: str) -> None:
    """Layers that add no keys compute only what is asked for: here positions that are not the last."""
    family = load_family(name)
    ask = family.asks["img1"]
    prompt = family.processor.prepare(ask.text, ask.media)
    inputs = family.model.embed(prompt, family.model.encode(prompt.media))
    whole = family.model(inputs, make_cache(family.model.cache_layout()))
    for at in (0, 5, len(inputs) - 2):
        alone = family.model(inputs, make_cache(family.model.cache_layout()), at=mx.array([at]))
        assert mx.abs(alone - whole[:, at]).max().item() < 1e-5


def test_layers_that_share_keys_take_them_quantized_too(gemma: Family) -> None:
    check(gemma.model, KVSettings(bits=8, group_size=32))


def test_a_quantized_projection_of_sound_is_read(load_family: Callable[[str], Family]) -> None:
    """mlx-vlm's conversions have it; where the configuration has no sound it is left out."""
    names = ["embed_audio.embedding_projection." + end for end in ("weight", "scales", "biases")]
    weights = {f"model.{name}": mx.zeros(1) for name in names}
    assert [*load_family("gemma4_audio").model.sanitize(weights)] == names
    assert not load_family("gemma4").model.sanitize(weights)
