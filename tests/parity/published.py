"""Checkpoints of the references' families as people publish them and other packages expect them.

What layouts.py writes is enough for transformers and this package. Other packages need more: settings that every
published checkpoint has, and sizes that fit published ones only.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from .layouts import REFERENCE, Layout, assemble, read_json, write_json
from .recipe import Config, as_they_are
from .recipes import recipes
from .weights import Tensors, draw

FIRST_RELEASE: dict[str, Layout] = {"internvl": "mlx", "internvl_phi3": "mlx", "internvl_qwen3": "mlx"}
"""Published by their authors as `internvl_chat`, whose names and configuration conversions for MLX keep."""

GEMMA = {72: 128, 451: 512, 455: 512}
LARGER = {
    **dict.fromkeys(("gemma3", "gemma3_text", "gemma4", "gemma4_moe", "paligemma", "paligemma2"), GEMMA),
    "qwen4_exp": {453: 512},
    "smolvlm": {64: 128, 2: 4},
}
"""Sizes in the place of others: rows that divide into groups, heads as wide as hidden size / heads (Gemma 1, SmolVLM),
vocabularies that make every table's size a multiple of 64. The root of 128 still shows in rounded embeddings."""
_RESIZED = ("hidden_size", "vocab_size", "vocab_size_per_layer_input", "projection_dim", "num_key_value_heads")


def publish(family: str, folder: Path) -> None:
    """Write into a checkpoint the settings that published ones have and this package does not read, and those whose
    default in the other package fits the sizes of published checkpoints and not of these tiny ones."""
    if kit := read_json(REFERENCE / family / "cases.json")["processor"]:
        nested = read_json(REFERENCE / "processors" / kit / "processor_config.json")
        flat = {key: value for key, value in nested.items() if not isinstance(value, dict)}
        write_json(folder / "processor_config.json", flat)
    config = read_json(folder / "config.json")
    match family:
        case "gemma3":
            config["text_config"]["mm_tokens_per_image"] = config["mm_tokens_per_image"]
        case "gemma4_unified":
            vision = config["vision_config"]
            vision["model_patch_size"] = vision["patch_size"] * vision["pooling_kernel_size"]
        case "glm4v_moe":
            config["text_config"]["use_qk_norm"] = False
        case "internvl" | "internvl_qwen3":
            config["image_token_index"] = read_json(REFERENCE / family / "config.json")["image_token_id"]
        case "kimi_k25":
            config["media_placeholder_token_id"] = config["image_token_id"]
            config["vision_config"] |= {
                "model_type": "moonvit", "depth": 3, "embed_dim": 48, "hidden_size": 48, "num_heads": 4,
                "intermediate_size": 80, "init_pos_emb_height": 6, "init_pos_emb_width": 6,
            }  # fmt: skip
        case "llava_next":
            config["text_config"] |= {"rms_norm_eps": 1e-6, "rope_theta": 1e4}
        case "molmo2":  # of published ones the other package knows how many layers they hold
            config["vit_config"]["num_hidden_layers"], config["adapter_config"]["vit_layers"] = 3, [-1, -3]
        case "pixtral":
            config["model_type"] = "pixtral"
        case "qwen3_5":
            config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"]
        case "smolvlm":
            config["vision_config"]["model_type"] = "smolvlm_vision"
    write_json(folder / "config.json", config)


def published_parts(family: str) -> tuple[Config, Tensors]:
    """Configuration and weights as transformers 5 saves them, of sizes that published checkpoints have alike."""
    record = read_json(REFERENCE / family / "cases.json")
    config = read_json(REFERENCE / family / "config.json")
    sizes = LARGER.get(family, {})
    shapes = {
        name: tuple(sizes.get(size, size) for size in shape)
        for name, shape in read_json(REFERENCE / family / "shapes.json").items()
    }
    drawn = draw(shapes, record["seed"], [tuple(rule) for rule in record["rules"]])
    return _resized(config, sizes), drawn | recipes()[family].buffers


def _resized(config: Config, sizes: dict[int, int]) -> Config:
    def value(key: str, old: Any) -> Any:
        if isinstance(old, dict):
            return _resized(old, sizes)
        return sizes.get(old, old) if key in _RESIZED else old

    return {key: value(key, old) for key, old in config.items()}


def write_published(family: str, folder: Path) -> Path:
    """Write the result of `published_parts` in the form of the Hub's originals, and return the folder."""
    config, tensors = published_parts(family)
    layout = FIRST_RELEASE.get(family, cast(Layout, "hub"))
    assemble(recipes()[family], config, tensors, layout, folder)
    publish(family, folder)
    return folder


def write_internvl_of_transformers(family: str, folder: Path) -> Path:
    """InternVL as transformers 4 saved it: its configuration, and the names that transformers 5 has, too."""
    config, tensors = published_parts(family)
    recipe = replace(recipes()[family], hub=as_they_are)
    assemble(recipe, config, tensors, "hub", folder)
    publish(family, folder)
    return folder
