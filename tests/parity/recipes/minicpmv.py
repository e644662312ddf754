"""MiniCPM-V 4.6 and 4.7."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..recipe import (
    HEADS,
    QWEN_ENDS,
    QWEN_SPECIALS,
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
    renamed,
    rope,
    swap,
    user,
)
from ..weights import Rule, Tensors
from .qwen3_5 import NORM
from .qwen3_5 import RULES as TEXT_RULES

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}{% if c['type'] == 'image' %}{{ '<|image_pad|>' }}"
    "{% elif c['type'] == 'video' %}{{ '<|video_pad|>' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAMED = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
    "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
}  # fmt: skip
TOKENIZER = TokenizerKit(
    "minicpmv", (*QWEN_SPECIALS, *list(NAMED.values())[2:]), "<|im_end|>", "<|endoftext|>", TEMPLATE, named=NAMED
)
RULES: tuple[Rule, ...] = (
    (r"(vision_tower|merger).*norm\d?\.weight$", 1.0, 0.2),
    *TEXT_RULES,
    (r"position_embedding\.weight$", 0.0, 0.5),
)
# Whole: small and wide. In slices: upright, 2 x 1; plain, 1 x 2, and the clip; large, 2 x 2.
CASES = (
    VISION_CASES
    | {name: VIDEO_CASES[name] for name in ("video", "img_video")}
    | {
        "wide": Case(user("image", "image", "How wide?"), images=["wide", "small"]),
    }
)
BATCHES = VISION_BATCHES | {"batch_video": ["video", "wide", "dialogue"]}


def config(version: str, **rotary: Any) -> Callable[[Ids, int], Any]:
    """A table of positions of 5 x 5; merges after the first layer of the tower and after the last."""

    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        text = {
            "model_type": "qwen3_5_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
            "head_dim": 32, "rms_norm_eps": 1e-6, "vocab_size": vocabulary, "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 32, "linear_value_head_dim": 24, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "tie_word_embeddings": True,
            "layer_types": ["linear_attention", "full_attention"] * 2, "rope_parameters": rope(1e7, **rotary),
        }  # fmt: skip
        vision = {
            "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 40, "patch_size": 8,
        }  # fmt: skip
        marks = {
            "image_start_id": "<image>", "image_end_id": "</image>", "slice_start_id": "<slice>",
            "slice_end_id": "</slice>", "newline_id": "Ċ",
        }  # fmt: skip
        return getattr(transformers, f"MiniCPMV{version}Config")(
            text_config=text | HEADS | QWEN_ENDS(ids), vision_config=vision, insert_layer_id=1, image_size=40,
            image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"), tie_word_embeddings=True,
            **QWEN_ENDS(ids), **({name: ids(token) for name, token in marks.items()} if version == "4_7" else {}),
        )  # fmt: skip

    return build


def legacy(config: Config) -> None:
    """As published: rotary settings as transformers 5 has them."""
    text = config["text_config"]
    text["rope_parameters"] = (text.pop("rope_scaling") or {"rope_type": "default"}) | {
        "rope_theta": text.pop("rope_theta")
    }
    text["full_attention_interval"] = text.pop("layer_types").index("full_attention") + 1
    config["vision_config"]["model_type"] += "_vision"


def processor(version: str) -> Callable[[Any], Any]:
    def build(tokenizer: Any) -> Any:
        import transformers

        settings = {"scale_resolution": 64, "patch_size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        image = transformers.MiniCPMV4_6ImageProcessorPil(max_slice_nums=4, **settings)
        video = transformers.MiniCPMV4_6VideoProcessor(max_slice_nums=2, **settings)
        made = getattr(transformers, f"MiniCPMV{version}Processor")
        return made(image, video, tokenizer, chat_template=tokenizer.chat_template)

    return build


def patches(features: Any, kind: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """As `Media.pixels`, and the sizes of the parts (n, 2)."""
    pixels, sizes = np.asarray(features[f"pixel_values{kind}"])[0], np.asarray(features[f"target_sizes{kind}"])
    size = pixels.shape[1]
    cut = pixels.reshape(3, size, -1, size).transpose(2, 1, 3, 0)  # (N, p, p, 3)
    return cut.reshape(len(cut), -1), sizes


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.image_processor(images=[image], return_tensors="np")
    pixels, sizes = patches(features, "")
    part = sizes[1].tolist() if len(sizes) > 1 else [0, 0]
    return pixels, (1, *sizes[0].tolist(), *features["grids"][0], *part)


def video_pixels(processor: Any, clip: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.video_processor(videos=[clip], do_sample_frames=False, return_tensors="np")
    pixels, sizes = patches(features, "_videos")
    grid = np.asarray(features["grids_videos"])[0].tolist()
    part = sizes[1].tolist() if grid[0] else [0, 0]
    return pixels, (len(clip), *sizes[0].tolist(), *grid, *part)


def mlx(tensors: Tensors) -> Tensors:
    """Convolutions over time with their channels last; norms that need nothing added."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("conv1d.weight"):
            tensor = swap(tensor, 1, 2)
        added = "language_model" in name and re.search(NORM, name)
        out[name] = tensor + np.float32(1) if added else tensor
    named = renamed(
        out,
        ("model.vision_tower.vit_merger.", "vit_merger."),
        ("model.language_model.", "language_model.model."),
        ("model.", ""),
    )
    return channels_last(named)


def kit(version: str) -> ProcessorKit:
    return ProcessorKit(
        f"minicpmv{version}", processor(version), image_pixels, video_pixels, channels_last=True,
        clips=lambda clips: {},
    )  # fmt: skip


RECIPES = {
    "minicpmv4_6": Recipe(
        config("4_6", partial_rotary_factor=0.25), TOKENIZER, CASES, BATCHES, kit("4_6"), RULES,
        mlx=mlx, legacy=legacy,
    ),
    "minicpmv4_7": Recipe(
        config("4_7", partial_rotary_factor=0.5, mrope_interleaved=True, mrope_section=[3, 3, 2]), TOKENIZER,
        CASES | {"video_img": Case(user("video", "image", "Compare."), images=["large"], videos=["odd_clip"])}, BATCHES,
        kit("4_7"), RULES, mlx=mlx, legacy=legacy,
    ),
}  # fmt: skip
