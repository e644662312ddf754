"""Llama 3.2 Vision."""

from typing import Any

import numpy as np

from ..recipe import (
    HEADS,
    VISION_CASES,
    Case,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    channels_last,
    ends,
    renamed,
    rope,
    user,
)
from ..weights import Rule, Tensors

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<|image|>' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# The picture's token is past the output layer's rows.
SPECIALS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|finetune_right_pad_id|>", "<|python_tag|>", "<|image|>",
]  # fmt: skip
TOKENIZER = TokenizerKit("mllama", SPECIALS, "<|eot_id|>", "<|finetune_right_pad_id|>", TEMPLATE, "<|begin_of_text|>")
ENDS = ends("<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>")
RULES: tuple[Rule, ...] = (
    (r"gate(_attn|_ffn)?$", 0.7, 0.2),
    (r"(class|positional|tile|tile_positional)_embedding(\.embedding)?(\.weight)?$", 0.0, 0.5),
    (r"layernorm(_\w+)?\.weight$", 1.0, 0.2),
)
CASES = VISION_CASES | {
    "wide": Case(user("What is wide? ", "image"), images=["wide"]),
    "small": Case(user("image", "image", "What is small?", "image", "And this?"), images=["small", "thin", "plain"]),
}
# transformers takes no row without pictures beside others.
BATCHES = {"batch": ["img1", "upright"], "batch_shapes": ["wide", "img2", "small"]}


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    vision: Config = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_global_layers": 2,
        "attention_heads": 4, "image_size": 28, "patch_size": 7, "max_num_tiles": 4, "vision_output_dim": 144,
        "intermediate_layers_indices": [0, 2],
    }  # fmt: skip
    text: Config = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "cross_attention_layers": [1, 3],
        "vocab_size": ids("<|image|>"),
        "rope_parameters": rope(
            5e5, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    }  # fmt: skip
    return transformers.MllamaConfig(
        vision_config=vision, text_config=text | HEADS | ENDS(ids), image_token_index=ids("<|image|>"), **ENDS(ids)
    )


def processor(tokenizer: Any) -> Any:
    import transformers

    image = transformers.MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4)
    return transformers.MllamaProcessor(image, tokenizer, chat_template=tokenizer.chat_template)


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Without blank tiles; grid: rows and columns of tiles."""
    grids = [(rows, columns) for rows in range(1, 5) for columns in range(1, 5) if rows * columns <= 4]
    features = processor.image_processor(images=[[image]], return_tensors="np")
    rows, columns = grids[int(features["aspect_ratio_ids"][0, 0]) - 1]
    return np.asarray(features["pixel_values"])[0, 0, : rows * columns], (rows, columns)


def hub(tensors: Tensors) -> Tensors:
    pairs = (
        ("model.vision_model.", "vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
    return renamed(tensors, *pairs)


def mlx(tensors: Tensors) -> Tensors:
    return channels_last(renamed(hub(tensors), ("vision_model.", "vision_tower.")))


RECIPES = {
    "mllama": Recipe(
        config, TOKENIZER, CASES, BATCHES, ProcessorKit("mllama", processor, image_pixels, nested=True), RULES,
        hub=hub, mlx=mlx,
    ),
}  # fmt: skip
