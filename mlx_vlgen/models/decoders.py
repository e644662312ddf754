"""Text decoders, one record each: what a configuration means to transformers, what mlx-lm's decoder would
leave out of it, and what happens to embeddings and logits outside of the layers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from .._mlx_lm import initialize_rope, text_decoder
from .._runtime import mx, nn
from ..errors import LoadError
from . import configuration, refusals
from .configuration import Arguments, flat_rope, rope_type, yarn_settings
from .gemma import Gemma, scale_embeddings, softcap
from .text_attention import avoid_exp

Refusals = Callable[[Mapping[str, Any]], Sequence[str | None]]
Scale = Callable[[mx.array, Arguments], mx.array]


def mlx_lm_decoder(args: Arguments) -> nn.Module:
    """mlx-lm's `Model` with these arguments, and with our functions where MLX's exp is slow."""
    decoder, arguments = text_decoder(args)
    network: nn.Module = decoder(arguments.from_dict(args))
    avoid_exp(network)
    return network


def _qwen3_moe_decoder(args: Arguments) -> nn.Module:
    """mlx-lm's passes over `rope_scaling`."""
    decoder, scaling = mlx_lm_decoder(args), args.get("rope_scaling")
    if not refusals.is_plain(scaling):
        rope = initialize_rope(args["head_dim"], args["rope_theta"], False, scaling, args["max_position_embeddings"])
        for layer in decoder.layers:
            layer.self_attn.rope = rope
    return decoder


def _mistral_decoder(args: Arguments) -> nn.Module:
    """mlx-lm's wants a full layer beside sliding ones; Mistral's are all of one kind."""
    decoder = mlx_lm_decoder({key: value for key, value in args.items() if key != "layer_types"})
    for layer in decoder.layers:
        layer.use_sliding = "layer_types" in args
    return decoder


def _hunyuan_vl_decoder(args: Arguments) -> nn.Module:
    """mlx-lm's dense Hunyuan; its family brings the rotary module."""
    return mlx_lm_decoder(args | {"model_type": "hunyuan_v1_dense", "rope_scaling": None, "use_qk_norm": True})


def _gemma4_unified_decoder(args: Arguments) -> nn.Module:
    return mlx_lm_decoder(args | {"model_type": "gemma4_text"})


def _kimi_k2_decoder(args: Arguments) -> nn.Module:
    """mlx-lm's of DeepSeek-V3, whose attention adds what positions give to other scores, and so is none of ours. How
    much sharper YaRN makes it is left to us: `rope_scaling` says it for the rotated values only."""
    decoder, arguments = text_decoder(args)
    network: nn.Module = decoder(arguments.from_dict(args))
    scaling = args.get("rope_scaling") or {}
    if growth := scaling.get("mscale_of_scores"):
        sharper = 1 + 0.1 * growth * math.log(max(scaling["factor"], 1.0))
        for layer in network.layers:
            layer.self_attn.scale *= sharper**2
    return network


def _muse_glimmer_decoder(args: Arguments) -> nn.Module:
    """mlx-lm knows it by its family's name."""
    return mlx_lm_decoder(args | {"model_type": "muse_glimmer"})


def _unscaled(x: mx.array, args: Arguments) -> mx.array:
    return x


def _nowhere(args: Arguments) -> int | None:
    return None


@dataclass(frozen=True)
class Decoder:
    """One text decoder. Its functions take its arguments as `text_arguments` gives them.

    refusals: what of the arguments the network would silently leave out; None where it does not.
    defaults: what transformers assumes where config.json is silent and mlx-lm assumes something else or nothing.
    read: what its configuration says in another way; see `configuration`.
    network: makes the decoder, with `model` (embed_tokens, layers, norm) and perhaps lm_head; default mlx-lm's.
    scale_tokens: embeddings (..., d) of tokens as they go beside features of media, which are not scaled.
    scale_inputs: tokens' embeddings and features (..., d) alike, as they go into the first layer.
    scale_logits: logits (..., V) as the output layer gives them.
    extra_inputs: what layers take between the states (B, L, d) and the mask; offset: an int or (B,), where these begin;
    variant: that of all rows.
    mask_arrays: whether they take no name of a mask.
    switch: up to how many positions it computes a row in one way and beyond them in another; None where in one only.
    """

    refusals: Refusals
    defaults: Mapping[str, Any]
    read: Callable[[Arguments], None] = configuration.read_nothing
    network: Callable[[Arguments], nn.Module] = mlx_lm_decoder
    scale_tokens: Scale = _unscaled
    scale_inputs: Scale = _unscaled
    scale_logits: Scale = _unscaled
    extra_inputs: Callable[[Arguments, mx.array, Any, int], tuple[Any, ...]] | None = None
    mask_arrays: bool = False
    switch: Callable[[Arguments], int | None] = _nowhere


