"""What is easy to get wrong in published configurations, a test a point; and checkpoints that are refused by name."""

import re
from typing import Any

import numpy as np
import pytest

from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError
from mlx_vlgen.loading.checkpoint import check_config
from mlx_vlgen.models import TEXT, find
from mlx_vlgen.models.base import Model

from .folding import unfold
from .test_published import CONFIGS, INDEXES, TENSORS, build, network, parameters, place, with_layers


def layer(model: Model, number: int = 0) -> Any:
    return model.text_decoder().layers[number]


@pytest.mark.parametrize(
    ("name", "queries", "hidden"),
    [
        ("Qwen3-VL-4B-Instruct", 4096, 2560),
        ("Qwen3-VL-32B-Instruct", 8192, 5120),
        ("gemma-3-12b-it", 4096, 3840),
        ("gemma-3-27b-it", 4096, 5376),
        ("Mistral-Small-3.2-24B-Instruct-2506", 4096, 5120),
        ("HunyuanOCR", 2048, 1024),
        ("paligemma-3b-pt-224", 2048, 2048),
        ("Qwen3.5-27B", 2 * 6144, 5120),  # and a gate as wide
    ],
)
def test_heads_have_sizes_of_their_own(name: str, queries: int, hidden: int) -> None:
    attention = layer(network(name), 3).self_attn
    assert attention.q_proj.weight.shape == (queries, hidden)


def test_gemma_3_scales_queries_by_what_its_configuration_says() -> None:
    assert layer(network("gemma-3-27b-it")).self_attn.scale == pytest.approx(168**-0.5)
    assert layer(network("gemma-3-12b-it")).self_attn.scale == pytest.approx(256**-0.5)


def test_lfm2s_real_width_is_two_thirds_of_what_it_says() -> None:
    assert CONFIGS["LFM2.5-VL-1.6B"]["text_config"]["intermediate_size"] == 12288
    assert parameters(network("LFM2.5-VL-1.6B"))["language_model.model.layers.0.feed_forward.w1.weight"] == (8192, 2048)


def test_qwen2_vls_vision_hidden_size_is_that_of_the_text() -> None:
    """And smaller ones leave out all that is as in the largest."""
    for name, hidden in (("Qwen2-VL-2B-Instruct", 1536), ("Qwen2-VL-7B-Instruct", 3584)):
        tensors = parameters(network(name))
        assert tensors["vision_tower.blocks.31.attn.proj.weight"] == (1280, 1280)
        assert tensors["vision_tower.merger.mlp.2.weight"] == (hidden, 5120)


def test_glm_4_5vs_vision_intermediate_size_is_the_mergers() -> None:
    tensors = parameters(build("GLM-4.5V", layers=2))
    assert tensors["vision_tower.blocks.0.mlp.gate_proj.weight"] == (4096, 1536)
    assert tensors["vision_tower.merger.gate_proj.weight"] == (10944, 4096)
    attention = layer(build("GLM-4.5V", layers=2)).self_attn
    assert all("bias" in attention[f"{part}_proj"] for part in "qkv") and "bias" not in attention.o_proj


def test_m_rope_is_spelled_five_ways() -> None:
    config = CONFIGS["Qwen2.5-VL-7B-Instruct"]
    section = {"mrope_section": [16, 24, 24]}
    plain = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta")}
    theta = {"rope_theta": 1e6}
    spellings = [
        {**plain, **theta, "rope_scaling": section | {"type": "mrope"}},
        {**plain, **theta, "rope_scaling": section | {"rope_type": "mrope"}},
        {**plain, **theta, "rope_scaling": section | {"rope_type": "default", "type": "default"}},
        {**plain, "rope_parameters": section | theta | {"rope_type": "default"}},
        {**plain, "rope_parameters": section | theta | {"type": "default"}},
    ]
    for spelled in (with_layers(config, 1) for config in spellings):
        rope = layer(find(spelled).model_class()(spelled)).self_attn.rope
        assert np.array_equal(np.bincount(np.array(rope._axes)), [16, 24, 24]) and rope.base == 1e6


