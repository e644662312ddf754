"""Damaged and hostile checkpoints: whatever is wrong in one is a LoadError that names the file, and nothing hangs."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hostile.checkpoints import Mutation, mutations
from hostile.pool import outcomes
from parity.layouts import write_checkpoint
from tiny_checkpoints import LLAMA, draw, load_error, write

from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError
from mlx_vlgen.hf.auto import AutoProcessor, AutoTokenizer
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.inputs.qwen_vl import Qwen3VLProcessor
from mlx_vlgen.loading import hub, load
from mlx_vlgen.loading.headers import check_sizes, read_shapes

TESTS = Path(__file__).parents[1]


@pytest.fixture
def llama(tmp_path):
    return write(tmp_path / "llama", LLAMA, draw(LLAMA))


@pytest.fixture(scope="module")
def vision_checkpoint(tmp_path_factory):
    """The folder of a checkpoint that takes pictures, for reading only."""
    return write_checkpoint("qwen3_vl", "v5", tmp_path_factory.mktemp("checkpoint"))


def change(folder, name, **fields):
    """Set fields of a JSON file."""
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


# Many of them, in a process that may die


def test_no_checkpoint_gets_past_the_gate(tmp_path):
    results = outcomes("checkpoint_files", range(120), tmp_path, limit_s=20)
    assert [outcome for outcome in results if outcome.bad] == []
    assert Counter(outcome.result for outcome in results)["refused"] > 60


def test_mutations_are_the_same_for_the_same_seed(llama):
    def names(seed):
        return [mutation.name for mutation in mutations(llama, seed, 300)]

    assert names(3) == names(3)
    assert names(3) != names(4)


def test_a_mutation_leaves_the_original(llama, tmp_path):
    def contents():
        return {path.name: path.read_bytes() for path in llama.iterdir()}

    before = contents()
    Mutation("x", lambda folder: (folder / "config.json").unlink()).write(llama, tmp_path / "changed")
    assert contents() == before and not (tmp_path / "changed" / "config.json").exists()


# Tokenizers


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ', '{"added_tokens": 5}' + "}", "\ufeff{}"])
def test_a_broken_tokenizer_is_named(llama, name, text):
    (llama / name).write_text(text, encoding="utf-8")
    assert str(llama / name) in load_error(llama)
    with pytest.raises(LoadError):
        AutoTokenizer.from_pretrained(llama)


# Sizes


SHAPES = {"a": (64, 128), "b": (600_000, 4)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers = 10000000"),
        ({"vision_config": {"depth": 257}}, "vision_config.depth = 257"),
        ({"text_config": {"hidden_size": 10**9}}, "text_config.hidden_size = 1000000000"),
        ({"a": [{"num_experts": 600_001}]}, "a.num_experts = 600001"),
        ({"vision_config": {"image_size": [448, 10**18]}}, "image_size = 1000000000000000000"),
        ({"head_dim": float("inf")}, "head_dim = inf"),
    ],
)
def test_sizes_that_the_tensors_cannot_have(config, message):
    with pytest.raises(LoadError, match=message):
        check_sizes(config, SHAPES)


def test_sizes_that_they_may_have():
    check_sizes({"num_hidden_layers": 256, "vocab_size": 600_000, "max_position_embeddings": 10**7}, SHAPES)
    check_sizes({"num_hidden_layers": 300}, {str(i): (1,) for i in range(300)})
    check_sizes({"rope_theta": 10**9, "vision_feature_layer": -2, "pad_token_id": -1, "a": None, "b": "x"}, {})


@pytest.mark.parametrize("shape", [[-1, 8], [1 << 40], ["a"], "a", [2.0, 2], [True]])
def test_a_header_that_lies(tmp_path, shape):
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), {"a": mx.zeros((2, 8)), "b": mx.zeros(3)})
    assert read_shapes([path]) == {"a": (2, 8), "b": (3,)}
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["a"]["shape"] = shape
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])
    with pytest.raises(LoadError, match=r"model\.safetensors is damaged"):
        read_shapes([path])


def test_integers_for_weights(tmp_path):
    tensors = draw(LLAMA) | {"model.norm.weight": mx.ones(128, mx.int32)}
    assert "of another type (model.norm.weight mlx.core.int32" in load_error(write(tmp_path / "c", LLAMA, tensors))


# Processors


@pytest.mark.parametrize("fields", [{"image_std": [0, 0, 0]}, {"resample": 99}, {"image_mean": 1}, {"patch_size": 3}])
def test_settings_of_a_processor_name_the_file(vision_checkpoint, tmp_path, fields):
    folder = Mutation("", lambda folder: change(folder, "preprocessor_config.json", **fields)).write(
        vision_checkpoint, tmp_path / "c"
    )
    (folder / "processor_config.json").unlink()
    assert str(folder) in (message := load_error(folder)) and "config.json" in message


def test_what_cannot_run_is_refused_when_it_loads(llama):
    change(llama, "config.json", rope_theta="a")
    assert (
        "do not describe a model that runs" in (message := load_error(llama)) and str(llama / "config.json") in message
    )


def test_a_tower_that_cannot_run_is_refused_when_it_loads(tmp_path):
    folder = write_checkpoint("idefics3", "v5", tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    change(folder, "config.json", vision_config=config["vision_config"] | {"num_attention_heads": 0})
    assert "do not describe a model that runs" in load_error(folder)


def test_a_processor_that_makes_enormous_pictures_is_refused_when_it_loads(tmp_path):
    """Each number is within its bounds, and their product is not. Nothing of that size is asked for."""
    folder = write_checkpoint("lfm2_vl", "hub", tmp_path / "c")
    change(folder, "preprocessor_config.json", min_image_tokens=60_000, max_image_tokens=65_000, downsample_factor=16,
           encoder_patch_size=256)  # fmt: skip
    assert "cannot take a picture of 64 x 48 pixels" in load_error(folder)


def test_templates(llama):
    (llama / "chat_template.json").write_text('{"chat_template": 5}')
    assert str(llama / "chat_template.json") in load_error(llama)
    (llama / "chat_template.jinja").write_bytes(b"\xff")
    assert str(llama / "chat_template.jinja") in load_error(llama)


# Tokens


@pytest.mark.parametrize("special", [False, True])
def test_a_token_past_the_embeddings(llama, special):
    """As Gemma 3's text checkpoints have a picture's token, one may be there that no text becomes."""
    entry = {"id": 999_999, "content": "hi", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": special}  # fmt: skip
    change(llama, "tokenizer.json", added_tokens=[entry])
    if special:
        assert load(llama)[1].tokenizer.convert_tokens_to_ids("hi") >= 64
        change(llama, "tokenizer_config.json", eos_token="hi")
    message = load_error(llama)
    assert str(llama / "tokenizer.json") in message and "'hi' has the id" in message and "64 rows" in message


def test_a_word_past_the_embeddings(llama):
    whole = json.loads((llama / "tokenizer.json").read_text())
    whole["model"]["vocab"]["hi"] = 999_999
    change(llama, "tokenizer.json", model=whole["model"])
    assert "'hi' has the id 999999, and the embeddings have 64 rows" in load_error(llama)


def test_more_rows_than_tokens_are_usual(tmp_path):
    config = LLAMA | {"vocab_size": 96}
    load(write(tmp_path / "c", config, draw(config)))


@pytest.mark.parametrize("ends", ["a", 64, -1, 10**9, [1, "a"], {}, [[1]], 1.5, True, [None]])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_end_tokens_that_are_none(llama, name, ends):
    change(llama, name, eos_token_id=ends)
    message = load_error(llama)
    assert str(llama / name) in message and "eos_token_id" in message


def test_a_picture_without_a_token(vision_checkpoint, tmp_path):
    folder = Mutation("", lambda folder: None).write(vision_checkpoint, tmp_path / "c")
    text = (folder / "tokenizer.json").read_text().replace("<|image_pad|>", "<|other|>")
    (folder / "tokenizer.json").write_text(text)
    assert "has no token '<|image_pad|>'" in load_error(folder)


# Quantization and adapters


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": -4, "group_size": 64}, {"bits": 4, "group_size": 0}, {"bits": 4, "mode": "int4"}, {"bits": "4"},
        {"bits": 4, "lm_head": {"bits": 0}}, {"bits": 4, "mode": []}, {"quant_method": []}, [1], "4bit",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_quantization_that_there_is_not(llama, key, settings):
    change(llama, "config.json", **{key: settings})
    assert str(llama / "config.json") in load_error(llama)


@pytest.mark.parametrize(
    "config",
    [
        "[" * 100_000, "[]", {"lora_parameters": []}, {"lora_parameters": {"scale": "a"}},
        {"lora_parameters": {"scale": []}}, {"fine_tune_type": []}, {"init_lora_weights": [], "peft_type": 1},
        {"peft_type": "LORA", "lora_alpha": "a"}, {"peft_type": "LORA", "alpha_pattern": 5}, {"peft_type": []},
        {"peft_type": "LORA", "alpha_pattern": {"(": 1}},
    ],
)  # fmt: skip
def test_adapters(llama, tmp_path, config):
    (folder := tmp_path / "adapter").mkdir()
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    layer = "model.layers.0.self_attn.q_proj"
    pair = {"a": mx.zeros((128, 4)), "b": mx.zeros((4, 128))}
    mx.save_safetensors(
        str(folder / "adapters.safetensors"), {f"{layer}.lora_{key}": tensor for key, tensor in pair.items()}
    )
    peft = {f"base_model.model.{layer}.lora_{key.upper()}.weight": tensor.T for key, tensor in pair.items()}
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), peft)
    assert str(folder) in load_error(llama, adapter_path=folder)


# What else may happen


def test_a_fault_of_our_own_can_be_traced(vision_checkpoint, monkeypatch):
    def broken(cls, folder, config):
        raise AttributeError("a fault")

    monkeypatch.setattr(Qwen3VLProcessor, "from_folder", classmethod(broken))
    for reading in (load, AutoProcessor.from_pretrained):
        with pytest.raises(LoadError, match="AttributeError: a fault") as caught:
            reading(vision_checkpoint)
        assert isinstance(caught.value.__cause__, AttributeError)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_what_is_no_fault_of_a_checkpoint_passes(vision_checkpoint, monkeypatch, error):
    def stopped(cls, folder, config):
        raise error

    monkeypatch.setattr(Qwen3VLProcessor, "from_folder", classmethod(stopped))
    with pytest.raises(error):
        load(vision_checkpoint)


def test_a_panic_of_rust_does_not(llama, monkeypatch):
    panic = type("PanicException", (BaseException,), {})

    def panics(*args, **keywords):
        raise panic("index out of bounds")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", panics)
    assert "PanicException: index out of bounds" in load_error(llama)


def test_checking_a_forward_computes_nothing(vision_checkpoint):
    load(vision_checkpoint, lazy=True)
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    model, processor = load(vision_checkpoint, lazy=True)
    stored = sum(path.stat().st_size for path in vision_checkpoint.glob("*.safetensors"))
    assert mx.get_active_memory() - before < 50_000 < stored
    assert processor.prepare("hi", MediaInputs()).tokens.dtype == np.int32
    assert model.processor is processor


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "a" * 5000, "/" + "a" * 5000, "./" + "a/" * 3000])
def test_names_that_cannot_be_opened(name):
    with pytest.raises(LoadError, match="cannot be opened"):
        hub.locate(name)


@pytest.mark.parametrize(
    ("arguments", "expected"), [((5,), "5"), ((None,), "None"), ((b"x",), "b'x'"), (("a/b", 5), "revision=5")]
)
def test_names_of_another_type(arguments, expected):
    with pytest.raises(TypeError, match=expected):
        hub.locate(*arguments)
