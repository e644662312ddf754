"""Write what transformers makes of the configurations in configs.json, on its meta device, without weights.

    cd tests && python -m published.make_published

in the environment of parity/make_reference.py. tensors.txt has the names and shapes that transformers saves, which are
those on the Hub, and, where these differ, those of its modules, which fine-tunes have; facts.json counts, layers,
rotary frequencies and ids. The configurations of sizes.py are written into configs.json first.
"""

import json
from pathlib import Path
from typing import Any

import torch
from parity.make_reference import transformers
from transformers.core_model_loading import revert_weight_conversion

from . import sizes
from .folding import fold, write_sections

FOLDER = Path(__file__).parent
Config = dict[str, Any]
IDS = ("image_token", "video_token", "audio_token")
UNTIED = ("Mistral-Small-3.2-24B-Instruct-2506",)
"""Published with an output layer, and silent about it: transformers 5 assumes none."""
NEVER_SAVED = ("hunyuan_vl", "kimi_k25", "molmo2", "ernie4_5_vl_moe", "lfm3_vl")
"""Came with a release of transformers that saves what is on the Hub."""
DEFAULTS = (
    "llava_onevision", "fast_vlm", "molmo2", "cohere2_vision", "lighton_ocr", "paddleocr_vl", "ernie4_5_vl_moe",
    "idefics2", "qwen2_audio", "lfm3_vl", "minicpmv4_7", "glm46v", "internvl", "phi4_multimodal",
)  # fmt: skip
"""Families of whose checkpoints no configuration is at hand: the sizes that transformers' classes assume."""
OF_PROGRAMS = ("architectures", "dtype", "transformers_version", "id2label", "label2id", "_name_or_path", "use_cache")
KINDS = {
    "full_attention": "F", "sliding_attention": "S", "chunked_attention": "C", "linear_attention": "L", "conv": "V",
}  # fmt: skip


