"""Gemma 3 and PaliGemma where the tiny checkpoints do not reach: published configurations, layout, refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity import media
from PIL import Image

from mlx_vlgen import generate, load
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError, PromptError, UnsupportedError
from mlx_vlgen.inputs.chat_template import Segment
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models import attention, gemma
from mlx_vlgen.models.base import Full, Sliding
from mlx_vlgen.models.gemma3 import Gemma3
from mlx_vlgen.models.paligemma import PaliGemma

LoadFamily = Callable[[str], Family]
SO400M = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16,
    "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
# As published, with fewer layers of vision to build: they leave out most of what is as in transformers' classes.
GEMMA3_4B: dict[str, Any] = {
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "vision_config": SO400M | {"image_size": 896, "num_hidden_layers": 1},
}  # fmt: skip
PALIGEMMA_3B: dict[str, Any] = {
    "model_type": "paligemma", "hidden_size": 2048, "projection_dim": 2048,
    "text_config": {
        "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_key_value_heads": 1, "vocab_size": 257216,
    },
    "vision_config": SO400M | {"projection_dim": 2048, "num_hidden_layers": 1},
}  # fmt: skip
PALIGEMMA2_3B: dict[str, Any] = PALIGEMMA_3B | {
    "text_config": {
        "hidden_size": 2304, "intermediate_size": 9216, "model_type": "gemma2", "num_attention_heads": 8,
        "num_hidden_layers": 26, "num_key_value_heads": 4, "vocab_size": 257216, "query_pre_attn_scalar": 256,
        "sliding_window": 4096, "hidden_activation": "gelu_pytorch_tanh",
    },
}  # fmt: skip


def shapes(model: Any) -> tuple[tuple[int, ...], ...]:
    """Of the first layer's queries and keys, the embeddings, and the table of patch positions."""
    attention = model.body.layers[0].self_attn
    table = model.vision_tower.vision_model.embeddings.position_embedding
    return tuple(module.weight.shape for module in (attention.q_proj, attention.k_proj, model.body.embed_tokens, table))


def test_published_gemma3_is_read_with_the_defaults_of_transformers() -> None:
    model = Gemma3(GEMMA3_4B)
    assert shapes(model) == ((2048, 2560), (1024, 2560), (262208, 2560), (4096, 1152))
    assert model.cache_layout()[:7] == [Sliding(1024)] * 5 + [Full(), Sliding(1024)]
    assert model.body.layers[0].self_attn.scale == 256**-0.5


def test_published_paligemmas_are_read_with_the_defaults_of_transformers() -> None:
    first, second = PaliGemma(PALIGEMMA_3B), PaliGemma(PALIGEMMA2_3B)
    assert shapes(first) == ((2048, 2048), (256, 2048), (257216, 2048), (256, 1152))
    assert shapes(second) == ((2048, 2304), (1024, 2304), (257216, 2304), (256, 1152))
    assert first.cache_layout() == [Full()] * 18
    assert second.cache_layout() == [Sliding(4096), Full()] * 13
    assert (first.body.layers[0].self_attn.softcap, second.body.layers[0].self_attn.softcap) == (None, 50.0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rotary"),
        ({"model_type": "llama"}, "llama"),
    ],
)
def test_other_decoders_are_refused(text: dict[str, Any], named: str) -> None:
    with pytest.raises(LoadError, match=named):
        PaliGemma(PALIGEMMA_3B | {"text_config": PALIGEMMA_3B["text_config"] | text})


