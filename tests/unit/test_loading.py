"""load(): every way a checkpoint can lie on disk, what is quantized and widened, and what is refused."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import GEMMA3, LFM2, LLAMA, QWEN3_MOE, QWEN3_VL, VOCABULARY, draw, logits, write

from mlx_vlgen._runtime import mx, nn, tree_flatten
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.errors import LoadError, PromptError, UnsupportedError
from mlx_vlgen.inputs.processor import TextProcessor
from mlx_vlgen.inputs.prompt import Media, Prompt
from mlx_vlgen.inputs.qwen_vl import Qwen3VLProcessor
from mlx_vlgen.loading import load, loader
from mlx_vlgen.loading.quantization import MODES, Quantization, quantize_layers
from mlx_vlgen.models import base
from mlx_vlgen.models.text import TextModel

QWEN2 = LLAMA | {"model_type": "qwen2"}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 32, "max_position_embeddings": 512}
PROVED = {c["model_type"]: c for c in (LLAMA, QWEN2, QWEN3, QWEN3_MOE, GEMMA3, LFM2)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("loading from disk opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def llama(tmp_path):
    return write(tmp_path / "llama", LLAMA, draw(LLAMA))


@pytest.fixture
def no_pictures(monkeypatch):
    """The vision-language checkpoints here have no picture settings."""
    monkeypatch.setattr(Qwen3VLProcessor, "from_folder", TextProcessor.from_folder)


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def message(folder, error=LoadError, **options):
    with pytest.raises(error) as caught:
        load(folder, **options)
    return str(caught.value)


# -- text decoders


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
    assert expected in message(write(tmp_path / "c", config, {"x": mx.zeros(1)}))


# -- files


@pytest.mark.parametrize("indexed", [True, False])
def test_shards(tmp_path, llama, indexed):
    expected = logits(load(llama)[0])
    folder = write(tmp_path / "shards", LLAMA, draw(LLAMA), shards=3)
    if not indexed:
        (folder / "model.safetensors.index.json").unlink()
    np.testing.assert_array_equal(logits(load(folder)[0]), expected)


def test_any_safetensors_but_copies_and_adapters(tmp_path, llama):
    expected = logits(load(llama)[0])
    (llama / "model.safetensors").rename(llama / "a.safetensors")  # read first, were the others read at all
    for name in ("consolidated.safetensors", "adapters.safetensors", "adapter_model.safetensors"):
        mx.save_safetensors(str(llama / name), {"lm_head.weight": mx.zeros((VOCABULARY, 128))})
    np.testing.assert_array_equal(logits(load(llama)[0]), expected)


def test_a_missing_shard_is_named(tmp_path):
    folder = write(tmp_path / "shards", LLAMA, draw(LLAMA), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors" in message(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", "weights.bin"])
def test_an_index_stays_inside_the_folder(tmp_path, name):
    folder = write(tmp_path / "shards", LLAMA, draw(LLAMA), shards=2)
    mx.save_safetensors(str(tmp_path / "outside.safetensors"), {"lm_head.weight": mx.zeros((VOCABULARY, 128))})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert name in message(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_damaged_file_is_named(llama, keep):
    path = llama / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    assert str(path) in message(llama)


def test_a_file_of_something_else_is_named(llama):
    path = llama / "model.safetensors"
    path.write_bytes(b"<html>Not found</html>" * 10)
    assert str(path) in message(llama)


def test_tensors_that_do_not_fit_are_told(tmp_path):
    tensors = draw(LLAMA)
    tensors.pop("model.norm.weight")
    tensors["model.extra.weight"] = mx.zeros(3)
    tensors["lm_head.weight"] = mx.zeros((VOCABULARY, 64))
    text = message(write(tmp_path / "c", LLAMA, tensors))
    for expected in (
        "1 missing (model.norm.weight)",
        "1 not known (model.extra.weight)",
        "lm_head.weight (64, 64), expected (64, 128)",
    ):
        assert expected in text


def test_weights_in_a_foreign_format_name_it(tmp_path):
    tensors = draw(LLAMA)
    tensors["lm_head.weight_scale_inv"] = mx.zeros((1, 1))
    config = LLAMA | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    text = message(write(tmp_path / "c", config, tensors))
    assert "lm_head.weight_scale_inv" in text
    assert "'fp8'" in text


def test_a_configuration_that_lacks_something(tmp_path, llama):
    config = {key: value for key, value in LLAMA.items() if key != "hidden_size"}
    (llama / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    assert "hidden_size" in message(llama)


def test_generation_config(llama):
    assert load(llama)[0].generation_config == {}
    (llama / "generation_config.json").write_text('{"eos_token_id": [1, 2], "temperature": {"__float__": "Infinity"}}')
    assert load(llama)[0].generation_config == {"eos_token_id": [1, 2], "temperature": float("inf")}


def test_nothing_is_written_into_the_folder(llama):
    def contents():
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in llama.iterdir()}

    before = contents()
    load(llama, quantization=4)
    assert contents() == before


def test_code_in_the_folder_is_not_run(tmp_path, llama):
    trace = tmp_path / "was-run"
    for name in ("modeling_llama.py", "tokenization_llama.py", "configuration_llama.py"):
        (llama / name).write_text(f"open({str(trace)!r}, 'w')\n")
    auto_map = {"AutoModelForCausalLM": "modeling_llama.Llama", "AutoTokenizer": ["tokenization_llama.T", None]}
    (llama / "config.json").write_text(json.dumps(LLAMA | {"auto_map": auto_map}))
    load(llama)
    assert not trace.exists()


def test_lazy_weights_stay_on_disk(tmp_path):
    config = LLAMA | {"vocab_size": 8192}
    folder = write(tmp_path / "big", config, draw(config))  # 2 x 4 MB of it embeddings

    def growth(**options):
        before = mx.get_active_memory()
        model, _ = load(folder, **options)
        return mx.get_active_memory() - before, model

    assert growth(lazy=True)[0] < 1e6
    assert growth()[0] > 8e6


def test_loading_holds_one_float_tensor_at_a_time(tmp_path):
    config = LLAMA | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 8192}
    folder = write(tmp_path / "big", config, draw(config))
    largest, whole = 8192 * 256 * 4, (folder / "model.safetensors").stat().st_size
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model, _ = load(folder, quantization=4)
    weight_bytes = sum(value.nbytes for value in parameters(model).values())
    assert weight_bytes < 0.16 * whole
    assert mx.get_active_memory() - before < 1.01 * weight_bytes  # nor is a replaced layer kept
    assert mx.get_peak_memory() - before < weight_bytes + 2 * largest


def test_weights_larger_than_memory_are_told(llama, monkeypatch, capsys):
    monkeypatch.setattr(loader, "memory_available", lambda: 1000)
    load(llama, lazy=True)
    assert "GB of memory are free" in capsys.readouterr().err
    monkeypatch.setattr(loader, "memory_available", lambda: None)
    load(llama, lazy=True)
    assert capsys.readouterr().err == ""


def test_memory_available_is_plausible():
    available = loader.memory_available()
    assert available is None or 1e7 < available < 1e14


# -- numbers


@pytest.mark.parametrize("stored", [mx.bfloat16, mx.float16])
def test_on_the_cpu_everything_is_float32(tmp_path, stored):
    folder = write(tmp_path / "c", LLAMA, {name: value.astype(stored) for name, value in draw(LLAMA).items()})
    assert {value.dtype for value in parameters(load(folder)[0]).values()} == {mx.float32}
    assert {value.dtype for value in parameters(load(folder, dtype="auto")[0]).values()} == {mx.float32}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", mx.bfloat16, "float32"])
def test_a_named_dtype(llama, dtype):
    expected_dtype = getattr(mx, dtype) if isinstance(dtype, str) else dtype
    assert {value.dtype for value in parameters(load(llama, dtype=dtype)[0]).values()} == {expected_dtype}


@pytest.mark.parametrize("dtype", ["float8", "int8", mx.int32, 16])
def test_an_unknown_dtype(llama, dtype):
    assert "float32, bfloat16, float16" in message(llama, UnsupportedError, dtype=dtype)


RECIPES = [(mode, bits, size) for mode, (all_bits, sizes) in MODES.items() for bits in all_bits for size in sizes]


def quantized(tensors, settings, dtype=mx.float32):
    """The tensors of a quantized checkpoint, and what they stand for as floats. settings(name) -> dict or None."""
    packed, plain = {}, {}
    for name, value in tensors.items():
        chosen = settings(name)
        if chosen is None or value.ndim < 2:
            packed[name] = plain[name] = value
            continue
        path = name.removesuffix(".weight")
        parts = mx.quantize(value.astype(dtype), **chosen)
        keys = ("weight", "scales", "biases")[: len(parts)]
        packed |= {f"{path}.{key}": part for key, part in zip(keys, parts, strict=True)}
        exact = [part.astype(mx.float32) if part.dtype == dtype else part for part in parts]
        plain[name] = mx.dequantize(*exact, **chosen).astype(mx.float32)
    return packed, plain


@pytest.mark.parametrize(("mode", "bits", "group_size"), RECIPES)
def test_quantized_checkpoints_equal_what_they_stand_for(tmp_path, mode, bits, group_size):
    settings = {"group_size": group_size, "bits": bits, "mode": mode}
    packed, plain = quantized(draw(LLAMA), lambda name: settings)
    config = LLAMA | {"quantization": settings, "quantization_config": settings}
    model, _ = load(write(tmp_path / "q", config, packed))
    assert isinstance(model.lm_head, nn.QuantizedLinear)
    assert (model.lm_head.bits, model.lm_head.group_size, model.lm_head.mode) == (bits, group_size, mode)
    assert isinstance(model.model.embed_tokens, nn.QuantizedEmbedding)
    np.testing.assert_allclose(logits(model), logits(load(write(tmp_path / "f", LLAMA, plain))[0]), atol=1e-4)


def test_a_mixed_recipe(tmp_path):
    def settings(name):
        if "embed_tokens" in name or "layers.0" in name:
            return None
        if "down_proj" in name:
            return {"group_size": 32, "bits": 6}
        if "v_proj" in name:
            return {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        return {"group_size": 64, "bits": 3}

    packed, plain = quantized(draw(LLAMA), settings)
    entry = {"group_size": 64, "bits": 3, "model.embed_tokens": False}
    config = LLAMA | {"quantization": entry, "quantization_config": entry}
    model, _ = load(write(tmp_path / "q", config, packed))
    assert isinstance(model.model.layers[0].mlp.down_proj, nn.Linear)
    assert model.model.layers[1].mlp.down_proj.bits == 6
    assert model.model.layers[1].self_attn.v_proj.mode == "mxfp4"
    np.testing.assert_allclose(logits(model), logits(load(write(tmp_path / "f", LLAMA, plain))[0]), atol=1e-4)


def test_bfloat16_scales_become_float32_on_the_cpu(tmp_path):
    settings = {"group_size": 64, "bits": 4}
    packed, plain = quantized(draw(LLAMA), lambda name: settings, mx.bfloat16)
    model, _ = load(write(tmp_path / "q", LLAMA | {"quantization": settings}, packed))
    assert {value.dtype for value in parameters(model).values()} == {mx.float32, mx.uint32}
    np.testing.assert_allclose(logits(model), logits(load(write(tmp_path / "f", LLAMA, plain))[0]), atol=1e-4)


def test_experts_quantized(tmp_path):
    settings = {"group_size": 32, "bits": 8}
    skipped = ("mlp.gate.weight", "embed_tokens.weight")
    packed, plain = quantized(draw(QWEN3_MOE), lambda name: None if name.endswith(skipped) else settings)
    model, _ = load(write(tmp_path / "q", QWEN3_MOE | {"quantization": settings}, packed))
    assert model.model.layers[0].mlp.switch_mlp.up_proj.bits == 8
    np.testing.assert_allclose(logits(model), logits(load(write(tmp_path / "f", QWEN3_MOE, plain))[0]), atol=1e-4)


def test_awq(tmp_path):
    """AutoAWQ: (in, out / 8) integers of 8 four-bit numbers in the order 0 2 4 6 1 3 5 7, zero points alike."""
    random, order, plain, packed = np.random.default_rng(1), [0, 2, 4, 6, 1, 3, 5, 7], draw(LLAMA), {}

    def pack(numbers):  # (rows, columns) of 0..15 -> (rows, columns / 8)
        groups = numbers.reshape(*numbers.shape[:-1], -1, 8)[..., order].astype(np.uint32)
        return mx.array((groups << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32))

    for name in list(plain):
        if "_proj" not in name:
            packed[name] = plain[name]
            continue
        out, width = plain[name].shape
        numbers = random.integers(0, 16, (width, out))
        zeros = random.integers(6, 10, (width // 64, out))
        scales = random.uniform(0.01, 0.03, (width // 64, out)).astype(np.float32)
        path = name.removesuffix("weight")
        packed |= {path + "qweight": pack(numbers), path + "qzeros": pack(zeros), path + "scales": mx.array(scales)}
        plain[name] = mx.array(((numbers - zeros.repeat(64, 0)) * scales.repeat(64, 0)).T)
    settings = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    model, _ = load(write(tmp_path / "q", LLAMA | {"quantization_config": settings}, packed))
    np.testing.assert_allclose(logits(model), logits(load(write(tmp_path / "f", LLAMA, plain))[0]), atol=1e-4)

    settings["version"] = "gemv"
    assert "gemv" in message(write(tmp_path / "v", LLAMA | {"quantization_config": settings}, packed))
    packed["model.layers.0.mlp.up_proj.g_idx"] = mx.zeros(128, mx.int32)
    gptq = LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}}
    assert "GPTQ" in message(write(tmp_path / "g", gptq, packed))


# -- quantization while loading


@pytest.mark.parametrize("quantization", [4, {"bits": 8, "group_size": 32}, {"mode": "mxfp4"}, {"mode": "nvfp4"}])
def test_quantize_while_loading(llama, quantization):
    model, _ = load(llama, quantization=quantization)
    settings = {"bits": quantization} if isinstance(quantization, int) else dict(quantization)
    plain, _ = load(llama)
    nn.quantize(plain, **({"group_size": None, "bits": None} | settings))
    for name, value in parameters(plain).items():
        np.testing.assert_array_equal(np.array(parameters(model)[name]), np.array(value))
    np.testing.assert_allclose(logits(model), logits(plain), atol=1e-6)


@pytest.mark.parametrize("config", [LLAMA, QWEN3_MOE, QWEN3_VL], ids=lambda config: config["model_type"])
def test_what_was_quantized_loads_again(tmp_path, no_pictures, config):
    model, _ = load(write(tmp_path / "float", config, draw(config)), dtype="float16")
    recipe = quantize_layers(model, Quantization.parse({"bits": 4, "group_size": 32}))
    again, _ = load(write(tmp_path / "packed", config | {"quantization": recipe}, parameters(model)), dtype="float16")
    assert parameters(again).keys() == parameters(model).keys()
    np.testing.assert_array_equal(logits(again), logits(model))


def test_a_vision_tower_is_left_whole(tmp_path, no_pictures):
    folder = write(tmp_path / "vl", QWEN3_VL, draw(QWEN3_VL))
    model, _ = load(folder, quantization={"bits": 4, "group_size": 32})
    quantized_layers = [
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding))
    ]
    assert quantized_layers
    assert all(path.startswith("language_model.") for path in quantized_layers)
    assert "language_model.model.embed_tokens" in quantized_layers


def test_experts_router_keeps_its_own_recipe(tmp_path):
    folder = write(tmp_path / "moe", QWEN3_MOE, draw(QWEN3_MOE))
    model, _ = load(folder, quantization=4)
    assert model.model.layers[0].mlp.gate.bits == 8
    assert model.model.layers[0].mlp.switch_mlp.up_proj.bits == 4
    recipe = quantize_layers(load(folder)[0], Quantization.parse(4))
    assert recipe["model.layers.0.mlp.gate"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert {key: recipe[key] for key in ("group_size", "bits", "mode")} == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
    }


def test_layers_that_do_not_divide_stay_whole(tmp_path, capsys):
    config = LLAMA | {"hidden_size": 96, "head_dim": 32}
    folder = write(tmp_path / "c", config, draw(config))
    model, _ = load(folder, quantization={"bits": 4, "group_size": 64})
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)  # rows of 96
    assert isinstance(model.model.layers[0].mlp.down_proj, nn.QuantizedLinear)  # rows of 256
    assert capsys.readouterr().err == ""
    config |= {"intermediate_size": 96, "head_dim": 24}
    load(write(tmp_path / "d", config, draw(config)), quantization={"bits": 4, "group_size": 64})
    assert "no layer was quantized" in capsys.readouterr().err


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path):
    settings = {"group_size": 64, "bits": 4}
    packed, _ = quantized(draw(LLAMA), lambda name: settings)
    folder = write(tmp_path / "q", LLAMA | {"quantization": settings}, packed)
    assert "quantized already" in message(folder, UnsupportedError, quantization=4)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (7, "2, 3, 4, 5, 6, 8"),
        ({"bits": 4, "group_size": 16}, "32, 64, 128"),
        ({"mode": "int4"}, "affine, mxfp4, mxfp8, nvfp4"),
        ({"mode": "mxfp4", "bits": 8}, "mxfp4 has 4"),
        ({"bits": 4, "groupsize": 64}, "groupsize"),
        ("4bit", "number of bits"),
        (True, "number of bits"),
    ],
)
def test_unknown_recipes(llama, quantization, expected):
    assert expected in message(llama, UnsupportedError, quantization=quantization)


# -- refused by name


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ({"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "hqq"}}, "'hqq'"),
        ({"quantize_activations": True}, "activations"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_file": "model.py"}, "model.py"),
        ({"model_type": "lama"}, "'llama'"),
        ({"model_type": "qwen3-vl"}, "'qwen3_vl'"),
        ({"model_type": None}, "model_type"),
        ({"model_type": "cache"}, "not known"),
        ({"model_type": "kimi_vl"}, "not supported yet"),
        ({"model_type": "minimax_m3_vl"}, "not supported yet"),
        ({"model_type": "mistral", "vision_config": {"hidden_size": 4}}, "not supported yet"),
        ({"model_type": "whisperer", "audio_config": {"hidden_size": 4}}, "not supported yet"),
        ({"model_type": "olmo"}, "olmo"),
        ({"model_type": "qwen2_5_omni", "thinker_config": {"vision_config": {}}}, "not supported yet"),
        ({"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "no vision_config"),
    ],
)
def test_refused_configurations(llama, change, expected):
    (llama / "config.json").write_text(json.dumps(LLAMA | change))
    assert expected in message(llama)


@pytest.mark.parametrize(
    ("file", "expected"),
    [("pytorch_model.bin", "pickled"), ("model.Q4_K_M.gguf", "GGUF"), ("adapter_config.json", "adapter_path")],
)
def test_folders_without_safetensors(llama, file, expected):
    (llama / "model.safetensors").unlink()
    (llama / file).write_text("{}")
    assert expected in message(llama)
    (llama / "config.json").unlink()
    assert expected in message(llama)


def test_mistrals_tokenizer_alone_is_not_read(llama):
    (llama / "tokenizer.json").rename(llama / "tekken.json")
    (llama / "model.safetensors").unlink()  # said before weights are read
    assert "put the tokenizer.json and tokenizer_config.json of this model beside it" in message(llama)
    (llama / "tekken.json").unlink()
    (llama / "tokenizer_config.json").unlink()
    assert "no tokenizer" in message(llama)


def test_a_damaged_config(llama):
    (llama / "config.json").write_text("{")
    assert str(llama / "config.json") in message(llama)
    (llama / "config.json").write_text("[]")
    assert "expected an object" in message(llama)


def test_an_empty_folder(tmp_path):
    assert "no config.json" in message(tmp_path)


def test_errors_for_people_hide_the_traceback_of_the_cause(tmp_path):
    with pytest.raises(LoadError) as caught:
        load(Path("/no/such/folder"))
    assert caught.value.__cause__ is None
