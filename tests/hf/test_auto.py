"""`from_pretrained`: what it honours, what has no effect, what it refuses."""

import json
import pickle
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import LoadFamily
from parity import media
from transformers import PreTrainedTokenizerBase, TextStreamer

import mlx_vlgen
from mlx_vlgen import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
)
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError, UnreachableError, UnsupportedError
from mlx_vlgen.inputs.processor import Processor
from mlx_vlgen.loading.quantization import recipe_of
from mlx_vlgen.utils import load_config

ALL = (AutoModelForImageTextToText, AutoModelForCausalLM, AutoProcessor, AutoTokenizer)
ON_CPU = mx.default_device().type == mx.DeviceType.cpu


@pytest.fixture
def llama(load_family: LoadFamily) -> Path:
    """The folder of a text decoder."""
    return load_family("llama").folder


def test_the_built_in_model_loads_and_knows_its_processor() -> None:
    model = AutoModelForImageTextToText.from_pretrained("demo", dtype="auto", device_map="auto")
    assert model.config["model_type"] == "qwen3_vl" and not recipe_of(model)
    assert model.processor.prepare("Hello").tokens.tolist() == AutoTokenizer.from_pretrained("demo").encode("Hello")
    assert not any("processor" in name for name in model)  # nothing that would be saved or moved with the weights


def test_a_text_decoder_is_for_causal_lm(llama: Path) -> None:
    assert AutoModelForCausalLM.from_pretrained(llama).config["model_type"] == "llama"
    assert AutoModelForMultimodalLM.from_pretrained("demo").config["model_type"] == "qwen3_vl"
    assert AutoModelForCausalLM.from_pretrained("demo").config["model_type"] == "qwen3_vl"
    with pytest.raises(LoadError, match="AutoModelForCausalLM"):
        AutoModelForImageTextToText.from_pretrained(llama)


def test_quantization_config_quantizes_as_it_loads(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, quantization_config={"bits": 4, "group_size": 32})
    assert recipe_of(model) == {"group_size": 32, "bits": 4, "mode": "affine"}
    with pytest.raises(UnsupportedError, match="bitz"):
        AutoModelForCausalLM.from_pretrained(llama, quantization_config={"bitz": 4})


@pytest.mark.parametrize(
    ("keywords", "bits"),
    [
        ({"quantization_config": SimpleNamespace(load_in_4bit=True, load_in_8bit=False)}, 4),
        ({"quantization_config": SimpleNamespace(load_in_4bit=False, load_in_8bit=True)}, 8),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}, 4),
        ({"quantization_config": {"load_in_8bit": True}}, 8),
        ({"load_in_4bit": True}, 4),
        ({"load_in_8bit": True}, 8),
    ],
)
def test_bitsandbytes_is_refused_with_its_remedy(llama: Path, keywords: Any, bits: int) -> None:
    with pytest.raises(UnsupportedError, match=rf'quantization_config={{"bits": {bits}}}'):
        AutoModelForCausalLM.from_pretrained(llama, **keywords)


def test_dtype_by_either_name_and_as_torchs(llama: Path) -> None:
    torchs = type("dtype", (), {"__module__": "torch", "__str__": lambda self: "torch.bfloat16"})()
    for keywords in (
        {"dtype": "bfloat16"},
        {"torch_dtype": "bfloat16"},
        {"torch_dtype": torchs},
        {"dtype": mx.bfloat16},
    ):
        model = AutoModelForCausalLM.from_pretrained(llama, **keywords)
        assert model.model.norm.weight.dtype == mx.bfloat16


