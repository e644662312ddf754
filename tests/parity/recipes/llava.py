"""LLaVA 1.5."""

from typing import Any

import numpy as np

from ..recipe import (
    HEADS,
    VISION_BATCHES,
    VISION_CASES,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    channels_last,
    ends,
    renamed,
    rope,
)
from ..weights import Rule, Tensors

TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\\n' }}{% elif c['type'] == 'text' %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TOKENIZER = TokenizerKit(
    "llava", ["<unk>", "<s>", "</s>", "<pad>", "<image>"], "</s>", "<pad>", TEMPLATE, "<s>", {"image_token": "<image>"}
)
ENDS = ends("<s>", "</s>", "<pad>")
CLIP: Config = {
    "model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4,
    "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "projection_dim": 32,
}  # fmt: skip
RULES: tuple[Rule, ...] = (
    (r"position_embedding\.weight$|class_embedding$", 0.0, 0.5),
    (r"layrnorm\.weight$", 1.0, 0.2),
)


def text_config(ids: Ids, vocabulary: int, model_type: str = "llama", **more: Any) -> Config:
    """A small decoder."""
    sizes = {"model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    return sizes | HEADS | {"vocab_size": vocabulary, "rms_norm_eps": 1e-5, "rope_parameters": rope(1e4)} | more


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    return transformers.LlavaConfig(
        vision_config=CLIP, text_config=text_config(ids, vocabulary) | ENDS(ids), image_token_index=ids("<image>"),
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=16, **ENDS(ids),
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    import transformers

    image = transformers.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    return transformers.LlavaProcessor(
        image, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return np.asarray(processor.image_processor(images=[image], return_tensors="np")["pixel_values"]), ()


def hub(tensors: Tensors) -> Tensors:
    """Also in conversions for MLX."""
    return renamed(tensors, ("vision_tower.", "vision_tower.vision_model."))


# LLaVA-Interleave: the same on SigLIP, which has no class token to leave out.
def siglip_config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    vision = CLIP | {"model_type": "siglip_vision_model", "num_hidden_layers": 3, "vision_use_head": False}
    return transformers.LlavaConfig(
        vision_config=vision, text_config=text_config(ids, vocabulary) | ENDS(ids), image_token_index=ids("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=16, **ENDS(ids),
    )  # fmt: skip


def siglip_processor(tokenizer: Any) -> Any:
    import transformers

    return transformers.LlavaProcessor(
        transformers.SiglipImageProcessorPil(size={"height": 56, "width": 56}), tokenizer, patch_size=14,
        vision_feature_select_strategy="full", num_additional_image_tokens=0, chat_template=tokenizer.chat_template,
    )  # fmt: skip


SIGLIP_CASES = {name: VISION_CASES[name] for name in ("text", "img1", "img2")}

RECIPES = {
    "llava": Recipe(
        config, TOKENIZER, VISION_CASES, VISION_BATCHES, ProcessorKit("llava", processor, image_pixels), RULES,
        hub=hub, mlx=lambda tensors: channels_last(hub(tensors)),
    ),
    "llava_siglip": Recipe(
        siglip_config, TOKENIZER, SIGLIP_CASES, {"batch": ["img1", "text"]},
        ProcessorKit("llava_siglip", siglip_processor, image_pixels), RULES,
        hub=hub, mlx=lambda tensors: channels_last(hub(tensors)),
    ),
}  # fmt: skip
