"""Small random checkpoints for the tests of loading, written as files a person would download."""

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from mlx_vlgen._mlx_lm import text_decoder
from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.errors import LoadError
from mlx_vlgen.inputs.prompt import Prompt
from mlx_vlgen.loading import load
from mlx_vlgen.models.base import Model
from mlx_vlgen.models.decoders import text_arguments
from mlx_vlgen.models.qwen3_vl import Qwen3VL

VOCABULARY = 64

# Rows of 128 divide into groups of every size there is.
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
QWEN3_MOE = LLAMA | {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "max_position_embeddings": 512,
}
GEMMA3 = LLAMA | {
    "model_type": "gemma3_text",
    "head_dim": 32,
    "sliding_window": 8,
    "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_activation": "gelu_pytorch_tanh",
}
LFM2 = LLAMA | {
    "model_type": "lfm2",
    "norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "layer_types": ["conv", "full_attention"],
    "tie_word_embeddings": True,
}
QWEN3_VL: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": False,
    "text_config": LLAMA | {"model_type": "qwen3_vl_text", "head_dim": 32, "max_position_embeddings": 512},
    "vision_config": {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 128,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [],
    },
}

Tensors = dict[str, mx.array]


def draw(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """Random weights of mlx-lm's decoder for `config`, or of Qwen3VL, under MLX's names."""
    if "vision_config" in config:
        model: Any = Qwen3VL(dict(config))
    else:
        decoder, arguments = text_decoder(config)
        model = decoder(arguments.from_dict(text_arguments(dict(config))))
    shapes = {name: value.shape for name, value in dict(tree_flatten(model.parameters())).items()}
    if config.get("tie_word_embeddings"):
        shapes.pop("lm_head.weight", None)
    random = np.random.default_rng(seed)
    return {
        name: mx.array(random.normal(size=shape).astype(np.float32) * shape[-1] ** -0.5 + (len(shape) == 1))
        for name, shape in shapes.items()
    }


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, mx.array], shards: int = 1) -> Path:
    """A checkpoint's folder with config, weights in `shards` files with an index, and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), dict(tensors))
    else:
        files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
        for file in set(files.values()):
            mx.save_safetensors(str(folder / file), {name: tensors[name] for name in tensors if files[name] == file})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0", "eos_token": "w1"})
    )


def logits(model: Model, tokens: tuple[int, ...] = (3, 14, 15, 9, 2, 6, 5, 35, 8, 9, 7, 9)) -> np.ndarray:
    """(L, V), of one text prompt."""
    inputs = model.embed(Prompt(np.array(tokens, dtype=np.int32)), [])
    return np.array(model(inputs, make_cache(model.cache_layout())).astype(mx.float32))[0]


def parameters(model: Model) -> Tensors:
    return dict(tree_flatten(model.parameters()))


def load_error(folder: Path, error: type[Exception] = LoadError, **options: Any) -> str:
    """The message of the error that `load` raises."""
    with pytest.raises(error) as caught:
        load(folder, **options)
    return str(caught.value)


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections and names of hosts raise an AssertionError."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
