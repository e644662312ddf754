"""LLaVA-NeXT (LLaVA 1.6)."""

from typing import Any

import numpy as np

from ..recipe import VISION_BATCHES, VISION_CASES, Case, Config, Ids, ProcessorKit, Recipe, channels_last, user
from .llava import CLIP, ENDS, RULES, TOKENIZER, hub, text_config

# Canvases of two, three and four tiles, on which the pictures are padded above and below, at the sides, or not.
CANVASES = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
CASES = VISION_CASES | {
    "wide": Case(user("image", "What is wide?"), images=["wide"]),
    "thin": Case(user("What is thin?", "image"), images=["thin"]),
}
BATCHES = VISION_BATCHES | {"batch_shapes": ["wide", "img2", "thin"]}


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    text = text_config(ids, vocabulary, "mistral", sliding_window=None, rms_norm_eps=1e-6) | ENDS(ids)
    return transformers.LlavaNextConfig(
        vision_config=CLIP | {"image_size": 28, "patch_size": 7}, text_config=text, image_token_index=ids("<image>"),
        image_grid_pinpoints=CANVASES, image_seq_length=16, **ENDS(ids),
    )  # fmt: skip


def legacy(config: Config) -> None:
    """What is as transformers assumes was not written."""
    for key in ("rms_norm_eps", "rope_theta", "hidden_act", "head_dim"):
        config["text_config"].pop(key, None)


def processor(tokenizer: Any) -> Any:
    import transformers

    image = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=CANVASES
    )
    return transformers.LlavaNextProcessor(
        image, tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.image_processor(images=[image], return_tensors="np")
    return np.asarray(features["pixel_values"])[0], grid(processor, image, CANVASES, side=28, patches=4)


def grid(processor: Any, image: np.ndarray, canvases: list[list[int]], side: int, patches: int) -> tuple[int, ...]:
    """Rows and columns of tiles, and those of patches that are no padding."""
    from transformers.image_processing_utils import select_best_resolution

    size = image.shape[:2]
    rows, columns = (length // side for length in select_best_resolution(size, canvases))
    tokens, lines = processor._get_unpadded_features(*size, patches, patches, rows, columns)
    return rows, columns, lines, tokens // lines


RECIPES = {
    "llava_next": Recipe(
        config, TOKENIZER, CASES, BATCHES, ProcessorKit("llava_next", processor, image_pixels), RULES,
        hub=hub, mlx=lambda tensors: channels_last(hub(tensors)), legacy=legacy,
    ),
}  # fmt: skip
