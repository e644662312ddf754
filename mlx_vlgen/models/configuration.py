"""Typed parts of a config.json; text configurations of every release of transformers, under the names of its release
4, which mlx-lm reads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from ..errors import LoadError

Config = Mapping[str, Any]
Arguments = dict[str, Any]


@dataclass(frozen=True)
class BaseConfig:
    """A part of a config.json, with transformers' names, and its defaults for fields that are left out."""

    old_names: ClassVar[Mapping[str, str]] = {}
    """Names of earlier releases -> fields."""

    @classmethod
    def from_dict(cls, values: Config) -> Self:
        """Takes the fields that it has; others are ignored."""
        renamed = {cls.old_names.get(name, name): value for name, value in values.items()}
        return cls(**{field.name: renamed[field.name] for field in fields(cls) if field.name in renamed})

    @classmethod
    def complete(cls, values: Config) -> Arguments:
        """All of `values`, and the defaults of the fields that they leave out: what mlx-lm's decoders take."""
        return {field.name: field.default for field in fields(cls)} | dict(values)


def thinker_config(config: Config) -> Config:
    """Of a model that also speaks, the part that reads and writes text; of any other the whole."""
    nested: Config = config.get("thinker_config", config)
    return nested


def text_config(config: Config) -> Config:
    """The text decoder's part of a config.json: nested, as most have it, or among the model's fields."""
    config = thinker_config(config)
    nested: Config | None = config.get("text_config") or config.get("llm_config")
    return config if nested is None else nested


def phi4_config(config: Config) -> Arguments:
    """Phi-4 multimodal's as transformers writes it, where it may be that of the first release, with remote code."""
    full = {"vision_config": {}, "audio_config": {}} | dict(config) | {"model_type": "phi4_multimodal"}
    if "embd_layer" not in config:
        return full
    layers, audio = config["embd_layer"], dict(config["audio_processor"]["config"])
    new_names = {
        "attention_dim": "hidden_size", "attention_heads": "num_attention_heads", "linear_units": "intermediate_size",
        "depthwise_seperable_out_channel": "depthwise_separable_out_channel",
    }  # fmt: skip
    audio = {new_names.get(name, name): value for name, value in audio.items()}
    audio["nemo_conv_channels"] = audio["nemo_conv_settings"]["conv_channels"]
    audio["bias_max_distance"] = audio["relative_attention_bias_args"]["t5_bias_max_distance"]
    audio["downsample_rate"] = layers["audio_embd_layer"].get("downsample_rate", 1)
    vision = {"crop_size": layers["image_embd_layer"].get("crop_size", 448)} | full["vision_config"]
    return full | {"vision_config": vision, "audio_config": audio}


def max_positions(config: Config) -> int | None:
    """How many positions the model of a config.json was made for; None where it does not say. YaRN stretches them."""
    text = text_config(config)
    stated: int | None = text.get("max_position_embeddings")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if stated is None or rope_type(rope) != "yarn":
        return stated
    settings = yarn_settings(rope, text)
    return max(stated, int(settings["factor"] * settings["original_max_position_embeddings"]))


def rope_type(rope: Config) -> str:
    """Of a `rope_parameters` or `rope_scaling` of any release."""
    kind: str = rope.get("rope_type") or rope.get("type") or "default"
    return kind


def flat_rope(args: Arguments) -> None:
    """`rope_parameters` that are the same for all layers, as `rope_theta`, `partial_rotary_factor` and `rope_scaling`;
    changes `args` in place."""
    rope = args.get("rope_parameters") or {}
    if rope and not {"full_attention", "sliding_attention"} & rope.keys():
        args |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        if rope.get("rope_type", "default") != "default":
            args["rope_scaling"] = rope


