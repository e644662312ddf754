"""Granite 4 Vision."""

from typing import Any

import numpy as np

from ..recipe import (
    HEADS,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Ids,
    ProcessorKit,
    Recipe,
    channels_last,
    renamed,
    rope,
    user,
)
from ..weights import Rule, Tensors
from .llava import ENDS, TOKENIZER
from .llava_next import grid

# Tiles of 8 x 8 patches, four windows, each of which becomes four tokens.
CANVASES = [[32, 64], [64, 32], [32, 32]]
CASES = VISION_CASES | {"thin": Case(user("What is thin?", "image"), images=["thin"])}
RULES: tuple[Rule, ...] = (
    (r"position_embedding\.weight$", 0.0, 0.5), (r"LayerNorm\.weight$", 1.0, 0.2),
    (r"query$|image_positions$|image_newline$", 0.0, 0.5),
)  # fmt: skip


def config(ids: Ids, vocabulary: int) -> Any:
    """Features before the first layer, between two, and before the last; one head of the fixed size."""
    import transformers

    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 32, "patch_size": 4, "vision_use_head": False,
    }  # fmt: skip
    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5, "rope_parameters": rope(1e4), "embedding_multiplier": 2.0, "logits_scaling": 1.5,
        "residual_multiplier": 0.7, "attention_multiplier": 0.2,
    }  # fmt: skip
    former = {
        "model_type": "blip_2_qformer", "num_hidden_layers": 1, "cross_attention_frequency": 1, "intermediate_size": 96,
        "max_position_embeddings": 64, "use_qformer_text_input": False,
    }  # fmt: skip
    return transformers.Granite4VisionConfig(
        vision_config=vision, text_config=text | HEADS | ENDS(ids), qformer_config=former,
        image_token_index=ids("<image>"), vision_feature_select_strategy="full", image_grid_pinpoints=CANVASES,
        image_seq_length=16, downsample_rate="2/4", deepstack_layer_map=[[-3, 0], [-2, 2]], spatial_vision_layer=-1,
        spatial_target_layers=[1, 2, 3, 4], **ENDS(ids),
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    import transformers

    image = transformers.LlavaNextImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=CANVASES,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return transformers.Granite4VisionProcessor(
        image, tokenizer, patch_size=4, vision_feature_select_strategy="full", downsample_rate="2/4",
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.image_processor(images=[image], return_tensors="np")
    return np.asarray(features["pixel_values"])[0], grid(processor, image, CANVASES, side=32, patches=4)


def mlx(tensors: Tensors) -> Tensors:
    named = renamed(
        tensors,
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.", ""),
    )
    return channels_last(named)


RECIPES = {
    "granite4_vision": Recipe(
        config,
        TOKENIZER,
        CASES,
        VISION_BATCHES,
        ProcessorKit("granite4_vision", processor, image_pixels),
        RULES,
        mlx=mlx,
    ),
}
