"""Pixtral, published as LLaVA with its tower, and Mistral 3 with the same tower: over Mistral and over Ministral 3."""

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
    channels_last,
    ends,
    renamed,
    rope,
    user,
)
from ..weights import Tensors

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}"
    "{% set tag = 'SYSTEM_PROMPT' if m['role'] == 'system' else 'INST' %}{{ '[' + tag + ']' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '[IMG]' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '[/' + tag + ']' }}{% endif %}{% endfor %}"
)
SPECIALS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "<pad>",
    "[IMG_BREAK]", "[IMG_END]",
)  # fmt: skip
TOKENIZER = TokenizerKit("pixtral", SPECIALS, "</s>", "<pad>", TEMPLATE, "<s>")
ENDS = ends("<s>", "</s>", "<pad>")
TOWER: Config = {
    "model_type": "pixtral", "hidden_act": "silu", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "head_dim": 12, "image_size": 128, "patch_size": 16,
    "rope_parameters": {"rope_type": "axial", "rope_theta": 5e3},
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
# Shrunk, "large" has 80.6 rows of pixels: rounded down they are five patches, else six.
CASES = VISION_CASES | {"thin": Case(user("image", "How tall is it?"), images=["thin"])}


def _text(ids: Ids, vocabulary: int, model_type: str = "mistral", **more: Any) -> Config:
    sizes = {"model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    rest = {"head_dim": 32, "vocab_size": vocabulary, "rms_norm_eps": 1e-5, "sliding_window": None}
    return sizes | HEADS | rest | {"rope_parameters": rope(1e9)} | ENDS(ids) | more


def _pixtral(ids: Ids, vocabulary: int) -> Any:
    import transformers

    return transformers.LlavaConfig(
        vision_config=TOWER, text_config=_text(ids, vocabulary), image_token_index=ids("[IMG]"),
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=1, **ENDS(ids),
    )  # fmt: skip


def _mistral3(tied: bool, **text: Any) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        return transformers.Mistral3Config(
            vision_config=TOWER, text_config=_text(ids, vocabulary, tie_word_embeddings=tied, **text),
            image_token_index=ids("[IMG]"), tie_word_embeddings=tied, **ENDS(ids),
        )  # fmt: skip

    return build


def _processor(merge: int) -> Callable[[Any], Any]:
    def build(tokenizer: Any) -> Any:
        import transformers
        from transformers.models.pixtral.processing_pixtral import PixtralProcessor

        side = 16 * merge
        image = transformers.PixtralImageProcessorPil(
            size={"longest_edge": 93}, patch_size={"height": side, "width": side}
        )
        return PixtralProcessor(
            image, tokenizer, patch_size=16, spatial_merge_size=merge, chat_template=tokenizer.chat_template
        )

    return build


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return np.asarray(processor.image_processor(images=[image], return_tensors="np")["pixel_values"]), ()


def _legacy(config: Config) -> None:
    """The tower's rotary base stood beside its sizes. Ministral 3 never had another layout."""
    config["vision_config"]["rope_theta"] = TOWER["rope_parameters"]["rope_theta"]
    text = config["text_config"]
    if text["model_type"] == "ministral3":
        text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}


def _call_it_pixtral(config: Config) -> None:
    config["model_type"] = "pixtral"


def _mlx(tensors: Tensors) -> Tensors:
    return channels_last(renamed(tensors, ("vision_tower.", "vision_tower.vision_model.")))


RECIPES = {
    "pixtral": Recipe(
        _pixtral, TOKENIZER, CASES, VISION_BATCHES, ProcessorKit("pixtral", _processor(1), image_pixels),
        mlx=_mlx, legacy=_legacy, mlx_config=_call_it_pixtral,
    ),
    "mistral3": Recipe(
        _mistral3(tied=False), TOKENIZER, CASES, VISION_BATCHES,
        ProcessorKit("mistral3", _processor(2), image_pixels), mlx=_mlx, legacy=_legacy,
    ),
    "ministral3": Recipe(
        _mistral3(tied=True, model_type="ministral3", max_position_embeddings=512, rope_parameters=YARN),
        TOKENIZER, CASES, VISION_BATCHES, ProcessorKit("mistral3", _processor(2), image_pixels),
        mlx=_mlx, legacy=_legacy,
    ),
}  # fmt: skip
