"""Qwen4-Exp."""

from typing import Any

import numpy as np

from ..recipe import (
    HEADS,
    MLX_NAMES,
    QWEN_ENDS,
    VIDEO_BATCHES,
    VIDEO_CASES,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Config,
    Ids,
    Recipe,
    channels_last,
    renamed,
    rope,
    swap,
    switch_experts,
)
from ..weights import Rule, Tensors
from . import qwen3_5
from .qwen3_vl import KIT, media_ids

NGRAMS = "model.language_model.layers.0.ple.ple_embedding."
PARTS = 2
# Its RMSNorms multiply by 1 + weight, but for those of linear attention.
RULES: tuple[Rule, ...] = (
    (r"linear_attn\.norm\.weight$", 1.0, 0.2),
    (r"language_model.*norm(_key|_query|_conv)?\.weight$", 0.0, 0.2),
    (r"ngram_embedding\.", 0.0, 1.0),
    *qwen3_5.RULES[1:],
)


def _config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    text_config = {
        "hidden_size": 32, "num_hidden_layers": 3, "head_dim": 16, "rms_norm_eps": 1e-6, "vocab_size": vocabulary,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "linear_num_key_heads": 1, "linear_num_value_heads": 2, "output_gate_type": "sigmoid",
        "layer_types": ["linear_attention", "indexed_attention", "indexed_attention"],
        "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "shared_expert_intermediate_size": 32, "hc_count": 2, "hc_lowrank": 16,
        "ple_layer_ids": [1], "ple_embed_dim": 32, "heads_per_ngram": 1, "ngram_vocab_size_base": 200,
        "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": PARTS, "indexer_n_heads": 8,
        "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16, "indexer_compress_ratio": 4,
        "rope_parameters": rope(1e7, mrope_interleaved=True, mrope_section=[2, 1, 1], partial_rotary_factor=0.5),
    }  # fmt: skip
    vision_config = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 48,
        "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 144,
    }  # fmt: skip
    return transformers.Qwen4ExpConfig(
        text_config=text_config | HEADS | QWEN_ENDS(ids),
        vision_config=vision_config,
        tie_word_embeddings=False,
        **media_ids(ids),
    )


def _hub(tensors: Tensors) -> Tensors:
    """Fused experts; beside the model, layers that guess further tokens."""
    return qwen3_5.fused_experts(tensors) | {"mtp.norm.weight": np.zeros(32, np.float32)}


def _mlx(tensors: Tensors) -> Tensors:
    """Convolutions over time with their channels last."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        name = name.replace(".ngram_embedding.shard_", ".ngram_embedding.shards.")
        out[name] = swap(tensor, 1, 2) if name.endswith("conv1d.weight") else tensor
    return channels_last(switch_experts(renamed(out, *MLX_NAMES)))


def _legacy(config: Config) -> None:
    """As published: rotary settings as transformers 5 has them, and layers with an indexer called full ones."""
    text = config["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    text["layer_types"] = [kind.replace("indexed", "full") for kind in text["layer_types"]]


CASES = {"word": Case("The")} | VISION_CASES | {name: VIDEO_CASES[name] for name in ("video", "img_video")}
RECIPES = {
    "qwen4_exp": Recipe(
        _config,
        qwen3_5.TOKENIZER,
        CASES,
        VISION_BATCHES | VIDEO_BATCHES | {"batch_words": ["word", "text"]},
        KIT,
        RULES,
        buffers={
            f"{NGRAMS}layer_multipliers": np.array([6442570632613529, 5390852257288293, 16501634582032759]),
            f"{NGRAMS}ngram_heads_vocab_sizes": np.array([211, 223]),
            f"{NGRAMS}ngram_heads_offsets": np.array([0, 211]),
        },
        hub=_hub,
        mlx=_mlx,
        legacy=_legacy,
    ),
}