@pytest.mark.parametrize("name", ["gemma-3-4b-it", "paligemma-3b-pt-224", "InternVL3-1B", "Qwen3-VL-2B-Instruct"])
def test_tied_weights_and_an_output_layer(name: str) -> None:
    """Gemma 3 and PaliGemma do not say that they are tied. Some say that they are, and carry an output layer."""
    shapes, model = unfold(TENSORS[f"{name}: saved"]), build(name)
    head = "language_model.lm_head.weight"
    assert place(model, shapes) == parameters(model)
    assert (head in parameters(model)) == (name == "InternVL3-1B")
    model = build(name)
    table = next(shape for key, shape in shapes.items() if key.endswith("embed_tokens.weight"))
    untied = head if any(key.startswith("language_model.") for key in shapes) else "lm_head.weight"
    assert place(model, shapes | {untied: table}) == parameters(model)


def test_a_model_type_is_not_enough() -> None:
    """Two pages' readers share one, with other towers; Qwen3.6 and 3.8 stay Qwen3.5; a text decoder alone keeps it."""
    first, second = (find(CONFIGS[name]).model_class().__name__ for name in ("DeepSeek-OCR", "DeepSeek-OCR-2"))
    assert (first, second) == ("UnlimitedOcr", "DeepseekOcr2")
    assert CONFIGS["DeepSeek-OCR"]["model_type"] == CONFIGS["DeepSeek-OCR-2"]["model_type"]
    text = CONFIGS["Qwen3.5-2B, text alone"]
    assert text["model_type"] == CONFIGS["Qwen3.5-9B"]["model_type"]
    assert find(text).model_class().__name__ == "Qwen3_5Text"


def test_gemma_4s_layers_have_heads_of_two_sizes() -> None:
    tensors = parameters(network("gemma-4-26B-A4B"))
    stem = "language_model.model.layers."
    assert tensors[f"{stem}0.self_attn.k_proj.weight"] == (8 * 256, 2816)
    assert tensors[f"{stem}5.self_attn.k_proj.weight"] == (2 * 512, 2816)  # keys that are values, too
    assert f"{stem}0.self_attn.v_proj.weight" in tensors and f"{stem}5.self_attn.v_proj.weight" not in tensors
    assert {f"{stem}0.mlp.up_proj.weight", f"{stem}0.experts.switch_glu.up_proj.weight"} <= tensors.keys()


def test_qwen3_5_with_experts_has_no_width_of_others() -> None:
    assert "intermediate_size" not in CONFIGS["Qwen3.5-35B-A3B"]["text_config"]
    assert CONFIGS["Qwen3.5-35B-A3B"]["vision_config"]["deepstack_visual_indexes"] == []
    tensors = parameters(build("Qwen3.5-35B-A3B", layers=4))
    assert tensors["language_model.model.layers.0.mlp.switch_mlp.up_proj.weight"] == (256, 512, 2048)


def test_llama_4_scout_is_published_with_two_ropes() -> None:
    """The second one's factors leave a division by zero in between, which decides for the lower."""
    turned = [
        np.array(
            layer(build(f"Llama-4-Scout-17B-16E-Instruct{revision}", layers=4)).self_attn.rope(mx.ones((1, 1, 2, 128)))
        )
        for revision in ("", ", first revision")
    ]
    assert all(np.isfinite(values).all() for values in turned) and not np.allclose(*turned)


def test_llavas_text_widths_may_be_left_out() -> None:
    assert "hidden_size" not in CONFIGS["llava-1.5-7b-hf"]["text_config"]
    assert layer(network("llava-1.5-7b-hf")).mlp.up_proj.weight.shape == (11008, 4096)
    assert layer(network("llava-v1.6-mistral-7b-hf")).mlp.up_proj.weight.shape == (14336, 4096)