def text_arguments(config: Mapping[str, Any]) -> Arguments:
    """A text decoder's config.json under the names of transformers 4.x, which mlx-lm reads, whichever version wrote it.

    LoadError where the configuration asks for what the decoder here would silently leave out.
    """
    model_type = config["model_type"]
    record = record_of(model_type)
    args = dict(record.defaults if record else {}) | dict(config)
    flat_rope(args)
    if "num_local_experts" in args:
        args.setdefault("num_experts", args["num_local_experts"])
    if record is None:
        return args
    match rope_type(args.get("rope_scaling") or {}):
        case "dynamic":  # changes nothing within max_position_embeddings, and mlx-lm's takes no batch
            args["rope_scaling"] = None
        case "yarn":
            args["rope_scaling"] = yarn_settings(args["rope_scaling"], args)
    record.read(args)
    if reason := next((reason for reason in record.refusals(args) if reason), None):
        raise LoadError(f"This {model_type} checkpoint has {reason}, which its decoder here does not compute.")
    return args


# How embeddings and logits are scaled.


def root_of_width(x: mx.array, args: Arguments) -> mx.array:
    return scale_embeddings(x)


def _multiplied(x: mx.array, args: Arguments) -> mx.array:
    return x * args["embedding_multiplier"]


def _divided(x: mx.array, args: Arguments) -> mx.array:
    return x / args["logits_scaling"]


def _scaled_logits(x: mx.array, args: Arguments) -> mx.array:
    return x * args["logit_scale"]


def softcapped(x: mx.array, args: Arguments) -> mx.array:
    return softcap(x, args["final_logit_softcapping"])


def _of_one_length(x: mx.array, args: Arguments) -> mx.array:
    return mx.fast.rms_norm(x, None, args["rms_norm_eps"])


def _muse_logits(x: mx.array, args: Arguments) -> mx.array:
    return softcap(x * args["output_multiplier"], args["final_logit_softcapping"])


def _query_scale(args: Arguments, h: mx.array, offset: Any, variant: int) -> tuple[mx.array]:
    """What Ministral 3 multiplies queries by, so that attention stays sharp far from the start: (B or 1, 1, L, 1)."""
    rope = args["rope_parameters"]
    position = mx.array(offset).reshape(-1, 1) + mx.arange(h.shape[1])
    blocks = mx.floor(position / rope["original_max_position_embeddings"])
    scale = 1 + rope["llama_4_scaling_beta"] * mx.log(1 + blocks)
    return (scale[:, None, :, None].astype(h.dtype),)


_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}  # fmt: skip
_MISTRAL = _LLAMA | {
    "intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096,
}  # fmt: skip
_QWEN2 = _LLAMA | {
    "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768, "num_key_value_heads": 32,
    "rope_theta": 1e4,
}  # fmt: skip
_QWEN3_MOE = {
    "tie_word_embeddings": False, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False,
}  # fmt: skip
_GRANITE = _LLAMA | {
    "intermediate_size": 11008, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False,
    "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0,
    "rope_theta": 1e4,
}  # fmt: skip
_COHERE2 = {
    "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40, "num_attention_heads": 64,
    "num_key_value_heads": None, "sliding_window": 4096, "rope_theta": 1e4, "logit_scale": 0.0625,
}  # fmt: skip
_HUNYUAN = _LLAMA | {
    "vocab_size": 290943, "intermediate_size": 11008, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
}  # fmt: skip
_LFM2 = {
    "vocab_size": 65536, "max_position_embeddings": 128000, "norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3,
    "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True,
}  # fmt: skip
_DEEPSEEK = _LLAMA | {
    "vocab_size": 102400, "intermediate_size": 11008, "max_position_embeddings": 2048, "rope_theta": 1e4,
    "first_k_dense_replace": 0, "n_shared_experts": 2, "num_experts_per_tok": None, "num_key_value_heads": None,
    "moe_intermediate_size": 1407,
}  # fmt: skip
_KIMI_K2 = _LLAMA | {
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1,
    "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "qk_nope_head_dim": 128, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
    "norm_topk_prob": True, "max_position_embeddings": 4096, "rope_theta": 1e4,
}  # fmt: skip
_MUSE_GLIMMER = {
    "vocab_size": 202_048, "hidden_size": 6656, "intermediate_size": 19968, "num_hidden_layers": 52,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5, "post_norm_eps": 1e-8, "sliding_window": 2048, "rope_theta": 1e4, "qk_scale_factor": 3.87,
    "output_multiplier": 0.19611613513818404, "final_logit_softcapping": 20.0, "tie_word_embeddings": False,
}  # fmt: skip
_GEMMA2 = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256, "sliding_window": 4096,
}  # fmt: skip
_GEMMA = _GEMMA2 | {
    "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 16,
}  # fmt: skip
_GEMMA4 = _GEMMA2 | {
    "vocab_size": 262144, "num_hidden_layers": 30, "sliding_window": 512, "final_logit_softcapping": None,
    "num_kv_shared_layers": 0, "use_double_wide_mlp": False,
}  # fmt: skip
_GEMMA4_UNIFIED = _GEMMA4 | {"hidden_size_per_layer_input": 0, "sliding_window": 1024}

