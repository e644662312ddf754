"""convert(): what is written loads as the original does, and holds what conversions for MLX hold."""

import json

import numpy as np
import pytest
from conversions import CONFIGS, assert_equal, config_of, message, stored, write_originals
from parity.layouts import family_tensors, write_checkpoint
from parity.published import FIRST_RELEASE
from parity.recipe import as_they_are, channels_last
from parity.recipes import recipes
from tiny_checkpoints import LFM2, LLAMA, QWEN3_MOE, QWEN3_VL, draw, logits, write

from mlx_vlgen._mlx_lm import MIXED_RECIPES
from mlx_vlgen._runtime import mx, nn, tree_flatten
from mlx_vlgen.convert import Plan, convert
from mlx_vlgen.errors import LoadError, UnsupportedError
from mlx_vlgen.inputs.gemma3 import Gemma3Processor
from mlx_vlgen.inputs.processor import TextProcessor
from mlx_vlgen.inputs.prompt import Media
from mlx_vlgen.inputs.qwen_vl import Qwen3VLProcessor
from mlx_vlgen.loading import load
from mlx_vlgen.loading.quantization import MODES
from mlx_vlgen.models.gemma3 import Gemma3

SETTINGS = [(mode, bits, size) for mode, (all_bits, sizes) in MODES.items() for bits in all_bits for size in sizes]


@pytest.fixture(autouse=True)
def no_processors(monkeypatch):
    """These are copied; of a checkpoint that sees nothing here reads more than the tokenizer."""
    for processor in (Gemma3Processor, Qwen3VLProcessor):
        monkeypatch.setattr(processor, "from_folder", TextProcessor.from_folder)


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    return write_originals(tmp_path_factory.mktemp("originals"))


def parameters(folder, **options):
    return dict(tree_flatten(load(folder, **options)[0].parameters()))


# -- weights


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("mode", "bits", "group_size"), SETTINGS)
def test_quantized_equals_the_original_quantized_while_loading(tmp_path, originals, name, mode, bits, group_size):
    target = convert(
        originals[name], tmp_path / "out", quantize=True, q_mode=mode, q_bits=bits, q_group_size=group_size
    )
    settings = {"mode": mode, "bits": bits, "group_size": group_size}
    assert_equal(parameters(target), parameters(originals[name], quantization=settings))
    config = config_of(target)
    assert config["quantization"] == config["quantization_config"] == settings
    assert {key: config[key] for key in CONFIGS[name]} == CONFIGS[name]


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_has_its_own_bits_and_groups(tmp_path, originals, mode):
    target = convert(originals["llama"], tmp_path / "out", quantize=True, q_mode=mode)
    bits, sizes = MODES[mode]
    assert config_of(target)["quantization"] == {"mode": mode, "bits": bits[0], "group_size": sizes[0]}


@pytest.mark.parametrize("name", CONFIGS)
def test_without_settings_the_weights_stay_as_they_are(tmp_path, originals, name):
    target = convert(originals[name], tmp_path / "out")
    assert_equal(stored(target), draw(CONFIGS[name]))
    assert config_of(target) == CONFIGS[name]


# InternLM2 is read as a Llama and written as one, under names that no other conversion has.
FAMILIES = [
    name for name, recipe in recipes().items() if recipe.mlx is not as_they_are and name != "internvl_internlm2"
]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_what_conversions_for_mlx_hold(tmp_path, family):
    target = convert(write_checkpoint(family, FIRST_RELEASE.get(family, "hub"), tmp_path / "hub"), tmp_path / "out")
    expected = {name: mx.array(value) for name, value in recipes()[family].mlx(family_tensors(family)).items()}
    if "language_model.lm_head.weight" not in stored(target):  # the embeddings once more, which mlx-vlm adds itself
        head = expected.pop("language_model.lm_head.weight", None)
        assert head is None or mx.array_equal(head, expected["language_model.model.embed_tokens.weight"])
    assert_equal(stored(target), expected)


