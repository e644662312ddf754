"""InternLM2, the text decoder of the smaller InternVL 2: a Llama whose queries, keys and values are one layer.

Source: Cai et al. 2024 (arXiv 2403.17297).
"""

import re
from collections.abc import Mapping
from typing import Any

from .._runtime import mx

_NAMES = {
    "model.tok_embeddings": "model.embed_tokens",
    "output": "lm_head",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_NAME = re.compile(r"(.*?)(" + "|".join(map(re.escape, _NAMES)) + r")(\.[a-z]+)")
_JOINED = "attention.wqkv."


def llama_config(text: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the same decoder as a Llama."""
    return {**text, "model_type": "llama", "attention_bias": text.get("bias", True), "mlp_bias": False}


def llama_name(name: str) -> str:
    """Of a tensor of the decoder; those that are a Llama's already stay."""
    part = _NAME.fullmatch(name)
    return f"{part[1]}{_NAMES[part[2]]}{part[3]}" if part else name


def split_qkv(weights: Mapping[str, mx.array], heads: int, kv_heads: int) -> dict[str, mx.array]:
    """Rows stand in groups, one for each key head: its queries, the key and the value."""
    out: dict[str, mx.array] = {}
    for name, value in weights.items():
        if _JOINED not in name:
            out[name] = value
            continue
        rows = value.shape[0] // (heads + 2 * kv_heads)
        groups = value.reshape(kv_heads, heads // kv_heads + 2, rows, *value.shape[1:])
        parts = {"q": groups[:, :-2], "k": groups[:, -2], "v": groups[:, -1]}
        for part, group in parts.items():
            out[name.replace(_JOINED, f"self_attn.{part}_proj.")] = group.reshape(-1, *value.shape[1:])
    return out
