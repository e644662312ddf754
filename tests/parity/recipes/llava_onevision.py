"""LLaVA-OneVision."""

from typing import Any

import numpy as np

from ..recipe import (
    DIALOGUE,
    QWEN_ENDS,
    VIDEO_BATCHES,
    VIDEO_CASES,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    channels_last,
    user,
)
from ..weights import Rule
from .llava import hub, text_config
from .llava_next import grid

# As the published one, it writes media before text and reads nothing but parts.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ '\\n' + c['text'] }}{% endfor %}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENIZER = TokenizerKit(
    "llava_onevision", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"], "<|im_end|>",
    "<|endoftext|>", TEMPLATE, named={"image_token": "<image>", "video_token": "<video>"},
)  # fmt: skip
# A tile is three patches a side, and two pixels that fill none; a frame is pooled to two. Canvases have up to six
# tiles, and more than the patches of three are resampled: those of plain, upright and large, not of small and thin.
CANVASES = [[46, 69], [69, 46], [46, 46], [46, 23], [23, 23]]
MOST = "anyres_max_3"
RULES: tuple[Rule, ...] = (
    (r"position_embedding\.weight$", 0.0, 0.5), (r"post_layernorm\.weight$", 1.0, 0.2),
    (r"image_newline$", 0.0, 0.12),
    # Attention that picks, and layers that outweigh the embeddings, lest a tied model repeats its last token.
    (r"language_model.*[qk]_proj\.weight$", 0.0, 0.25), (r"down_proj\.weight$", 0.0, 0.3),
)  # fmt: skip
CASES = (
    VISION_CASES
    | VIDEO_CASES
    | {
        "dialogue": Case([m | {"content": [{"type": "text", "text": m["content"]}]} for m in DIALOGUE]),
        "large": Case(user("What is large?", "image"), images=["large"]),
        "thin": Case(user("image", "What is thin?"), images=["thin"]),
    }
)
BATCHES = VISION_BATCHES | VIDEO_BATCHES | {"batch_shapes": ["img2", "thin", "large"]}


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    vision: Config = {
        "model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": 23, "patch_size": 7, "vision_use_head": False,
    }  # fmt: skip
    return transformers.LlavaOnevisionConfig(
        vision_config=vision, text_config=text_config(ids, vocabulary, "qwen2") | QWEN_ENDS(ids),
        image_token_index=ids("<image>"), video_token_index=ids("<video>"), image_grid_pinpoints=CANVASES,
        vision_aspect_ratio=MOST, tie_word_embeddings=True, **QWEN_ENDS(ids),
    )  # fmt: skip


def legacy(config: Config) -> None:
    """That the embeddings are tied was the text's affair; and what is as transformers assumes was not written."""
    config["text_config"] |= {"tie_word_embeddings": True}
    config["tie_word_embeddings"] = False
    for key in ("vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act"):
        del config[key]


def processor(tokenizer: Any) -> Any:
    import transformers

    normal: dict[str, Any] = {"size": {"height": 23, "width": 23}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessorPil(image_grid_pinpoints=CANVASES, **normal), tokenizer,
        transformers.LlavaOnevisionVideoProcessor(**normal), num_image_tokens=9, vision_feature_select_strategy="full",
        vision_aspect_ratio=MOST, chat_template=tokenizer.chat_template,
    )  # fmt: skip


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.image_processor(images=[[image]], return_tensors="np")
    laid = grid(processor, image, CANVASES, side=23, patches=3)
    processor.vision_aspect_ratio = "anyres_max_99"  # before anything is resampled
    before = grid(processor, image, CANVASES, side=23, patches=3)
    processor.vision_aspect_ratio = MOST
    return np.asarray(features["pixel_values"])[0], (*before, *laid[2:])


def one_of_several(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.image_processor(images=[[image, image]], return_tensors="np")
    return np.asarray(features["pixel_values"])[0], ()


def video_pixels(processor: Any, clip: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.video_processor(videos=[clip], return_tensors="np")
    return np.asarray(features["pixel_values_videos"])[0], (len(clip),)


KIT = ProcessorKit("llava_onevision", processor, image_pixels, video_pixels, nested=True, one_of_several=one_of_several)
RECIPES = {
    "llava_onevision": Recipe(
        config, TOKENIZER, CASES, BATCHES, KIT, RULES,
        hub=hub, mlx=lambda tensors: channels_last(hub(tensors)), legacy=legacy,
    ),
}  # fmt: skip
