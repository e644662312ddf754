"""The thinkers of Qwen2.5-Omni and Qwen3-Omni, saved alone by transformers 5; on the Hub parts of what speaks."""

from dataclasses import replace
from typing import Any

import numpy as np

from ..recipe import (
    AUDIO_BATCHES,
    AUDIO_CASES,
    HEADS,
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
    renamed,
    rope,
    swap,
    user,
    whisper_extractor,
)
from ..weights import Rule, Tensors
from .qwen2_audio import audio_features
from .qwen3_vl import image_pixels

TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'text' %}{{ part['text'] }}\
{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>\
{% elif part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>\
{% else %}<|vision_bos|><|IMAGE|><|vision_eos|>{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
NAMED = {
    "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *NAMED.values())
TOKENIZER = TokenizerKit("qwen2_5_omni", SPECIALS, "<|im_end|>", "<|endoftext|>", TEMPLATE, named=NAMED)
RULES: tuple[Rule, ...] = ((r"ln_q\.weight$", 1.0, 0.2),)


def video_pixels(processor: Any, clip: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """In the size that its class gives, which counts and not what is saved."""
    features = processor.video_processor(
        videos=[clip], do_sample_frames=False, return_tensors="np", **processor.videos_kwargs
    )
    return np.asarray(features["pixel_values_videos"]), tuple(features["video_grid_thw"][0].tolist())


def clips(clips: list[Any]) -> Config:
    return {"fps": 2.0}


def processor(tokenizer: Any) -> Any:
    """Limits so low that of the pictures of media.py some shrink, some grow and some stay; patches so large that clips,
    which have 128 * 28 * 28 pixels a frame at least, become few tokens."""
    import transformers

    image = transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 56 * 56, "longest_edge": 6 * 56 * 56}, patch_size=28
    )
    video = transformers.Qwen2VLVideoProcessor(patch_size=28)
    sound = whisper_extractor(feature_size=32, chunk_length=3)
    return transformers.Qwen2_5OmniProcessor(image, video, sound, tokenizer, chat_template=tokenizer.chat_template)


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": vocabulary,
        "rope_parameters": rope(1e6, mrope_section=[2, 3, 3]),
    }  # fmt: skip
    vision = {
        "depth": 4, "hidden_size": 48, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 80,
        "patch_size": 28, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "fullatt_block_indexes": [1, 3],
    }  # fmt: skip
    sound = {
        "num_mel_bins": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 80,
        "d_model": 48, "output_dim": 64, "n_window": 20,
    }  # fmt: skip
    return transformers.Qwen2_5OmniThinkerConfig(
        text_config=text | HEADS | QWEN_ENDS(ids),
        vision_config=vision,
        audio_config=sound,
        audio_token_index=ids("<|AUDIO|>"),
        image_token_index=ids("<|IMAGE|>"),
        video_token_index=ids("<|VIDEO|>"),
        audio_start_token_id=ids("<|audio_bos|>"),
        audio_end_token_id=ids("<|audio_eos|>"),
        vision_start_token_id=ids("<|vision_bos|>"),
        vision_end_token_id=ids("<|vision_eos|>"),
        user_token_id=5,
    )


def legacy(config: Config) -> None:
    """The thinker as a part, whose other parts are left out."""
    thinker = {key: config.pop(key) for key in list(config) if key != "transformers_version"}
    config |= {"model_type": thinker["model_type"].removesuffix("_thinker"), "thinker_config": thinker}
    config["enable_audio_output"] = False


def hub(tensors: Tensors) -> Tensors:
    return {f"thinker.{name}": tensor for name, tensor in tensors.items()}


def mlx(tensors: Tensors) -> Tensors:
    pairs = ("visual.", "vision_tower."), ("model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")
    tensors = hub(channels_last(renamed(tensors, *pairs)))
    del tensors["thinker.audio_tower.audio_bos_eos_token.weight"]  # no forward reads it
    for name in ("conv1", "conv2"):
        tensors[f"thinker.audio_tower.{name}.weight"] = swap(tensors[f"thinker.audio_tower.{name}.weight"], 1, 2)
    return tensors


LARGER = {"clip": "wide_clip", "odd_clip": "odd_wide_clip"}
"""Clips that keep their size: torchvision and Pillow enlarge with levels between them at sharp edges, since one cuts off
what overshoots after each of two passes."""
VIDEOS = {name: replace(case, videos=[LARGER[clip] for clip in case.videos]) for name, case in VIDEO_CASES.items()}
HEARD = AUDIO_CASES | {
    "img_audio": Case(user("image", "audio", "Compare."), images=["upright"], audios=["short_sound"]),
    "audio_video": Case(user("audio", "video", "Compare."), videos=["wide_clip"], audios=["sound"]),
}
CASES, BATCHES = VISION_CASES | VIDEOS | HEARD, VISION_BATCHES | VIDEO_BATCHES | AUDIO_BATCHES
KIT = ProcessorKit("qwen2_5_omni", processor, image_pixels, video_pixels, clips=clips, audio=audio_features)
RECIPES = {
    "qwen2_5_omni": Recipe(config, TOKENIZER, CASES, BATCHES, KIT, RULES, hub=hub, mlx=mlx, legacy=legacy),
}
