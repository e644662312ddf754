"""Checkpoint folders of the reference families, in each layout that they are published in.

"v5" is what transformers 5 saves, "hub" what the Hub's originals (transformers 4.x) hold, "mlx" what conversions for
MLX hold. All three are made from the names, shapes and configuration of "v5" by renaming, transposing and moving keys.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.numpy import save_file

from .recipe import Config, Recipe
from .recipes import recipes
from .weights import Tensors, draw

Layout = Literal["hub", "mlx", "v5"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
REFERENCE = Path(__file__).parent / "reference"


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
    return draw(shapes, record["seed"], [tuple(rule) for rule in record["rules"]]) | recipes()[family].buffers


def write_checkpoint(family: str, layout: Layout, folder: Path) -> Path:
    """Write the checkpoint of a family of `reference/` into `folder` and return it."""
    config = read_json(REFERENCE / family / "config.json")
    return assemble(recipes()[family], config, family_tensors(family), layout, folder)


def assemble(recipe: Recipe, config: Config, tensors: Tensors, layout: Layout, folder: Path) -> Path:
    """A checkpoint from its parts: `config` and `tensors` as transformers 5 saves them."""
    folder.mkdir(parents=True, exist_ok=True)
    kit = REFERENCE / "tokenizers" / recipe.tokenizer.name
    _write_tokenizer(kit, layout, folder, template_apart=recipe.processor is not None)
    if recipe.processor:
        _write_processor(REFERENCE / "processors" / recipe.processor.name, layout, folder)
    write_json(folder / "config.json", layout_config(recipe, config, layout))
    text = config.get("text_config", config)
    ids = {
        key: part[key]
        for part in (text, config)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        if part.get(key) is not None
    }
    write_json(folder / "generation_config.json", ids)
    if layout == "hub":
        _write_shards(recipe.hub(tensors), folder)
    elif layout == "mlx":
        save_file(recipe.mlx(tensors), folder / "model.safetensors", metadata={"format": "mlx"})
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


# Configuration


def layout_config(recipe: Recipe, config: Config, layout: Layout) -> Config:
    """config.json in a layout, from what transformers 5 writes."""
    if layout == "v5":
        return config
    config = hub_config(config, recipe.legacy)
    if layout == "mlx":
        recipe.mlx_config(config)
    return config


def hub_config(config: Config, legacy: Callable[[Config], None]) -> Config:
    """config.json as transformers 4.x wrote it, from what transformers 5 writes; `legacy`: the family's part."""
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
    legacy(config)
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


# Tokenizer and processor


def _write_tokenizer(kit: Path, layout: Layout, folder: Path, template_apart: bool) -> None:
    """One byte-pair model serves every kit; a kit adds its special tokens, post-processor and template.

    The template lies in a .jinja file, or where the Hub had it before: in tokenizer_config.json, or where the model
    has a processor (`template_apart`) in chat_template.json.
    """
    tokenizer = read_json(kit / "tokenizer.json")
    tokenizer["model"] = read_json(kit.parent / "bpe.json")
    write_json(folder / "tokenizer.json", tokenizer)
    config = read_json(kit / "tokenizer_config.json")
    file = kit / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.exists() else None
    if layout != "v5":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.pop("backend", None)
        added = tokenizer["added_tokens"]
        config["added_tokens_decoder"] = {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        }
    if template is None:
        pass
    elif layout == "hub" and template_apart:
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
    named = {"processor_class": nested["processor_class"]}
    sound = nested.get("feature_extractor", {}) | nested.get("audio_processor", {})
    if first := sound | nested.get("image_processor", {}):
        write_json(folder / "preprocessor_config.json", first | named)
    if "video_processor" in nested:
        write_json(folder / "video_preprocessor_config.json", nested["video_processor"] | named)
