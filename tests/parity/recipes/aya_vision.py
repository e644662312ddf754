"""Aya Vision and Command A Vision."""

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
from ..weights import Rule, Tensors
from .llava import hub

TURNS = (
    "{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' + m['role'] + '|' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ 'IMAGE' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|>chatbot|' }}{% endif %}"
)
SPECIALS = [
    "<PAD>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_IMG|>",
    "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>",
]  # fmt: skip
AYA = TokenizerKit(
    "aya_vision", [*SPECIALS, "<image>", "TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 7))],
    "<|END_OF_TURN_TOKEN|>", "<PAD>", TURNS.replace("IMAGE", "<image>"), "<BOS_TOKEN>",
)  # fmt: skip
COMMAND = TokenizerKit(
    "cohere2_vision", SPECIALS, "<|END_OF_TURN_TOKEN|>", "<PAD>", TURNS.replace("IMAGE", "<|IMG_PATCH|>"),
    "<BOS_TOKEN>",
    {
        "image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    },
)  # fmt: skip
ENDS = ends("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<PAD>")
RULES: tuple[Rule, ...] = ((r"position_embedding\.weight$", 0.0, 0.5), (r"layernorm\.weight$", 1.0, 0.2))
CASES = VISION_CASES | {
    "wide": Case(user("What is wide? ", "image"), images=["wide"]),
    "small": Case(user("image", "What is small?"), images=["small"]),
}
BATCHES = VISION_BATCHES | {"batch_shapes": ["wide", "img2", "small"]}
SIDE = {"height": 28, "width": 28}


def config(name: str, ids: Ids, vocabulary: int, **more: Any) -> Any:
    import transformers

    vision: Config = {
        "model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": 28, "patch_size": 7, "vision_use_head": False,
    }  # fmt: skip
    text: Config = {
        "model_type": "cohere2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "vocab_size": vocabulary, "sliding_window": 16, "logit_scale": 0.25, "rope_parameters": rope(1e4),
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    }  # fmt: skip
    return getattr(transformers, name)(
        vision_config=vision, text_config=text | HEADS | ENDS(ids), downsample_factor=2,
        alignment_intermediate_size=80, **ENDS(ids), **more,
    )  # fmt: skip


def aya_vision(ids: Ids, vocabulary: int) -> Any:
    return config("AyaVisionConfig", ids, vocabulary, image_token_index=ids("<|IMG_PATCH|>"), vision_feature_layer=-2)


def cohere2_vision(ids: Ids, vocabulary: int) -> Any:
    return config("Cohere2VisionConfig", ids, vocabulary, image_token_id=ids("<|IMG_PATCH|>"))


def aya_processor(tokenizer: Any) -> Any:
    import transformers

    image = transformers.GotOcr2ImageProcessorPil(size=SIDE, min_patches=1, max_patches=6)
    return transformers.AyaVisionProcessor(
        image, tokenizer, patch_size=7, img_size=28, downsample_factor=2, chat_template=tokenizer.chat_template
    )


def aya_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.image_processor(images=[image], crop_to_patches=True, return_tensors="np")
    return np.asarray(features["pixel_values"]), ()


def resized_by_pillow(image_processor: type, **settings: Any) -> Any:
    """An image processor of transformers that resizes by its parent, in whose place comes one that uses Pillow. It
    normalises in float32, too."""
    import torch
    import transformers
    from PIL import Image

    class ByPillow(transformers.TorchvisionBackend):
        def resize(self, image: Any, size: Any, resample: Any = None, **_: Any) -> Any:
            """(B, C, H, W)."""
            images = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in image]
            resized = [np.asarray(one.resize((size.width, size.height), self.resample)) for one in images]
            return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)

    in_float32 = {"rescale_and_normalize": transformers.TorchvisionBackend.rescale_and_normalize}
    return type(image_processor.__name__, (image_processor, ByPillow), in_float32)(**settings)


def cohere2_processor(tokenizer: Any) -> Any:
    import transformers
    from transformers.models.cohere2_vision.image_processing_cohere2_vision import Cohere2VisionImageProcessor

    image = resized_by_pillow(Cohere2VisionImageProcessor, size=SIDE, max_patches=6, patch_size=2)
    return transformers.Cohere2VisionProcessor(image, tokenizer, chat_template=tokenizer.chat_template)


def cohere2_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return np.asarray(processor.image_processor(images=[image], return_tensors="np")["pixel_values"]), ()


def cohere2_hub(tensors: Tensors) -> Tensors:
    return renamed(tensors, ("model.vision_tower.", "model.vision_tower.vision_model."))


def cohere2_mlx(tensors: Tensors) -> Tensors:
    pairs = (
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
    )
    return channels_last(renamed(tensors, *pairs))


RECIPES = {
    "aya_vision": Recipe(
        aya_vision, AYA, CASES, BATCHES, ProcessorKit("aya_vision", aya_processor, aya_pixels), RULES,
        hub=hub, mlx=lambda tensors: channels_last(hub(tensors)),
    ),
    "cohere2_vision": Recipe(
        cohere2_vision, COMMAND, CASES, BATCHES, ProcessorKit("cohere2_vision", cohere2_processor, cohere2_pixels),
        RULES, hub=cohere2_hub, mlx=cohere2_mlx,
    ),
}  # fmt: skip
