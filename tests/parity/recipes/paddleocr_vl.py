"""PaddleOCR-VL."""

from typing import Any

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
    channels_last,
    ends,
    join_qkv,
    renamed,
    rope,
    user,
)
from ..weights import Rule, Tensors
from .qwen3_vl import image_pixels

IMAGE = "<|IMAGE_PLACEHOLDER|>"
SPECIALS = ("<unk>", "<s>", "</s>", IMAGE, "<|IMAGE_START|>", "<|IMAGE_END|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ {'user': 'User: ', 'assistant': 'Assistant:\\n', 'system': ''}[m['role']] }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    f"{{% if c['type'] == 'image' %}}{{{{ '<|IMAGE_START|>{IMAGE}<|IMAGE_END|>' }}}}"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token if m['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
TOKENIZER = TokenizerKit("ernie", SPECIALS, "</s>", "<unk>", TEMPLATE, "<s>", {"image_token": IMAGE})
RULES: tuple[Rule, ...] = ((r"position_embedding\.weight$", 0.0, 0.5),)
CASES = VISION_CASES | {
    "small": Case(user("image", "Is it small?"), images=["small"]),
    "thin": Case(user("image", "OCR:"), images=["thin"]),
}


def config(ids: Ids, vocabulary: int) -> Any:
    """The table of positions is as wide as some pictures' grids, and less and more wide than others'."""
    import transformers

    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32, "vocab_size": vocabulary,
        "rope_parameters": rope(5e5, mrope_section=[4, 6, 6]), "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 84, "patch_size": 14,
    }  # fmt: skip
    return transformers.PaddleOCRVLConfig(
        text_config=text | HEADS | ends("<s>", "</s>", "<unk>")(ids), vision_config=vision, image_token_id=ids(IMAGE),
        vision_start_token_id=ids("<|IMAGE_START|>"), vision_end_token_id=ids("<|IMAGE_END|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    """Limits so low that of the pictures of media.py some shrink, some grow and some stay."""
    import transformers

    image = transformers.PaddleOCRVLImageProcessorPil(
        size={"shortest_edge": 2 * 56 * 56, "longest_edge": 12 * 28 * 28}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return transformers.PaddleOCRVLProcessor(image, tokenizer, chat_template=tokenizer.chat_template)


def legacy(config: Config) -> None:
    """The text decoder's fields among the model's."""
    text = config.pop("text_config")
    text["rope_scaling"]["type"] = "default"
    config |= {key: value for key, value in text.items() if key not in config and key != "model_type"}


def mlx(tensors: Tensors) -> Tensors:
    pairs = (
        ("visual.vision_model.encoder.", "visual."),
        ("visual.vision_model.", "visual."),
        ("mlp_AR.", "visual.projector."),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
    return channels_last(join_qkv(renamed(tensors, *pairs), "self_attn."))


RECIPES = {
    "paddleocr_vl": Recipe(
        config, TOKENIZER, CASES, VISION_BATCHES,
        ProcessorKit("paddleocr_vl", processor, image_pixels), RULES, mlx=mlx, legacy=legacy,
    ),
}  # fmt: skip