def with_rope(text: Config, theta: float) -> Arguments:
    """A text configuration with its rotary settings as `rope_theta` and `rope_scaling`, whichever release wrote it, for
    M-RoPE. theta: the base that transformers assumes where it is silent."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope_type(rope)
    if kind not in ("default", "mrope", "yarn"):
        raise LoadError(f"This checkpoint asks for rotary positions of the type {kind!r}, which are not computed here.")
    others = {key: value for key, value in text.items() if key != "rope_parameters"}
    rope = yarn_settings(rope, text) if kind == "yarn" else rope
    return others | {"rope_theta": text.get("rope_theta", rope.get("rope_theta", theta)), "rope_scaling": rope}


def yarn_settings(rope: Config, text: Config) -> Arguments:
    """YaRN's settings, complete: what they leave out is what transformers assumes. `mscale` alone says by how much
    rotated values grow, which there `attention_factor` may say, too: a factor m makes it 1 + 0.1 m ln(factor).

    Source: Peng et al. 2023 (arXiv 2309.00071), section 3.4; transformers' `_compute_yarn_parameters`.
    """
    if not rope.get("truncate", True):
        raise LoadError("This checkpoint asks for a YaRN with truncate = false, which is not computed here.")
    factor = rope.get("factor")
    original = rope.get("original_max_position_embeddings") or text.get("max_position_embeddings")
    if factor is None or original is None:
        lacks = "factor" if factor is None else "original_max_position_embeddings"
        raise LoadError(f"This checkpoint asks for rotary positions of the type 'yarn' and gives no {lacks}.")
    growth = 0.1 * math.log(max(factor, 1.0))
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    scale = (1 + growth * mscale) / (1 + growth * all_dim) if mscale and all_dim else 1 + growth
    scale = scale if rope.get("attention_factor") is None else rope["attention_factor"]
    if growth == 0 and scale != 1:
        raise LoadError(f"This checkpoint asks for a YaRN of factor {factor} with attention_factor = {scale}.")
    return {**rope, "rope_type": "yarn", "type": "yarn", "factor": factor} | {
        "original_max_position_embeddings": original,
        "beta_fast": rope.get("beta_fast") or 32,
        "beta_slow": rope.get("beta_slow") or 1,
        "mscale": (scale - 1) / growth if growth else 1.0,
        "mscale_all_dim": 0,
        "mscale_of_scores": all_dim,  # of latent attention only, whatever attention_factor says
    }


# What single decoders' configurations say in another way; each changes `args` in place.


def read_nothing(args: Arguments) -> None:
    pass


def read_qwen3_moe(args: Arguments) -> None:
    args.setdefault("head_dim", args["hidden_size"] // args["num_attention_heads"])


def read_qwen3_5(args: Arguments) -> None:
    if "full_attention" in (layer_types := args.get("layer_types") or ()):
        args["full_attention_interval"] = layer_types.index("full_attention") + 1


def read_indexed(args: Arguments) -> None:
    """Layers that are called "full_attention" have an indexer, too."""
    if args.get("layer_types"):
        args["layer_types"] = [kind.replace("full_", "indexed_") for kind in args["layer_types"]]


def read_deepseek(args: Arguments) -> None:
    read_granite(args)
    args.setdefault("n_routed_experts", args.get("num_experts"))
    if layer_types := args.get("mlp_layer_types"):
        args["first_k_dense_replace"] = [*layer_types, "sparse"].index("sparse")


def read_lfm2(args: Arguments) -> None:
    args.setdefault("block_dim", args["hidden_size"])


def read_muse_glimmer(args: Arguments) -> None:
    """Every fourth layer, from the last one back, attends to all tokens and has no rotary positions."""
    last = args["num_hidden_layers"] - 1
    full = [(last - index) % 4 == 0 for index in range(last + 1)]
    if args.get("layer_types") is None:
        args["layer_types"] = ["full_attention" if is_full else "sliding_attention" for is_full in full]
    if args.get("layer_rope_theta") is None:
        args["layer_rope_theta"] = [0 if is_full else args["rope_theta"] for is_full in full]


def read_granite(args: Arguments) -> None:
    if args.get("num_key_value_heads") is None:
        args["num_key_value_heads"] = args["num_attention_heads"]


def read_cohere2(args: Arguments) -> None:
    read_granite(args)
    args["head_dim"] = args["hidden_size"] // args["num_attention_heads"]
    if "full_attention" in (layer_types := args.get("layer_types") or ()):
        args["sliding_window_pattern"] = layer_types.index("full_attention") + 1


def read_gemma3(args: Arguments) -> None:
    rope = args.get("rope_parameters") or {}
    if full := rope.get("full_attention"):
        args["rope_theta"] = full["rope_theta"]
        if full.get("rope_type", "default") != "default":
            args["rope_scaling"] = full
    if sliding := rope.get("sliding_attention"):
        args["rope_local_base_freq"] = sliding["rope_theta"]
    layer_types = args.get("layer_types")
    if layer_types and "full_attention" in layer_types:
        args["sliding_window_pattern"] = layer_types.index("full_attention") + 1
    elif "_sliding_window_pattern" in args:
        args.setdefault("sliding_window_pattern", args["_sliding_window_pattern"])


def read_gemma4(args: Arguments) -> None:
    count = args["num_hidden_layers"]
    default = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(count)]
    args["layer_types"] = [*(args.get("layer_types") or default)[:-1], "full_attention"]
    if layers := args.get("per_layer_config"):
        full = layers.get(str(count - 1), {})
        args["global_head_dim"] = full.get("head_dim", args["head_dim"])
        args["num_global_key_value_heads"] = full.get("num_key_value_heads")