_ERNIE4_5 = {
    "vocab_size": 103424, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18,
    "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
    "max_position_embeddings": 131072, "use_bias": False, "tie_word_embeddings": True,
}  # fmt: skip

_QWEN3_5 = Decoder(refusals.qwen3_5, {}, configuration.read_qwen3_5)

DECODERS: dict[str, Decoder] = {
    "llama": Decoder(refusals.llama, _LLAMA | {"intermediate_size": 11008, "max_position_embeddings": 2048}),
    "mistral": Decoder(refusals.mistral, _MISTRAL, network=_mistral_decoder),
    "qwen2": Decoder(refusals.qwen, _QWEN2),
    "qwen3": Decoder(refusals.qwen, {"tie_word_embeddings": False}),
    "qwen3_moe": Decoder(refusals.qwen, _QWEN3_MOE, configuration.read_qwen3_moe, _qwen3_moe_decoder),
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
    "ministral3": Decoder(
        refusals.ministral3,
        {"head_dim": 128, "max_position_embeddings": 262144, "tie_word_embeddings": False},
        extra_inputs=_query_scale,
    ),
    "granite": Decoder(
        refusals.granite, _GRANITE, configuration.read_granite, scale_inputs=_multiplied, scale_logits=_divided
    ),
    "cohere2": Decoder(refusals.cohere2, _COHERE2, configuration.read_cohere2, scale_logits=_scaled_logits),
    "lfm2": Decoder(refusals.lfm2, _LFM2, configuration.read_lfm2),
    "gemma": Decoder(refusals.gemma, _GEMMA, network=Gemma, scale_tokens=root_of_width),
    "gemma2": Decoder(
        refusals.gemma,
        _GEMMA2 | {"final_logit_softcapping": 30.0},
        network=Gemma,
        scale_tokens=root_of_width,
        scale_logits=softcapped,
    ),
    "gemma3_text": Decoder(
        refusals.gemma3, _GEMMA2 | {"vocab_size": 262208}, configuration.read_gemma3, scale_tokens=root_of_width
    ),
    "gemma4_text": Decoder(
        refusals.gemma4, _GEMMA4, configuration.read_gemma4, scale_tokens=root_of_width, scale_logits=softcapped
    ),
    "gemma4_unified_text": Decoder(
        refusals.gemma4,
        _GEMMA4_UNIFIED,
        configuration.read_gemma4,
        _gemma4_unified_decoder,
        scale_tokens=root_of_width,
        scale_logits=softcapped,
    ),
    "ernie4_5": Decoder(refusals.ernie4_5, _ERNIE4_5),
    "deepseek": Decoder(refusals.deepseek, _DEEPSEEK, configuration.read_deepseek),
    "hunyuan_vl_text": Decoder(refusals.hunyuan, _HUNYUAN, configuration.read_granite, network=_hunyuan_vl_decoder),
    "kimi_k2": Decoder(refusals.kimi_k2, _KIMI_K2, configuration.read_deepseek, _kimi_k2_decoder, mask_arrays=True),
    "glm4": Decoder(refusals.glm4, {}),
    "muse_glimmer_text": Decoder(
        refusals.muse_glimmer,
        _MUSE_GLIMMER,
        configuration.read_muse_glimmer,
        _muse_glimmer_decoder,
        scale_tokens=_of_one_length,
        scale_logits=_muse_logits,
    ),
    "glm4_moe": Decoder(refusals.glm4_moe, {}),
}

_OURS = {
    "gemma3n_text": "gemma3n_text", "glm5_next_text": "glm5_next_text", "lfm3": "lfm3", "llama4_text": "llama4_text",
    "molmo2_text": "molmo2_text", "phi3": "phi3_text", "phi4_multimodal": "phi4_text",
    "qwen4_exp_text": "qwen4_exp_text",
}  # fmt: skip
"""Modules of networks that mlx-lm has not, each with its record as DECODER: imported for a checkpoint that asks."""


def record_of(model_type: str) -> Decoder | None:
    """None for a decoder of mlx-lm without one."""
    if module := _OURS.get(model_type):
        record: Decoder = import_module(f".{module}", __package__).DECODER
        return record
    return DECODERS.get(model_type)


_RUN_BY_FAMILIES = (
    "gemma3n_text", "gemma4_text", "gemma4_unified_text", "glm5_next_text", "phi4_multimodal", "qwen4_exp_text",
)  # fmt: skip
DRIVEN = tuple(name for name in (*DECODERS, *_OURS) if name not in _RUN_BY_FAMILIES)
"""Those whose layers `backbone.decode` runs; those of Gemma 3n and 4 share keys, Phi-4's take adapters, others have
several streams."""
