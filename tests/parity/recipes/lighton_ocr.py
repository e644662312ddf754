"""LightOnOCR: Pixtral's tower and Mistral 3's projector before Qwen 3."""

from typing import Any

from ..recipe import (
    HEADS,
    QWEN_ENDS,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    channels_last,
    renamed,
    rope,
    user,
)
from ..weights import Tensors
from .pixtral import TOWER, image_pixels

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<|image_pad|>' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMED = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *NAMED.values())
TOKENIZER = TokenizerKit("lighton_ocr", SPECIALS, "<|im_end|>", "<|endoftext|>", TEMPLATE, named=NAMED)
CASES = VISION_CASES | {"thin": Case(user("image", "How tall is it?"), images=["thin"])}


def _config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    text = {
        "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32,
        "vocab_size": vocabulary, "rms_norm_eps": 1e-5, "rope_parameters": rope(1e6),
    }  # fmt: skip
    return transformers.LightOnOcrConfig(
        vision_config=TOWER | {"patch_size": 14}, text_config=text | HEADS | QWEN_ENDS(ids),
        image_token_id=ids("<|image_pad|>"), eos_token_id=ids("<|im_end|>"),
    )  # fmt: skip


def _processor(tokenizer: Any) -> Any:
    """Sides become multiples of three patches, two of which become a token: the rest of some pictures goes."""
    import transformers

    image = transformers.PixtralImageProcessorPil(size={"longest_edge": 93}, patch_size={"height": 42, "width": 42})
    template = tokenizer.chat_template
    return transformers.LightOnOcrProcessor(
        image, tokenizer, patch_size=14, spatial_merge_size=2, chat_template=template
    )


def _mlx(tensors: Tensors) -> Tensors:
    names = (
        ("model.vision_encoder.", "vision_tower.vision_model."),
        ("model.vision_projection.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
    )
    return channels_last(renamed(tensors, *names))


RECIPES = {
    "lighton_ocr": Recipe(
        _config, TOKENIZER, CASES, VISION_BATCHES, ProcessorKit("lighton_ocr", _processor, image_pixels), mlx=_mlx,
        legacy=lambda config: config["vision_config"].update(rope_theta=5e3),
    ),
}  # fmt: skip