@pytest.mark.parametrize(
    ("name", "loose"),
    [
        ("HunyuanOCR", r"vit\.perceive\.image_"),
        ("DeepSeek-OCR", r"model\.view_seperator"),
        ("DeepSeek-OCR", r"pre_layrnorm"),
        ("DeepSeek-OCR-2", r"model\.view_seperator"),
    ],
)
def test_loose_and_misspelt_tensors_are_parameters(name: str, loose: str) -> None:
    model = build(name)
    names = [key for key in unfold(INDEXES[name]) if re.search(loose, key)]
    assert names and all(model.rename(key) in parameters(model) for key in names)


def test_phi3s_second_frequencies_begin_beside_the_dictionary_that_has_them() -> None:
    text = CONFIGS["InternVL2-4B"]["llm_config"]
    assert "original_max_position_embeddings" not in text["rope_scaling"] and text["rope_scaling"]["type"] == "su"
    model = network("InternVL2-4B")
    assert [model.reach(variant) for variant in (0, 1)] == [4096, None]


SEEN: dict[str, Any] = {"vision_config": {"hidden_size": 64}}
# Essentials of configurations that are not read, and what the refusal says.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("VideoLLaMA3", {"model_type": "videollama3_qwen2", "vision_encoder_config": {}}, "'videollama3_qwen2'"),
    ("EXAONE-4.5-33B", {"model_type": "exaone4_5", **SEEN}, "'exaone4_5'.*not supported yet"),
    ("Logics-Thinking", {"model_type": "logics", "mm_vision_tower": "a,b"}, "layout of LLaVA's authors"),
    ("llava-v1.5-7b", {"model_type": "llava", "mm_vision_tower": "openai/clip"}, "llava-hf/llava-1.5-7b-hf"),
    ("FastVLM-0.5B", {"model_type": "llava_qwen2", "mm_vision_tower": "mobileclip_l_1024"}, "mobileclip_l_1024"),
    ("Florence-2-large", {"model_type": "florence2", "is_encoder_decoder": True}, "encoder-decoder"),
    ("fuyu-8b", {"model_type": "fuyu"}, "'fuyu' is not known"),
    ("Phi-3-vision", {"model_type": "phi3_v", "img_processor": {}}, "'phi3_v' is not known"),
    ("Janus-1.3B", {"model_type": "multi_modality", **SEEN}, "'multi_modality'.*not supported yet"),
    (
        "deepseek-vl2-tiny",
        {"model_type": "deepseek_vl_v2", "vision_config": {"model_name": "siglip_large_patch16_384"}},
        "'deepseek_vl_v2'.*not supported yet",
    ),
    ("DeepSeek-OCR, edited", {"model_type": "DeepseekOCR", **SEEN}, "'DeepseekOCR'.*not supported yet"),
    ("dots.mocr", {"model_type": "dots_ocr", **SEEN}, "'dots_ocr'.*not supported yet"),
    ("moondream3-preview", {"model_type": "moondream3"}, "'moondream3' is not known"),
    ("moondream3-preview, early", {"model_type": "moondream1"}, "'moondream1' is not known"),
    ("moondream2", {"text": {}, "vision": {}}, "names no model_type"),
    ("Kimi-K3", {"model_type": "kimi_k3", **SEEN}, "'kimi_k3'.*not supported yet"),
    ("LocateAnything-3B", {"model_type": "locateanything", **SEEN}, "'locateanything'"),
    ("MiniCPM-V-2_6", {"model_type": "minicpmv", **SEEN}, "'minicpmv'.*not supported yet"),
    ("MinerU2.0", {"model_type": "mineru2_qwen", "mm_vision_tower": "siglip"}, "layout of LLaVA's authors"),
    ("Maverick, trimmed", {"model_type": "llama4", "text_config": {}}, "no vision_config"),
]


@pytest.mark.parametrize(("name", "config", "message"), REFUSED)
def test_what_is_not_read_is_refused_by_name(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError) as refused:
        check_config(config)
        family = find(config)
        assert family is not TEXT
        family.model_class()(config)
    assert re.search(message, str(refused.value))
