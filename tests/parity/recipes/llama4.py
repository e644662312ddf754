"""Llama 4: as Scout, and as Maverick."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..recipe import (
    HEADS,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    ends,
    rope,
    swap,
    user,
)
from ..weights import Rule, Tensors
from .aya_vision import resized_by_pillow

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|header_start|>' + m['role'] + '<|header_end|>\\n\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<|image|>' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{% endif %}"
)
SPECIALS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|image_start|>",
    "<|image_end|>", "<|image|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|finetune_right_pad|>",
]  # fmt: skip
TOKENIZER = TokenizerKit("llama4", SPECIALS, "<|eot|>", "<|finetune_right_pad|>", TEMPLATE, "<|begin_of_text|>")
ENDS = ends("<|begin_of_text|>", "<|eot|>", "<|finetune_right_pad|>")
RULES: tuple[Rule, ...] = (
    (r"positional_embedding_vlm$|class_embedding$", 0.0, 0.5),
    (r"layernorm(_\w+)?\.weight$", 1.0, 0.2),
)
CASES = VISION_CASES | {
    "wide": Case(user("What is wide? ", "image"), images=["wide"]),
    "small": Case(user("image", "What is small?"), images=["small"]),
}
BATCHES = VISION_BATCHES | {"batch_shapes": ["wide", "img2", "small"]}
MAVERICK_CASES = {name: CASES[name] for name in ("text", "img1", "small")}

# Chunks and steps of the temperature that prompts are longer than.
SCOUT: Config = {
    "attention_chunk_size": 16, "interleave_moe_layer_step": 1, "floor_scale": 16, "use_qk_norm": True,
    "rope_parameters": rope(
        5e5, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
}  # fmt: skip
MAVERICK: Config = {
    "attention_chunk_size": 24, "interleave_moe_layer_step": 2, "floor_scale": 8192, "use_qk_norm": False,
    "rope_parameters": rope(5e5), "num_experts_per_tok": 2, "no_rope_layers": [1, 0, 1, 1],
}  # fmt: skip


def _config(more: Config) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        vision: Config = {
            "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 28, "patch_size": 7, "vision_output_dim": 40, "projector_input_dim": 40,
            "projector_output_dim": 40, "rope_parameters": rope(1e4),
        }  # fmt: skip
        text: Config = {
            "hidden_size": 64, "intermediate_size": 48, "intermediate_size_mlp": 96, "num_hidden_layers": 4,
            "head_dim": 16, "vocab_size": vocabulary, "num_local_experts": 4,
        }  # fmt: skip
        return transformers.Llama4Config(
            vision_config=vision, text_config=text | HEADS | ENDS(ids) | more, image_token_index=ids("<|patch|>"),
            boi_token_index=ids("<|image_start|>"), eoi_token_index=ids("<|image_end|>"), **ENDS(ids),
        )  # fmt: skip

    return build


def processor(tokenizer: Any) -> Any:
    import transformers
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast
    from transformers.models.llama4.image_processing_llama4 import Llama4ImageProcessor

    # transformers 5.24's forward asks for it in the text model's output, which never has it.
    MoeCausalLMOutputWithPast.image_outputs = None
    image = resized_by_pillow(Llama4ImageProcessor, size={"height": 28, "width": 28}, max_patches=6)
    return transformers.Llama4Processor(
        image, tokenizer, patch_size=7, pixel_shuffle_ratio=0.5, chat_template=tokenizer.chat_template
    )


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return np.asarray(processor.image_processor(images=[image], return_tensors="np")["pixel_values"]), ()


def legacy(config: Config) -> None:
    """What the first release did not write, where it follows from the rest; and what it wrote of its tower."""
    config["vision_config"] |= {"rope_theta": 10000.0, "vision_feature_layer": -1}
    text = config["text_config"]
    text["num_local_experts"] = text.pop("num_experts")
    if text["num_experts_per_tok"] == 1:
        text["no_rope_layers"] = []
    for key in ("layer_types", "moe_layers", "attn_temperature_tuning", "attn_scale"):
        del text[key]


def mlx(tensors: Tensors) -> Tensors:
    """Experts as (E, out, in), gate and up apart."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".experts.")
        if part == "gate_up_proj":
            for key, half in zip(("gate_proj", "up_proj"), np.split(tensor, 2, axis=2), strict=True):
                out[f"{stem}.experts.{key}.weight"] = swap(half, 1, 2)
        elif part == "down_proj" and stem:
            out[f"{stem}.experts.down_proj.weight"] = swap(tensor, 1, 2)
        else:
            out[name] = tensor
    return out


RECIPES = {
    "llama4": Recipe(
        _config(SCOUT), TOKENIZER, CASES, BATCHES, ProcessorKit("llama4", processor, image_pixels), RULES,
        mlx=mlx, legacy=legacy,
    ),
    "llama4_maverick": Recipe(
        _config(MAVERICK), TOKENIZER, MAVERICK_CASES, {"batch": ["img1", "text"]},
        ProcessorKit("llama4_maverick", processor, image_pixels), RULES, mlx=mlx, legacy=legacy,
    ),
}  # fmt: skip
