"""load(): how the files of a checkpoint may lie, memory, and what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from parity.layouts import write_checkpoint
from tiny_checkpoints import (
    LLAMA,
    VOCABULARY,
    draw,
    forbid_network,
    load_error,
    logits,
    parameters,
    write,
)

from mlx_vlgen import generate, library
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError, UnsupportedError
from mlx_vlgen.loading import load, loader


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    forbid_network(monkeypatch)


@pytest.fixture
def llama(tmp_path):
    return write(tmp_path / "llama", LLAMA, draw(LLAMA))


# Files


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
    assert "model-00002-of-00003.safetensors" in load_error(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", "weights.bin"])
def test_an_index_stays_inside_the_folder(tmp_path, name):
    folder = write(tmp_path / "shards", LLAMA, draw(LLAMA), shards=2)
    mx.save_safetensors(str(tmp_path / "outside.safetensors"), {"lm_head.weight": mx.zeros((VOCABULARY, 128))})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert name in load_error(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_damaged_file_is_named(llama, keep):
    path = llama / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    assert str(path) in load_error(llama)


def test_a_file_of_something_else_is_named(llama):
    path = llama / "model.safetensors"
    path.write_bytes(b"<html>Not found</html>" * 10)
    assert str(path) in load_error(llama)


def test_tensors_that_do_not_fit_are_told(tmp_path):
    tensors = draw(LLAMA)
    tensors.pop("model.norm.weight")
    tensors["model.extra.weight"] = mx.zeros(3)
    tensors["lm_head.weight"] = mx.zeros((VOCABULARY, 64))
    text = load_error(write(tmp_path / "c", LLAMA, tensors))
    for expected in (
        "1 missing (model.norm.weight)",
        "1 not known (model.extra.weight)",
        "lm_head.weight (64, 64), expected (64, 128)",
    ):
        assert expected in text


def without_towers(family, layout, folder):
    """A checkpoint with the tensors of its text decoder alone and no settings of a processor, as mlx-lm writes it."""
    model, _ = load(write_checkpoint(family, layout, folder))
    tensors = {key: value for file in folder.glob("*.safetensors") for key, value in mx.load(str(file)).items()}
    text = {key: value for key, value in tensors.items() if (model.rename(key) or "").startswith(model.text_prefix)}
    mx.eval(text)
    for path in (*folder.glob("*.safetensors*"), *folder.glob("*processor*")):
        path.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), text)
    return model


@pytest.mark.parametrize("family", ["gemma3", "gemma3n", "mistral3", "qwen3_vl", "qwen3_5", "llama4"])
def test_a_conversion_of_the_text_decoder_alone_answers_text(tmp_path, capsys, family):
    whole = without_towers(family, "mlx", tmp_path)
    model, processor = load(tmp_path)
    assert "has the weights of the text decoder only" in capsys.readouterr().err
    answers = [generate(one, processor, "Describe the user.", max_tokens=6).tokens for one in (whole, model)]
    assert answers[0] == answers[1]
    [entry] = library._entries([str(tmp_path)])
    assert entry.takes == ()
    with pytest.raises(UnsupportedError, match="takes only text"):
        generate(model, processor, "What is it?", image=np.zeros((32, 32, 3), np.uint8))


def test_where_mlx_lm_has_no_text_decoder_a_tower_that_lacks_is_told(tmp_path):
    without_towers("molmo2", "mlx", tmp_path)  # whose processor lays text out in another way than its tokenizer
    assert "missing (vision_tower" in load_error(tmp_path)


def test_weights_in_a_foreign_format_name_it(tmp_path):
    tensors = draw(LLAMA)
    tensors["lm_head.weight_scale_inv"] = mx.zeros((1, 1))
    config = LLAMA | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    text = load_error(write(tmp_path / "c", config, tensors))
    assert "lm_head.weight_scale_inv" in text
    assert "'fp8'" in text


def test_a_configuration_that_lacks_something(tmp_path, llama):
    config = {key: value for key, value in LLAMA.items() if key != "hidden_size"}
    (llama / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    assert "hidden_size" in load_error(llama)


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


# What is refused


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
        ({"model_type": "qwen1_omni", "thinker_config": {"vision_config": {}}}, "not supported yet"),
        ({"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "no vision_config"),
    ],
)
def test_refused_configurations(llama, change, expected):
    (llama / "config.json").write_text(json.dumps(LLAMA | change))
    assert expected in load_error(llama)


@pytest.mark.parametrize(
    ("file", "expected"),
    [("pytorch_model.bin", "pickled"), ("model.Q4_K_M.gguf", "GGUF"), ("adapter_config.json", "adapter_path")],
)
def test_folders_without_safetensors(llama, file, expected):
    (llama / "model.safetensors").unlink()
    (llama / file).write_text("{}")
    assert expected in load_error(llama)
    (llama / "config.json").unlink()
    assert expected in load_error(llama)


def test_mistrals_tokenizer_alone_is_not_read(llama):
    (llama / "tokenizer.json").rename(llama / "tekken.json")
    (llama / "model.safetensors").unlink()  # said before weights are read
    assert "put the tokenizer.json and tokenizer_config.json of this model beside it" in load_error(llama)
    (llama / "tekken.json").unlink()
    (llama / "tokenizer_config.json").unlink()
    assert "no tokenizer" in load_error(llama)


def test_a_damaged_config(llama):
    (llama / "config.json").write_text("{")
    assert str(llama / "config.json") in load_error(llama)
    (llama / "config.json").write_text("[]")
    assert "expected an object" in load_error(llama)


def test_an_empty_folder(tmp_path):
    assert "no config.json" in load_error(tmp_path)


def test_errors_for_people_hide_the_traceback_of_the_cause(tmp_path):
    with pytest.raises(LoadError) as caught:
        load(Path("/no/such/folder"))
    assert caught.value.__cause__ is None


def test_what_was_loaded_answers_in_another_thread(tmp_path):
    """As a server's does. Gemma 4's rotary frequencies are computed when its layers are made, and are no parameters."""
    model, processor = load(write_checkpoint("gemma4", "v5", tmp_path / "gemma4"))
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(generate, model, processor, "Hi", max_tokens=2).result().tokens
