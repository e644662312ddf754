"""Qwen3-VL, dense and mixture of experts."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..recipe import (
    EXPERTS,
    HEADS,
    MLX_NAMES,
    QWEN_ENDS,
    QWEN_SPECIALS,
    VIDEO_BATCHES,
    VIDEO_CASES,
    VISION_BATCHES,
    VISION_CASES,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    channels_last,
    renamed,
    rope,
    swap,
    switch_experts,
)
from ..weights import Tensors

# Its template is the published one (Apache-2.0), which lies in reference/tokenizers/qwen.
QWEN = TokenizerKit("qwen", QWEN_SPECIALS, "<|im_end|>", "<|endoftext|>", template="")


def processor(tokenizer: Any) -> Any:
    """Limits so low that of the pictures and clips of media.py some shrink, some grow and some stay."""
    import transformers

    image = transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64 * 64, "longest_edge": 12 * 32 * 32},
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    video = transformers.Qwen3VLVideoProcessor(size={"shortest_edge": 64 * 64, "longest_edge": 40 * 32 * 32})
    return transformers.Qwen3VLProcessor(image, tokenizer, video, chat_template=tokenizer.chat_template)


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.image_processor(images=[image], return_tensors="np")
    return np.asarray(features["pixel_values"]), tuple(features["image_grid_thw"][0].tolist())


def video_pixels(processor: Any, clip: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.video_processor(videos=[clip], do_sample_frames=False, return_tensors="np")
    return np.asarray(features["pixel_values_videos"]), tuple(features["video_grid_thw"][0].tolist())


def media_ids(ids: Ids) -> Config:
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def _config(name: str, tied: bool, **text: Any) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        text_config = {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 32, "rms_norm_eps": 1e-6,
            "vocab_size": vocabulary, "tie_word_embeddings": tied,
            "rope_parameters": rope(5e6, mrope_interleaved=True, mrope_section=[6, 5, 5]),
        }  # fmt: skip
        vision_config = {
            "depth": 4, "hidden_size": 48, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 80,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 144,
            "deepstack_visual_indexes": [0, 1, 2],
        }  # fmt: skip
        return getattr(transformers, name)(
            text_config=text_config | HEADS | QWEN_ENDS(ids) | text,
            vision_config=vision_config,
            tie_word_embeddings=tied,
            **media_ids(ids),
        )

    return build


def _hub_experts(tensors: Tensors) -> Tensors:
    """(E, in, out) and not (E, out, in)."""
    return {name: swap(tensor, 1, 2) if ".experts." in name else tensor for name, tensor in tensors.items()}


def _mlx(tensors: Tensors) -> Tensors:
    return channels_last(switch_experts(renamed(tensors, *MLX_NAMES)))


CASES, BATCHES = VISION_CASES | VIDEO_CASES, VISION_BATCHES | VIDEO_BATCHES
KIT = ProcessorKit("qwen3_vl", processor, image_pixels, video_pixels)
RECIPES = {
    "qwen3_vl": Recipe(_config("Qwen3VLConfig", tied=True), QWEN, CASES, BATCHES, KIT, mlx=_mlx),
    "qwen3_vl_moe": Recipe(
        _config("Qwen3VLMoeConfig", tied=False, **EXPERTS), QWEN, CASES, BATCHES, KIT, hub=_hub_experts, mlx=_mlx
    ),
}
