"""Checkpoint folders of the reference families, in each layout that they are published in.

"v5" is what transformers 5 saves, "hub" what the Hub's originals (transformers 4.x) hold, "mlx" what conversions for
MLX hold. All three are made from the names, shapes and configuration of "v5" by renaming, transposing and moving keys.
"""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors.numpy import save_file

from .weights import Tensors, draw

Layout = Literal["hub", "mlx", "v5"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
REFERENCE = Path(__file__).parent / "reference"
Config = dict[str, Any]


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def family_tensors(family: str) -> Tensors:
    """The family's weights under the names that transformers 5 saves."""
    record = read_json(REFERENCE / family / "cases.json")
    shapes = {name: tuple(shape) for name, shape in read_json(REFERENCE / family / "shapes.json").items()}
    return draw(shapes, record["seed"], [tuple(rule) for rule in record["rules"]])


def write_checkpoint(family: str, layout: Layout, folder: Path) -> Path:
    """Write the checkpoint of a family of `reference/` into `folder` and return it."""
    record = read_json(REFERENCE / family / "cases.json")
    config = read_json(REFERENCE / family / "config.json")
    return assemble(config, family_tensors(family), record["tokenizer"], record["processor"], layout, folder)


def assemble(
    config: Config, tensors: Tensors, tokenizer: str, processor: str | None, layout: Layout, folder: Path
) -> Path:
    """A checkpoint from its parts: `config` and `tensors` as transformers 5 saves them, the others named kits."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(REFERENCE / "tokenizers" / tokenizer, layout, folder, template_apart=processor is not None)
    if processor:
        _write_processor(REFERENCE / "processors" / processor, layout, folder)
    write_json(folder / "config.json", config if layout == "v5" else hub_config(config))
    text = config.get("text_config", config)
    ids = {key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if text.get(key) is not None}
    write_json(folder / "generation_config.json", ids)
    family = config["model_type"]
    if layout == "hub":
        _write_shards(_hub_tensors(family, tensors), folder)
    elif layout == "mlx":
        save_file(_mlx_tensors(family, tensors), folder / "model.safetensors", metadata={"format": "mlx"})
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# Tensors


def _write_shards(tensors: Tensors, folder: Path) -> None:
    """Two shards and their index, as large checkpoints come."""
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map = {}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(half, file))
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _hub_tensors(family: str, tensors: Tensors) -> Tensors:
    if family == "qwen3_vl_moe":  # experts (E, in, out) and not (E, out, in)
        return {name: _swap(tensor, 1, 2) if ".experts." in name else tensor for name, tensor in tensors.items()}
    return tensors


def _mlx_tensors(family: str, tensors: Tensors) -> Tensors:
    """Renamed as in MLX's conversions: channels last in convolutions, one stack of experts per projection."""
    if family in ("qwen3_vl", "qwen3_vl_moe"):
        tensors = {_rename_qwen3_vl(name): tensor for name, tensor in tensors.items()}
    if family in ("qwen3_vl_moe", "qwen3_moe"):
        tensors = _switch_experts(tensors)
    return {name: _channels_last(name, tensor) for name, tensor in tensors.items()}


def _rename_qwen3_vl(name: str) -> str:
    name = name.replace("model.language_model.", "language_model.model.", 1)
    name = name.replace("model.visual.", "vision_tower.", 1)
    return f"language_model.{name}" if name.startswith("lm_head.") else name


def _channels_last(name: str, tensor: np.ndarray) -> np.ndarray:
    if re.search(r"patch_embed\.proj\.weight$|\.conv\.conv\.weight$", name):  # (out, in, *kernel)
        return np.ascontiguousarray(np.moveaxis(tensor, 1, -1))
    return tensor


def _switch_experts(tensors: Tensors) -> Tensors:
    """`switch_mlp.{gate,up,down}_proj.weight` (E, out, in) from fused experts or from experts saved one by one."""
    out: Tensors = {}
    single: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        stem, is_expert, rest = name.partition(".experts.")
        if not is_expert:
            out[name] = tensor
        elif rest == "gate_up_proj":
            gate, up = np.split(tensor, 2, axis=1)
            out[f"{stem}.switch_mlp.gate_proj.weight"] = np.ascontiguousarray(gate)
            out[f"{stem}.switch_mlp.up_proj.weight"] = np.ascontiguousarray(up)
        elif rest == "down_proj":
            out[f"{stem}.switch_mlp.down_proj.weight"] = tensor
        else:
            number, projection = rest.split(".", 1)
            single.setdefault(f"{stem}.switch_mlp.{projection}", {})[int(number)] = tensor
    return out | {name: np.stack([experts[i] for i in sorted(experts)]) for name, experts in single.items()}


def _swap(tensor: np.ndarray, first: int, second: int) -> np.ndarray:
    return np.ascontiguousarray(np.swapaxes(tensor, first, second))


# Configuration


def hub_config(config: Config) -> Config:
    """config.json as transformers 4.x wrote it, from what transformers 5 writes."""
    config = copy.deepcopy(config)
    config["transformers_version"] = "4.57.0"
    vision = config.get("vision_config")
    if vision:
        vision["model_type"] = vision["model_type"].removesuffix("_vision")
        vision.pop("rope_parameters", None)
    for part in filter(None, (config, config.get("text_config"), vision)):
        if "dtype" in part:
            part["torch_dtype"] = part.pop("dtype")
        if "num_local_experts" in part:
            part["num_experts"] = part.pop("num_local_experts")
        _legacy_rope(part)
    if config["model_type"] in _LEGACY:
        _LEGACY[config["model_type"]](config)
    return config


def _legacy_rope(part: Config) -> None:
    """`rope_parameters` apart into `rope_theta` and `rope_scaling`, and `rope_local_base_freq` of sliding layers."""
    rope = part.pop("rope_parameters", None)
    if rope is None:
        return
    if "full_attention" in rope:
        part["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    part["rope_theta"] = rope.pop("rope_theta")
    part["rope_scaling"] = None if rope == {"rope_type": "default"} else rope


def _legacy_gemma3_text(config: Config) -> None:
    config["sliding_window_pattern"] = config.pop("layer_types").index("full_attention") + 1
    config.pop("_sliding_window_pattern", None)


def _legacy_lfm2(config: Config) -> None:
    width = config["hidden_size"]
    attention = [i for i, kind in enumerate(config.pop("layer_types")) if kind == "full_attention"]
    config.update(
        block_dim=width,
        block_ff_dim=config.pop("intermediate_size"),
        block_norm_eps=config["norm_eps"],
        block_use_swiglu=True,
        conv_dim=width,
        conv_dim_out=width,
        full_attn_idxs=attention,
        num_heads=config["num_attention_heads"],
    )


_LEGACY: dict[str, Callable[[Config], None]] = {"gemma3_text": _legacy_gemma3_text, "lfm2": _legacy_lfm2}


# Tokenizer and processor


def _write_tokenizer(kit: Path, layout: Layout, folder: Path, template_apart: bool) -> None:
    """One byte-pair model serves every kit; a kit adds its special tokens, post-processor and template.

    The template lies in its own .jinja file, or in the Hub's older ways: in tokenizer_config.json, or where the model
    has a processor (`template_apart`) in chat_template.json.
    """
    tokenizer = read_json(kit / "tokenizer.json")
    tokenizer["model"] = read_json(kit.parent / "bpe.json")
    write_json(folder / "tokenizer.json", tokenizer)
    config = read_json(kit / "tokenizer_config.json")
    template = (kit / "chat_template.jinja").read_text(encoding="utf-8")
    if layout != "v5":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.pop("backend", None)
        added = tokenizer["added_tokens"]
        config["added_tokens_decoder"] = {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        }
    if layout == "hub" and template_apart:
        write_json(folder / "chat_template.json", {"chat_template": template})
    elif layout == "hub":
        config["chat_template"] = template
    else:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)


def _write_processor(kit: Path, layout: Layout, folder: Path) -> None:
    """Nested in one file by transformers 5, one flat file per kind before."""
    nested = read_json(kit / "processor_config.json")
    if layout == "v5":
        write_json(folder / "processor_config.json", nested)
        return
    for kind, file in (("image_processor", "preprocessor_config"), ("video_processor", "video_preprocessor_config")):
        if kind in nested:
            write_json(folder / f"{file}.json", nested[kind] | {"processor_class": nested["processor_class"]})
