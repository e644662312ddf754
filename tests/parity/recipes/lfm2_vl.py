"""LFM2-VL."""

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

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIALS = (
    "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<|image_start|>",
    "<|image_end|>", "<|img_thumbnail|>",
    *(f"<|img_row_{r}_col_{c}|>" for r in range(1, 10) for c in range(1, 10) if r * c <= 9),
)  # fmt: skip
TOKENIZER = TokenizerKit(
    "lfm2_vl", SPECIALS, "<|im_end|>", "<|pad|>", TEMPLATE, "<|startoftext|>",
    {
        "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    },
)  # fmt: skip
ENDS = ends("<|startoftext|>", "<|im_end|>", "<|pad|>")
RULES: tuple[Rule, ...] = ((r"position_embedding\.weight$", 0.0, 0.5),)
# Whole: plain, small, wide. In tiles, with a copy: large, 3 x 3 and not 2 x 2, and upright, 2 x 1 and not 4 x 2.
CASES = VISION_CASES | {
    "small": Case(user("image", "Is it small?"), images=["small"]),
    "wide": Case(user("image", "How wide is it?"), images=["wide"]),
}


def config(ids: Ids, vocabulary: int) -> Any:
    """A tower whose table of positions, 5 x 5, is resized to what is both smaller and larger."""
    import transformers

    vision = {
        "model_type": "siglip2_vision_model", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "patch_size": 16, "num_patches": 25, "vision_use_head": False,
    }  # fmt: skip
    text = {
        "model_type": "lfm2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "vocab_size": vocabulary, "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "conv_L_cache": 3, "block_auto_adjust_ff_dim": False, "rope_parameters": rope(1e6),
    }  # fmt: skip
    return transformers.Lfm2VlConfig(
        vision_config=vision, text_config=text | HEADS | ENDS(ids), image_token_id=ids("<image>"),
        projector_hidden_size=80, downsample_factor=2, tie_word_embeddings=True, **ENDS(ids),
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    """Pictures resized by Pillow: the class resizes by its parent, in whose place comes one that does so."""
    import torch
    import transformers
    from PIL import Image
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor
    from transformers.models.lfm2_vl.processing_lfm2_vl import Lfm2VlProcessor

    class ByPillow(transformers.TorchvisionBackend):
        def resize(self, image: Any, size: Any, resample: Any = None, **_: Any) -> Any:
            """(B, C, H, W)."""
            images = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in image]
            resized = [np.asarray(one.resize((size.width, size.height), Image.Resampling.BILINEAR)) for one in images]
            return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)

    image = type("Lfm2VlImageProcessor", (Lfm2VlImageProcessor, ByPillow), {})(
        tile_size=64, max_tiles=9, min_image_tokens=4, max_image_tokens=6, max_pixels_tolerance=1.0
    )
    return Lfm2VlProcessor(image, tokenizer, chat_template=tokenizer.chat_template)


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Without the padding; grid: tiles, patches a side of one, rows and columns of the whole."""
    features = processor.image_processor(images=[image], return_tensors="np", return_row_col_info=True)
    parts = [
        pixels[: rows * columns]
        for pixels, (rows, columns) in zip(features["pixel_values"], features["spatial_shapes"].tolist(), strict=True)
    ]
    return np.concatenate(parts), (len(parts) - 1, 4, *features["spatial_shapes"][-1].tolist())


def legacy(config: Config) -> None:
    """What the first release called its sizes stands beside their names of today."""
    config["vision_config"]["model_type"] = "siglip2_vision_model"
    text = config["text_config"]
    text |= {"block_dim": text["hidden_size"], "block_ff_dim": text["intermediate_size"], "num_heads": 4}
    text["full_attn_idxs"] = [i for i, kind in enumerate(text["layer_types"]) if kind == "full_attention"]


def first_release(config: Config) -> None:
    config["model_type"] = "lfm2-vl"


def hub(tensors: Tensors) -> Tensors:
    return renamed(tensors, ("model.vision_tower.", "model.vision_tower.vision_model."))


def mlx(tensors: Tensors) -> Tensors:
    pairs = (
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
    )
    return channels_last(renamed(tensors, *pairs))


RECIPES = {
    "lfm2_vl": Recipe(
        config, TOKENIZER, CASES, VISION_BATCHES,
        ProcessorKit("lfm2_vl", processor, image_pixels, channels_last=True, nested=True), RULES,
        hub=hub, mlx=mlx, legacy=legacy, mlx_config=first_release,
    ),
}  # fmt: skip