def write_rows(path: Path, rows: dict[str, Any]) -> None:
    """A row a checkpoint."""
    lines = (f"{json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in rows.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def default_config(model_type: str) -> Config:
    """As transformers writes it, without what says nothing of the network."""
    written = json.loads(transformers.AutoConfig.for_model(model_type).to_json_string(use_diff=False))
    return trimmed(written)


def trimmed(part: Config) -> Config:
    known = {key: value for key, value in part.items() if value is not None and key not in OF_PROGRAMS}
    return {key: trimmed(value) if isinstance(value, dict) else value for key, value in known.items()}


def internvl(config: Config) -> Config:
    """In transformers' form; InternLM2 as the Llama that it is, and LongRoPE under its present name."""
    text, vision = config["llm_config"], config["vision_config"]
    if text["model_type"] == "internlm2":
        text = text | {"model_type": "llama"}
    if text["model_type"] == "phi3":
        original = "original_max_position_embeddings"
        text = text | {"rope_scaling": text["rope_scaling"] | {"type": "longrope", original: text[original]}}
    vision |= {"model_type": "internvl_vision", "attention_bias": vision["qkv_bias"]}
    tied = config.get("tie_word_embeddings", False)
    return {"model_type": "internvl", "text_config": text, "vision_config": vision} | {"tie_word_embeddings": tied}


def glm4v(config: Config) -> Config:
    """With a text_config, as transformers 4 reads the flat one; release 5 loses its rotary settings."""
    text = {key: value for key, value in config.items() if key not in ("model_type", "vision_config", "rope_scaling")}
    rope = config["rope_scaling"] | {key: config[key] for key in ("rope_theta", "partial_rotary_factor")}
    return config | {"text_config": text | {"rope_parameters": rope | {"rope_type": "default"}}}


def build(config: Config) -> Any:
    """transformers' model; None of a model_type that it does not know, whose tensors are not asked for here."""
    if config["model_type"] in ("deepseek_vl_v2", "unlimited-ocr"):
        return None
    if config["model_type"] == "glm4v" and "text_config" not in config:
        config = glm4v(config)
    if config["model_type"] == "internvl_chat":
        config = internvl(config)
    if config["model_type"] == "qwen3_5" and "vision_config" not in config:
        config = config["text_config"]
    parsed = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        if "thinker_config" in config:
            name = type(parsed.thinker_config).__name__.removesuffix("Config")
            return getattr(transformers, f"{name}ForConditionalGeneration")(parsed.thinker_config)
        if config["model_type"] == "qwen3_5_text":
            return transformers.AutoModelForCausalLM.from_config(parsed)
        if "audio_config" in config:
            return transformers.AutoModelForMultimodalLM.from_config(parsed)
        return transformers.AutoModelForImageTextToText.from_config(parsed)


def shapes_of(tensors: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def text_of(config: Any) -> Any:
    return config.get_text_config(decoder=True)


def rotary(model: Any) -> dict[str, Any]:
    """Frequencies of the text decoder by kind of layer: the number of them, the first, some between and the last; and
    what rotated values are multiplied by."""
    found = {}
    for module in model.modules():
        if not type(module).__name__.endswith("RotaryEmbedding") or "Vision" in type(module).__name__:
            continue
        if module.config.model_type != text_of(model.config).model_type:
            continue
        whole = type(module)(module.config)  # on the CPU, with values
        for name, frequencies in whole.named_buffers():
            if not name.endswith("inv_freq") or "original" in name:
                continue
            kind = name.removesuffix("inv_freq").removesuffix("_") or "all"
            scaling = getattr(whole, f"{kind}_attention_scaling", getattr(whole, "attention_scaling", 1.0))
            flat = frequencies.flatten().sort(descending=True).values
            chosen = [0, len(flat) // 4, len(flat) // 2, 3 * len(flat) // 4, len(flat) - 1]
            found[kind] = [len(flat), [float(f"{flat[at]:.6g}") for at in chosen], round(float(scaling), 6)]
    return found


def facts_of(model: Any, saved: dict[str, tuple[int, ...]]) -> Config:
    text = text_of(model.config)
    cross = getattr(text, "cross_attention_layers", ())
    sliding = text.model_type == "mistral" and text.sliding_window
    kind = "sliding_attention" if sliding else "full_attention"
    kinds = getattr(text, "layer_types", None) or [kind] * text.num_hidden_layers
    layers = ["X" if number in cross else KINDS[kind] for number, kind in enumerate(kinds)]
    ids = {
        name: value
        for name in IDS
        if (value := getattr(model.config, f"{name}_id", getattr(model.config, f"{name}_index", None))) is not None
    }
    return {
        "parameters": sum(int(torch.Size(shape).numel()) for shape in saved.values()),
        "vocabulary": text.vocab_size,
        "layers": "".join(layers[: len(layers) - (getattr(text, "num_kv_shared_layers", 0) or 0)]),
        "window": {"S": getattr(text, "sliding_window", 0), "C": getattr(text, "attention_chunk_size", 0)},
        "ids": ids,
        "rope": rotary(model),
    }


def main() -> None:
    configs = json.loads((FOLDER / "configs.json").read_text("utf-8")) | sizes.CONFIGS
    configs |= {f"{model_type}, as transformers assumes": default_config(model_type) for model_type in DEFAULTS}
    write_rows(FOLDER / "configs.json", configs)
    sections, facts = {}, {}
    for name, config in configs.items():
        model = build(config | {"tie_word_embeddings": False} if name in UNTIED else config)
        if model is None:
            continue
        modules = {key: value for key, value in model.state_dict().items() if key not in model.all_tied_weights_keys}
        saved = shapes_of(revert_weight_conversion(model, dict(modules)))
        sections[f"{name}: saved"] = fold(saved)
        published_so = config["model_type"] not in NEVER_SAVED and len(modules) == len(saved)
        if published_so and shapes_of(modules) != saved:
            sections[f"{name}: modules"] = fold(shapes_of(modules))
        facts[name] = facts_of(model, saved)
        print(name, f"{facts[name]['parameters']:,}", len(saved))
    write_sections(FOLDER / "tensors.txt", sections)
    write_rows(FOLDER / "facts.json", facts)


if __name__ == "__main__":
    main()
