"""GLM-5.3-Flash, with the template of GLM-4.1V."""

import re
from typing import Any

import numpy as np

from ..recipe import (
    MLX_NAMES,
    VIDEO_CASES,
    VISION_CASES,
    Case,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    channels_last,
    renamed,
    swap,
    switch_experts,
    user,
)
from ..weights import Rule, Tensors
from .glm4v import TOKENIZER, TOKENS
from .qwen3_vl import image_pixels, video_pixels

RULES: tuple[Rule, ...] = (
    (r"e_score_correction_bias$", 0.0, 0.3),
    (r"(A_log|dt_bias)$", 0.0, 1.0),
    (r"hc_(attn|ffn)_base$", 0.0, 0.5),
    (r"hc_(attn|ffn)_scale$", 1.0, 0.2),
    (r"compress_ape$", 0.0, 1.0),
)
JOINED = {
    "q_proj": ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    "f_a_proj": ("fbg_a_proj", ("f_a_proj", "b_proj", "g_a_proj")),
    "q_conv1d": ("qkv_conv.conv", ("q_conv1d", "k_conv1d", "v_conv1d")),
    "q_a_proj": ("qkv_a_proj", ("q_a_proj", "kv_a_proj_with_mqa")),
    "gate_proj": ("gate_up_proj", ("gate_proj", "up_proj")),
}
FIRST = r"language_model.*\.(self_attn\.(q_proj|f_a_proj|q_conv1d|q_a_proj)|(mlp|shared_experts)\.gate_proj)\.weight"


def processor(tokenizer: Any) -> Any:
    """Limits so low that of the pictures and clips of media.py some shrink, some grow and some stay."""
    import transformers

    image = transformers.Glm5NextImageProcessorPil(min_image_tokens=4, max_image_tokens=16)
    video = transformers.Glm5NextVideoProcessor(min_image_tokens=4, max_image_tokens=20)
    return transformers.Glm5NextProcessor(image, tokenizer, video, chat_template=tokenizer.chat_template)


def _config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    text_config = {
        "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.5, "kv_lora_rank": 16, "q_lora_rank": 24, "v_head_dim": 12, "qk_nope_head_dim": 16,
        "vocab_size": vocabulary, "max_position_embeddings": 4096, "swiglu_limit": 1.0,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["linear_attention", "indexed_attention", "indexed_attention"],
        "indexer_types": ["full", "full", "shared"],
        "index_topk": 16, "index_kpool": 4, "index_head_dim": 8, "index_n_heads": 16,
        "linear_head_dim": 16, "linear_num_heads": 2, "hc_mult": 2, "hc_sinkhorn_iters": 5,
        "eos_token_id": ids("<|endoftext|>"), "pad_token_id": ids("<|endoftext|>"),
    }  # fmt: skip
    vision_config = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 48,
        "image_size": 84, "patch_size": 14, "projection_intermediate_size": 40, "swiglu_limit": 1.0,
    }  # fmt: skip
    return transformers.Glm5NextConfig(
        text_config=text_config,
        vision_config=vision_config,
        tie_word_embeddings=False,
        **{key: ids(token) for key, token in TOKENS.items()},
    )


CASES = (
    {"word": Case("The")}
    | VISION_CASES
    | {name: VIDEO_CASES[name] for name in ("video", "img_video")}
    | {"tiny": Case(user("image", "Describe the user."), images=["thin"])}
)
BATCHES = {"batch": ["img1", "upright", "text"], "batch_video": ["video", "img2", "dialogue", "word"]}


def _legacy(config: Config) -> None:
    """As published, for transformers 5; layers with an indexer are called full ones."""
    config["vision_config"]["model_type"] += "_vision"
    text = config["text_config"]
    text["layer_types"] = [kind.replace("indexed", "full") for kind in text["layer_types"]]


def _mlx(tensors: Tensors) -> Tensors:
    """Some of the text decoder's layers joined; latent keys and values by head."""
    out = switch_experts(renamed(tensors, *MLX_NAMES))
    for name in [name for name in out if name.startswith("language_model.")]:
        tensor = out.pop(name)
        if name.endswith("kv_b_proj.weight"):
            stem, heads = name.removesuffix("kv_b_proj.weight"), tensor.reshape(2, -1, 16)
            out[f"{stem}embed_q.weight"] = swap(heads[:, :16], 1, 2)
            out[f"{stem}unembed_out.weight"] = np.ascontiguousarray(heads[:, 16:])
            continue
        out[re.sub(r"\.hc_(attn|ffn)_", r".\1_hc.", name)] = tensor
    for first in [name for name in out if re.fullmatch(FIRST, name)]:
        _join(out, first)
    return channels_last(out)


def _join(tensors: Tensors, first: str) -> None:
    stem, name, _ = first.rsplit(".", 2)
    whole, parts = JOINED[name]
    rows = [tensors.pop(f"{stem}.{part}.weight") for part in parts]
    tensors[f"{stem}.{whole}.weight"] = np.concatenate(rows)


KIT = ProcessorKit("glm5_next", processor, image_pixels, video_pixels)
RECIPES = {"glm5_next": Recipe(_config, TOKENIZER, CASES, BATCHES, KIT, RULES, mlx=_mlx, legacy=_legacy)}
