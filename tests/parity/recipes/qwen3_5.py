"""Qwen3.5, dense and mixture of experts."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..recipe import (
    EXPERTS,
    HEADS,
    MLX_NAMES,
    QWEN_ENDS,
    QWEN_SPECIALS,
    TEXT_BATCHES,
    TEXT_CASES,
    VIDEO_BATCHES,
    VIDEO_CASES,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Config,
    Ids,
    Recipe,
    TokenizerKit,
    channels_last,
    renamed,
    rope,
    swap,
    switch_experts,
)
from ..weights import Rule, Tensors
from .qwen3_vl import KIT, media_ids

# Its template is the published one (Apache-2.0), which lies in reference/tokenizers/qwen3_5.
TOKENIZER = TokenizerKit("qwen3_5", QWEN_SPECIALS, "<|im_end|>", "<|endoftext|>", template="")
NORM = r"(layernorm|q_norm|k_norm|language_model\.norm)\.weight$"
# Its RMSNorms multiply by 1 + weight, but for those of linear attention. Decays from slow to fast.
RULES: tuple[Rule, ...] = (
    (NORM, 0.0, 0.2),
    (r"A_log$", 0.0, 1.0),
    (r"dt_bias$", 0.0, 1.0),
)


def _config(name: str, tied: bool, kinds: str, rotary: Config, **text: Any) -> Callable[[Ids, int], Any]:
    """kinds: one letter a layer, l for linear and f for full attention. Value heads are more than key heads, and
    smaller."""

    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        text_config = {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": len(kinds), "head_dim": 32,
            "rms_norm_eps": 1e-6, "vocab_size": vocabulary, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 32,
            "linear_value_head_dim": 24, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "layer_types": ["linear_attention" if kind == "l" else "full_attention" for kind in kinds],
            "rope_parameters": rope(1e7, mrope_interleaved=True, **rotary),
        }  # fmt: skip
        vision_config = {
            "depth": 3, "hidden_size": 48, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 80,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 144,
        }  # fmt: skip
        return getattr(transformers, name)(
            text_config=text_config | HEADS | QWEN_ENDS(ids) | text,
            vision_config=vision_config,
            tie_word_embeddings=tied,
            **media_ids(ids),
        )

    return build


def legacy(config: Config) -> None:
    """As published: rotary settings as transformers 5 has them, what layers there are said by their interval."""
    text, vision = config["text_config"], config["vision_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    text["full_attention_interval"] = text.pop("layer_types").index("full_attention") + 1
    text |= {"attn_output_gate": True, "mamba_ssm_dtype": "float32", "mlp_only_layers": [], "mtp_num_hidden_layers": 1}
    vision["deepstack_visual_indexes"] = []


def fused_experts(tensors: Tensors) -> Tensors:
    """Experts as (E, out, in), gate and up in one."""
    out = switch_experts(tensors)
    for name in [name for name in out if name.endswith("switch_mlp.gate_proj.weight")]:
        stem = name.removesuffix(".switch_mlp.gate_proj.weight")
        gate, up, down = (out.pop(f"{stem}.switch_mlp.{part}_proj.weight") for part in ("gate", "up", "down"))
        out |= {f"{stem}.experts.gate_up_proj": np.concatenate([gate, up], axis=1), f"{stem}.experts.down_proj": down}
    return out


def hub(tensors: Tensors) -> Tensors:
    """Fused experts; beside the model, layers that guess further tokens."""
    norm = tensors["model.language_model.norm.weight"]
    return fused_experts(tensors) | {"mtp.norm.weight": norm, "mtp.layers.0.input_layernorm.weight": norm}


def mlx(tensors: Tensors) -> Tensors:
    """Convolutions over time with their channels last; norms that need nothing added."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("conv1d.weight"):
            tensor = swap(tensor, 1, 2)
        out[name] = tensor + np.float32(1) if re.search(NORM, name) else tensor
    return channels_last(switch_experts(renamed(out, *MLX_NAMES)))


def _text_config(kinds: str, rotary: Config) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        whole = _config("Qwen3_5Config", True, kinds, rotary)(ids, vocabulary)
        text = whole.text_config
        text.tie_word_embeddings = True
        return text

    return build


def text_export(config: Config) -> None:
    """As exports of the text decoder have it: under the whole model's type, and rotary settings spelled as before."""
    text = dict(config)
    rotary = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    rotary["type"] = rotary.pop("rope_type")
    text |= {"rope_parameters": rotary, "mtp_num_hidden_layers": 1}
    config.clear()
    config |= {"model_type": "qwen3_5", "text_config": text, "tie_word_embeddings": True}


def text_hub(tensors: Tensors) -> Tensors:
    """Under the whole model's names."""
    return renamed(tensors, ("model.", "model.language_model."))


# A word is shorter than the convolution over time.
CASES = {"word": Case("The")} | VISION_CASES | VIDEO_CASES
BATCHES = VISION_BATCHES | VIDEO_BATCHES | {"batch_words": ["word", "text"]}
HALF = {"mrope_section": [3, 3, 2], "partial_rotary_factor": 0.5}
QUARTER = {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 32}
TEXT_RULES = ((NORM.replace("language_model", "model"), 0.0, 0.2), *RULES[1:])
RECIPES = {
    "qwen3_5": Recipe(
        _config("Qwen3_5Config", True, "lflf", HALF),
        TOKENIZER, CASES, BATCHES, KIT, RULES, hub=hub, mlx=mlx, legacy=legacy,
    ),
    "qwen3_5_moe": Recipe(
        _config("Qwen3_5MoeConfig", False, "lllf", QUARTER, **SHARED),
        TOKENIZER, CASES, BATCHES, KIT, RULES, hub=hub, mlx=mlx, legacy=legacy,
    ),
    "qwen3_5_text": Recipe(
        _text_config("lflf", HALF), TOKENIZER, TEXT_CASES, TEXT_BATCHES, rules=TEXT_RULES,
        hub=text_hub, mlx=lambda tensors: mlx(text_hub(tensors)), legacy=text_export,
    ),
}  # fmt: skip