def test_gemma3_without_a_filter_resizes_bilinearly_and_crops_are_refused(
    load_family: LoadFamily, tmp_path: Path
) -> None:
    folder = shutil.copytree(load_family("gemma3").folder, tmp_path / "gemma3")
    settings = json.loads((folder / "processor_config.json").read_text())
    del settings["image_processor"]["resample"]
    (folder / "processor_config.json").write_text(json.dumps(settings))
    assert load(folder)[1].image_settings.resample == Image.Resampling.BILINEAR
    settings["image_processor"]["do_pan_and_scan"] = True
    (folder / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(LoadError, match="do_pan_and_scan"):
        load(folder)


@pytest.mark.parametrize(
    ("segments", "images", "text"),
    [
        ([Segment("caption en")], 0, "<bos>caption en\n"),
        ([Segment("caption en")], 2, "<image><image><bos>caption en\n"),
        ([Segment("<image> and <image>caption en")], 2, "<image> and <image><bos>caption en\n"),
    ],
)
def test_paligemma_lays_out_as_transformers(
    load_family: LoadFamily, segments: list[Segment], images: int, text: str
) -> None:
    assert load_family("paligemma").processor.lay_out(segments, images) == [Segment(text)]


def test_words_that_look_like_a_picture_stay_words(load_family: LoadFamily) -> None:
    """Pictures come first, wherever a message has them."""
    processor, picture = load_family("paligemma").processor, media.picture("small")
    content = ["what is <image>?", {"type": "image", "image": picture}]
    prompt = processor.prepare([{"role": "user", "content": content}])
    assert prompt.text == "<image><bos>what is <image>?\n"
    assert [medium.spans for medium in prompt.media] == [((0, 16),)]
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (prompt.tokens == token).sum() == 16
    assert prompt.two_way == ((0, len(prompt.tokens)),)


def test_paligemma_has_no_dialogue(load_family: LoadFamily) -> None:
    turns = [{"role": role, "content": "hello"} for role in ("user", "assistant", "user")]
    with pytest.raises(PromptError, match="one message"):
        load_family("paligemma").processor.prepare(turns)


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "paligemma2"])
def test_a_bound_that_would_cut_a_two_way_span_is_refused(load_family: LoadFamily, name: str) -> None:
    family = load_family(name)
    ask = family.asks["img1"]
    spans = family.processor.prepare(ask.text, ask.media).two_way
    smallest = max(end - start for start, end in spans) + 4
    picture = media.picture("plain")
    with pytest.raises(UnsupportedError, match=f"at least {smallest}"):
        generate(family.model, family.processor, ask.text, picture, max_tokens=1, max_kv_size=smallest - 1)
    assert generate(family.model, family.processor, ask.text, picture, max_tokens=1, max_kv_size=smallest).tokens


def test_capped_scores_are_of_quantized_keys_too(load_family: LoadFamily) -> None:
    family = load_family("paligemma2")
    ask, picture = family.asks["img1"], media.picture("plain")
    result = generate(family.model, family.processor, ask.text, picture, max_tokens=6, kv_bits=8, kv_group_size=32)
    assert result.tokens == family.answer(ask).tokens[:6]


def test_pictures_of_one_group_are_encoded_as_alone(load_family: LoadFamily) -> None:
    family = load_family("gemma3")
    images = MediaInputs(images=[media.picture("large"), media.picture("small")])
    prompt = family.processor.prepare("<start_of_image><start_of_image>", images)
    together = family.model.encode(prompt.media)
    for features, medium in zip(together, prompt.media, strict=True):
        assert np.abs(np.array(features.embeds - family.model.encode([medium])[0].embeds)).max() < 1e-5


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mx.random.seed(0)
    q, (k, v) = mx.random.normal((2, 4, 7, 8)), mx.random.normal((2, 2, 2, 9, 8))
    masks = [None, "causal", mx.random.uniform(shape=(2, 1, 7, 9)) < 0.8]
    whole = [gemma.softcapped_attention(q, k, v, mask, 2.0) for mask in masks]
    monkeypatch.setitem(attention.SCORE_BYTES, "cpu", 4 * 2 * 4 * 9 * 3)  # three queries a block
    for mask, expected in zip(masks, whole, strict=True):
        assert np.abs(np.array(gemma.softcapped_attention(q, k, v, mask, 2.0) - expected)).max() < 1e-6