@pytest.mark.parametrize("family", FIRST_RELEASE)
def test_internvl_as_transformers_has_it_stays_so(tmp_path, family):
    """Packages for MLX tell both releases apart by `model_type`, and expect the names of each."""
    folders = [write_checkpoint(family, layout, tmp_path / layout) for layout in ("hub", "mlx")]
    written = stored(convert(folders[0], tmp_path / "out"))
    assert_equal(written, {name: mx.array(value) for name, value in channels_last(family_tensors(family)).items()})
    settings = {"quantize": True, "q_mode": "nvfp4", "quantize_vision": True}
    last, first = (convert(folder, tmp_path / f"{folder.name}, 4 bits", **settings) for folder in folders)
    assert any(".attention.k_proj.scales" in name for name in stored(last))
    assert_equal(parameters(last), parameters(first))


@pytest.mark.parametrize("recipe", [None, "mixed_3_6"])
def test_gemma3s_embeddings_are_its_output_layer_too(tmp_path, recipe):
    """mlx-vlm makes the output layer's weight of the embeddings', packed or not, and must find scales for it."""
    config = config_of(write_checkpoint("gemma3", "v5", tmp_path / "narrow"))
    config["text_config"]["hidden_size"] = 64  # which divides into groups
    tensors = dict(tree_flatten(Gemma3(config).parameters()))
    folder = write(tmp_path / "wide", config, {name: value for name, value in tensors.items() if "lm_head" not in name})
    target = convert(folder, tmp_path / "out", quantize=True, q_group_size=32, q_recipe=recipe)
    for part in ("weight", "scales", "biases"):
        head, table = (stored(target)[f"language_model.{name}.{part}"] for name in ("lm_head", "model.embed_tokens"))
        assert mx.array_equal(head, table)
    assert parameters(target)  # no tensor too many


def test_the_entries_of_single_layers_have_the_published_names(tmp_path):
    target = convert(
        write_checkpoint("idefics3", "hub", tmp_path / "hub"),
        tmp_path / "out",
        quantize=True,
        q_recipe="mixed_3_6",
        q_group_size=32,
    )
    named = {path for path, settings in config_of(target)["quantization"].items() if isinstance(settings, dict)}
    assert named and all(f"{path}.scales" in stored(target) for path in named)


@pytest.mark.parametrize("recipe", MIXED_RECIPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_mixed_recipe(tmp_path, originals, name, recipe):
    low, high = map(int, recipe.split("_")[1:])
    target = convert(originals[name], tmp_path / "out", quantize=True, q_recipe=recipe)
    model = load(target)[0]
    bits = {path: module.bits for path, module in model.named_modules() if "scales" in module}
    # mlx-lm's rule for two layers: more bits in the last one's values and down projection, and in the output layer.
    more = {f"{model.text_prefix}{path}" for path in ("model.layers.1.self_attn.v_proj", "model.layers.1.mlp.down_proj",
                                                      "lm_head")}  # fmt: skip
    assert bits == {path: high if path in more else low for path in bits} and more < bits.keys()
    entry = {"group_size": 64, "mode": "affine"}
    expected = {"bits": low} | entry | {path: {"bits": high} | entry for path in more}
    assert config_of(target)["quantization"] == config_of(target)["quantization_config"] == expected


def test_a_router_keeps_its_own_bits(tmp_path):
    folder = write(tmp_path / "moe", QWEN3_MOE, draw(QWEN3_MOE))
    for name, keywords in {"plain": {}, "mixed": {"q_recipe": "mixed_2_6"}}.items():
        target = convert(folder, tmp_path / name, quantize=True, **keywords)
        layers = load(target)[0].model.layers
        assert [layer.mlp.gate.bits for layer in layers] == [8, 8]
        entry = {"group_size": 64, "bits": 8, "mode": "affine"}
        assert config_of(target)["quantization"]["model.layers.0.mlp.gate"] == entry
        assert layers[0].mlp.switch_mlp.up_proj.bits == (2 if keywords else 4)


def test_vision_stays_whole_unless_it_is_asked_for(tmp_path, originals):
    def quantized(target):
        return {name.removesuffix(".scales") for name in stored(target) if name.endswith(".scales")}

    keywords = {"quantize": True, "q_group_size": 32, "q_bits": 8}
    text = convert(originals["qwen3_vl"], tmp_path / "text", **keywords)
    assert quantized(text) and all(path.startswith("language_model.") for path in quantized(text))
    both = convert(originals["qwen3_vl"], tmp_path / "both", quantize_vision=True, **keywords)
    vision_layers = quantized(both) - quantized(text)
    model = load(both)[0]
    linear = {path for path, module in load(text)[0].named_modules() if type(module) is nn.Linear}
    assert vision_layers == linear  # no table of positions, which is not looked up by whole rows, and no convolution

    picture = np.random.default_rng(0).normal(size=(16, 96)).astype(np.float32)
    media = Media("image", picture, (1, 4, 4), ((0, 4),), (16, 16))
    exact, rounded = (np.array(model.encode([media])[0].embeds) for model in (load(text)[0], model))
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONFIGS)
def test_dequantized_answers_as_the_quantized(tmp_path, originals, name, mode):
    packed = convert(originals[name], tmp_path / "packed", quantize=True, q_mode=mode)
    plain = convert(packed, tmp_path / "plain", dequantize=True)
    assert {value.dtype for value in stored(plain).values()} == {mx.float32}
    assert stored(plain).keys() == draw(CONFIGS[name]).keys()
    assert config_of(plain) == CONFIGS[name]
    np.testing.assert_allclose(logits(load(plain)[0]), logits(load(packed)[0]), atol=1e-4)


