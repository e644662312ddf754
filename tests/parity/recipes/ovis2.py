"""Ovis2."""

from typing import Any

import numpy as np

from ..recipe import (
    QWEN_ENDS,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    channels_last,
    renamed,
    user,
)
from ..weights import Rule, Tensors
from .llava import text_config

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\\n' }}{% elif c['type'] == 'text' %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKS = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
TOKENIZER = TokenizerKit(
    "ovis2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<IMG_ATOM>", *MARKS], "<|im_end|>",
    "<|endoftext|>", TEMPLATE,
)  # fmt: skip
RULES: tuple[Rule, ...] = (
    (r"position_embedding\.weight$", 0.0, 0.5), (r"head_norm\.weight$", 3.0, 0.5), (r"embeddings_table", 0.0, 0.3),
    # Attention that picks, and layers that outweigh the embeddings, lest a tied model repeats its last token.
    (r"language_model.*[qk]_proj\.weight$", 0.0, 0.25), (r"down_proj\.weight$", 0.0, 0.3),
)  # fmt: skip
# One tile: small. Grids of several that show all: plain, upright, wide, thin; one that does not: large.
CASES = VISION_CASES | {
    "shapes": Case(user("image", "image", "image", "Compare."), images=["small", "wide", "thin"]),
    "small": Case(user("What is it? ", "image"), images=["small"]),
}
BATCHES = VISION_BATCHES | {"batch_shapes": ["shapes", "img2", "small"]}


def config(ids: Ids, vocabulary: int) -> Any:
    """Tiles of 6 x 6 patches, of which 3 x 3 become one feature."""
    import transformers

    vision: Config = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 42,
        "patch_size": 7, "vocab_size": 64, "hidden_stride": 3,
    }  # fmt: skip
    return transformers.Ovis2Config(
        vision_config=vision, text_config=text_config(ids, vocabulary, "qwen2") | QWEN_ENDS(ids),
        image_token_id=ids("<IMG_ATOM>"), visual_indicator_token_ids=[ids(mark) for mark in MARKS],
        vocab_size=vocabulary, hidden_size=64, tie_word_embeddings=True, **QWEN_ENDS(ids),
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    import transformers

    image = transformers.Ovis2ImageProcessorPil(size={"height": 42, "width": 42}, crop_to_patches=True, max_patches=6)
    return transformers.Ovis2Processor(image, tokenizer, image_seq_length=4, chat_template=tokenizer.chat_template)


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return np.asarray(processor.image_processor(images=[image], return_tensors="np")["pixel_values"]), ()


def _mlx(tensors: Tensors) -> Tensors:
    pairs = (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", ""),
    )
    return channels_last(renamed(tensors, *pairs))


RECIPES = {
    "ovis2": Recipe(config, TOKENIZER, CASES, BATCHES, ProcessorKit("ovis2", processor, image_pixels), RULES, mlx=_mlx),
}