def test_what_has_no_effect_is_taken(llama: Path) -> None:
    AutoModelForCausalLM.from_pretrained(
        llama, device_map={"": "cpu"} if ON_CPU else "cuda:0", low_cpu_mem_usage=True, load_in_4bit=False,
        revision=None, attn_implementation="flash_attention_2", trust_remote_code=False, use_safetensors=True,
        local_files_only=True,
    )  # fmt: skip
    AutoProcessor.from_pretrained("demo", use_fast=True, trust_remote_code=None)
    AutoTokenizer.from_pretrained("demo", use_fast=False, revision="main")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"device_map": "cuda:1"}, "device_map='cuda:1': models run on MLX's default device"),
        ({"device_map": "mps" if ON_CPU else "cpu"}, "device_map="),
        ({"device_map": {"model.layers.0": 0}}, "device_map="),
        ({"max_memory": {0: "1GB"}}, "max_memory="),
        ({"offload_folder": "x"}, "offload_folder="),
        ({"use_safetensors": False}, "pickled weights"),
        ({"tp_plan": "auto"}, "tp_plan="),
    ],
)
def test_what_a_model_cannot_honour_is_refused_by_name(llama: Path, keywords: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        AutoModelForCausalLM.from_pretrained(llama, **keywords)


@pytest.mark.parametrize("auto", ALL, ids=lambda auto: auto.__name__)
def test_all_refuse_remote_code_and_what_they_do_not_know(auto: Any) -> None:
    with pytest.raises(UnsupportedError, match="trust_remote_code=True: no code of a checkpoint's is ever run"):
        auto.from_pretrained("owner/anything", trust_remote_code=True)
    with pytest.raises(UnsupportedError, match=r"token='x': .*HF_TOKEN"):
        auto.from_pretrained("demo", token="x")
    with pytest.raises(TypeError, match=r"unknown keyword 'revison'; did you mean 'revision'\?"):
        auto.from_pretrained("demo", revison="main")


@pytest.mark.parametrize("auto", ALL, ids=lambda auto: auto.__name__)
def test_local_files_only_asks_no_network(auto: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: Any) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnreachableError, match="local_files_only forbids"):
        auto.from_pretrained("owner/name", local_files_only=True)


def test_the_processor_of_a_text_decoder_is_its_tokenizer(llama: Path) -> None:
    assert isinstance(AutoProcessor.from_pretrained(llama), PreTrainedTokenizerBase)
    processor = AutoProcessor.from_pretrained("demo", padding_side="left", chat_template="{{ messages[0].content }}")
    assert isinstance(processor, Processor)
    assert processor.tokenizer.padding_side == "left"
    assert processor.apply_chat_template([{"role": "user", "content": "x"}]) == "x"


def test_load_refuses_remote_code_too(llama: Path) -> None:
    for load in (mlx_vlgen.load, load_config):
        with pytest.raises(UnsupportedError, match="trust_remote_code=True: no code of a checkpoint's is ever run"):
            load("owner/anything", trust_remote_code=True)
    assert load_config(llama, trust_remote_code=False).model_type == "llama"
    assert load_config("demo") == mlx_vlgen.load("demo", lazy=True, trust_remote_code=False)[0].config


# -- tokenizers


def test_a_tokenizer_gives_mlxs_arrays_and_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained("demo", padding_side="left")
    inputs = tokenizer(["Hello", "Hello my name is"], padding=True, return_tensors="mlx").to("cuda")
    assert isinstance(inputs["input_ids"], mx.array) and inputs["attention_mask"][0, 0] == 0
    ids = tokenizer("Hello my name is", return_tensors="mlx")["input_ids"].to(mx.default_device())
    assert tokenizer.decode(ids[0]) == tokenizer.batch_decode(ids)[0] == "Hello my name is"
    assert tokenizer.encode("Hello", return_tensors="mlx").to("cpu").tolist() == [tokenizer.encode("Hello")]
    streamer = TextStreamer(tokenizer)
    streamer.put(ids[0])
    streamer.end()
    assert capsys.readouterr().out == "Hello my name is\n"
    with pytest.raises(UnsupportedError, match='"mlx", or "np"'):
        tokenizer("Hello", return_tensors="pt")
    with pytest.raises(UnsupportedError, match='"mlx", or "np"'):
        tokenizer.encode("Hello", return_tensors="pt")


def test_a_tokenizer_is_still_transformers(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(media.DEMO / "model")
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    assert tokenizer("Hello", return_offsets_mapping=True)["offset_mapping"] == [(0, 5)]
    assert tokenizer("Hello").char_to_token(0) == 0
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert (
        copied.decode(mx.array(copied.encode("Hello"))) == "Hello" and type(copied).__name__ == type(tokenizer).__name__
    )
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved["tokenizer_class"] == type(tokenizer).__mro__[2].__name__