def test_quantized_weights_stay_as_they_are_with_what_config_json_left_out(tmp_path, originals):
    packed = convert(originals["llama"], tmp_path / "packed", quantize=True, q_recipe="mixed_3_6")
    expected = config_of(packed)
    config = {key: value for key, value in expected.items() if not key.startswith("quantization")}
    (packed / "config.json").write_text(json.dumps(config))  # it loads all the same: the tensors tell
    again = convert(packed, tmp_path / "again")
    assert_equal(stored(again), stored(packed))
    assert config_of(again) == expected


def test_awq_becomes_mlxs_own(tmp_path):
    random, tensors = np.random.default_rng(1), draw(LLAMA)
    for name in [name for name in tensors if "_proj" in name]:
        out, width = tensors.pop(name).shape
        path = name.removesuffix("weight")
        tensors[path + "qweight"] = mx.array(random.integers(0, 2**32, (width, out // 8), np.uint32))
        tensors[path + "qzeros"] = mx.array(random.integers(0, 2**32, (width // 64, out // 8), np.uint32))
        tensors[path + "scales"] = mx.array(random.uniform(0.01, 0.03, (width // 64, out)).astype(np.float32))
    settings = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    folder = write(tmp_path / "awq", LLAMA | {"quantization_config": settings}, tensors)
    target = convert(folder, tmp_path / "out")
    assert_equal(parameters(target), parameters(folder))
    entry = {"group_size": 64, "bits": 4, "mode": "affine"}
    assert config_of(target) == LLAMA | {"quantization": entry, "quantization_config": entry}


@pytest.mark.parametrize("keywords", [{}, {"quantize": True}], ids=["float", "quantized"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_is_that_of_all_floats_and_said_in_config_json(tmp_path, dtype, keywords):
    text, vision = QWEN3_VL["text_config"] | {"dtype": "float32"}, QWEN3_VL["vision_config"]
    config = QWEN3_VL | {"torch_dtype": "float32", "text_config": text, "vision_config": vision | {"dtype": None}}
    folder = write(tmp_path / "c", config, draw(config))
    target = convert(folder, tmp_path / "out", dtype=dtype, **keywords)
    options = {"quantization": 4} if keywords else {}
    assert_equal(parameters(target, dtype=dtype), parameters(folder, dtype=dtype, **options))
    assert {value.dtype for value in stored(target).values()} - {mx.uint32} == {getattr(mx, dtype)}
    written = config_of(target)
    assert (written["torch_dtype"], written["text_config"]["dtype"]) == (dtype, dtype)
    assert "dtype" not in written and written["vision_config"]["dtype"] is None


@pytest.mark.parametrize("keywords", [{}, {"quantize": True}], ids=["float", "quantized"])
def test_without_a_dtype_floats_keep_theirs_on_a_cpu_too(tmp_path, keywords):
    tensors = {name: value.astype(mx.float32 if "norm" in name else mx.bfloat16) for name, value in draw(LLAMA).items()}
    target = convert(write(tmp_path / "c", LLAMA, tensors), tmp_path / "out", **keywords)
    for name, value in stored(target).items():
        if value.dtype != mx.uint32:
            assert value.dtype == (mx.float32 if "norm" in name else mx.bfloat16)


# -- what is refused


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quantize": True, "dequantize": True}, "dequantize and quantize exclude each other"),
        ({"q_bits": 4}, "q_bits says how to quantize"),
        ({"q_group_size": 32, "dequantize": True}, "q_group_size says how"),
        ({"q_mode": "mxfp4"}, "q_mode says how"),
        ({"q_recipe": "mixed_2_6"}, "q_recipe says how"),
        ({"quantize_vision": True}, "quantize_vision says how"),
        ({"quantize": True, "q_bits": 7}, "q_bits=7: affine has 2, 3, 4, 5, 6, 8"),
        ({"quantize": True, "q_mode": "nvfp4", "q_bits": 8}, "q_bits=8: nvfp4 has 4"),
        ({"quantize": True, "q_mode": "mxfp4", "q_group_size": 64}, "q_group_size=64: mxfp4 has 32"),
        ({"quantize": True, "q_mode": "fp4"}, "q_mode 'fp4': expected one of affine"),
        ({"quantize": True, "q_recipe": "mixed_1_2"}, "expected one of mixed_2_6"),
        ({"quantize": True, "q_recipe": "mixed_2_6", "q_bits": 4}, "chooses the bits"),
        ({"quantize": True, "q_recipe": "mixed_2_6", "q_mode": "mxfp4"}, "chooses the bits"),
        ({"dtype": "float8"}, "expected one of float32, bfloat16, float16"),
        ({"dtype": mx.int8}, "expected one of float32, bfloat16, float16"),
    ],
)
def test_settings_that_do_not_fit(settings, expected):
    with pytest.raises(UnsupportedError) as caught:
        Plan.of(**settings)
    assert expected in str(caught.value)


def test_an_unknown_setting_is_a_type_error(originals, tmp_path):
    assert "q_bit" in message(originals["llama"], tmp_path / "out", error=TypeError, q_bit=4)


def test_checkpoints_that_do_not_fit_the_settings(tmp_path, originals):
    packed = convert(originals["llama"], tmp_path / "packed", quantize=True)
    lfm2 = write(tmp_path / "lfm2", LFM2, draw(LFM2))
    narrow = LLAMA | {"hidden_size": 48, "intermediate_size": 80, "head_dim": 16, "num_attention_heads": 3,
                      "num_key_value_heads": 1}  # fmt: skip
    narrow_folder = write(tmp_path / "narrow", narrow, draw(narrow))
    before = sorted(tmp_path.iterdir())
    for source, keywords, expected in (
        (packed, {"quantize": True}, "quantized already"),
        (originals["llama"], {"dequantize": True}, "not quantized"),
        (originals["llama"], {"quantize": True, "quantize_vision": True}, "text decoder"),
        (lfm2, {"quantize": True, "q_recipe": "mixed_3_4"}, "mixed_3_4 does not fit lfm2"),
        (narrow_folder, {"quantize": True}, "nothing would be quantized"),
        (originals["llama"], {"dry_run": True}, "upload_repo"),
        (originals["llama"], {"upload_repo": "not an id"}, "not an id"),
    ):
        assert expected in message(source, tmp_path / "out", **keywords)
        assert sorted(tmp_path.iterdir()) == before
    message(tmp_path / "nowhere", tmp_path / "out", error=LoadError)
