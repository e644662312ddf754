"""The thinkers of Qwen2.5-Omni and Qwen3-Omni, saved alone by transformers 5; on the Hub parts of what speaks."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from ..recipe import (
    AUDIO_CASES,
    EXPERTS,
    HEADS,
    QWEN_ENDS,
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
    switch_experts,
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


CASES = {name: VISION_CASES[name] for name in ("text", "dialogue", "img1", "upright", "img2")}
CASES |= {name: AUDIO_CASES[name] for name in ("audio2", "long_audio")}
# Clips that keep their size: enlarged, they differ by levels at sharp edges between torchvision and Pillow, which cuts
# off what overshoots after each of two passes.
CASES |= {
    "audio_video": Case(user("audio", "video", "Compare."), videos=["wide_clip"], audios=["short_sound"]),
    "heard_video": Case(
        user("image", "video", "Compare."), images=["small"], videos=["odd_wide_clip"], audios=["long_sound"]
    ),
}
BATCHES = VISION_BATCHES | {"batch_media": ["long_audio", "audio_video", "dialogue", "audio2"]}
STEPS = 6
KIT = ProcessorKit("qwen2_5_omni", processor, image_pixels, video_pixels, clips=clips, audio=audio_features)


# Qwen3-Omni

NAMED_3 = {
    "image_token": "<|image_pad|>", "audio_token": "<|audio_pad|>", "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>",
}  # fmt: skip
TOKENIZER_3 = TokenizerKit(
    "qwen3_omni", (*SPECIALS[:3], *NAMED_3.values()), "<|im_end|>", "<|endoftext|>",
    functools.reduce(lambda text, name: text.replace(NAMED[name], NAMED_3[name]), NAMED, TEMPLATE), named=NAMED_3,
)  # fmt: skip


def one_by_one(extractor: Any) -> Any:
    """The extractor, whose clips of a list are as each alone: it pads their samples otherwise, so that the end of a
    shorter one, and even its number of frames, depend on the others."""
    base = type(extractor)

    def extract(self: Any, clips: Any, **keywords: Any) -> Any:
        import transformers

        if isinstance(clips, np.ndarray):
            return base.__call__(self, clips, **keywords)
        features = [np.asarray(base.__call__(self, clip, **keywords)["input_features"][0]) for clip in clips]
        lengths = np.array([feature.shape[1] for feature in features])
        padded = [np.pad(feature, ((0, 0), (0, lengths.max() - feature.shape[1]))) for feature in features]
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
        made = {"input_features": np.stack(padded), "attention_mask": mask}
        return transformers.BatchFeature(made, tensor_type="pt")

    extractor.__class__ = type(base.__name__, (base,), {"__call__": extract})
    return extractor


def processor_3(tokenizer: Any) -> Any:
    import transformers

    colors = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    image = transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64 * 64, "longest_edge": 6 * 64 * 64}, patch_size=32, **colors
    )
    video = transformers.Qwen2VLVideoProcessor(patch_size=32, **colors)
    sound = one_by_one(whisper_extractor(feature_size=32))
    return transformers.Qwen3OmniMoeProcessor(image, video, sound, tokenizer, chat_template=tokenizer.chat_template)


def audio_features_3(processor: Any, samples: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    made = processor.feature_extractor(samples, sampling_rate=16_000, padding=True, truncation=False)
    features = np.asarray(made["input_features"][0]).T.astype(np.float32)
    return features, (len(features),)


def config_3(ids: Ids, vocabulary: int) -> Any:
    import transformers

    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32, "vocab_size": vocabulary,
        "rope_parameters": rope(1e6, mrope_interleaved=True, mrope_section=[6, 5, 5]),
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 48, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 80,
        "patch_size": 32, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 144,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    sound = {
        "num_mel_bins": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 80,
        "d_model": 48, "output_dim": 64, "n_window_infer": 200, "downsample_hidden_size": 8,
    }  # fmt: skip
    return transformers.Qwen3OmniMoeThinkerConfig(
        text_config=text | HEADS | EXPERTS | QWEN_ENDS(ids),
        vision_config=vision,
        audio_config=sound,
        position_id_per_seconds=13,
        audio_token_id=ids("<|audio_pad|>"),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        audio_start_token_id=ids("<|audio_start|>"),
        audio_end_token_id=ids("<|audio_end|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        user_token_id=5,
    )


def mlx_3(tensors: Tensors) -> Tensors:
    """The mergers of the tower have Qwen3-VL's names."""
    pairs = (
        ("visual.merger_list.", "vision_tower.deepstack_merger_list."),
        ("visual.", "vision_tower."),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
    tensors = channels_last(switch_experts(renamed(tensors, *pairs)))

    def name(key: str) -> str:
        is_merger = key.startswith(("vision_tower.merger.", "vision_tower.deepstack_merger_list."))
        parts = {".ln_q.": ".norm.", ".mlp.0.": ".linear_fc1.", ".mlp.2.": ".linear_fc2."} if is_merger else {}
        return functools.reduce(lambda text, part: text.replace(part, parts[part]), parts, key)

    return hub({name(key): tensor for key, tensor in tensors.items()})


def longer(case: Case) -> Case:
    """Without a clip of less than a second beside others: transformers' tower pads it to the length of theirs, and its
    features are not those that it has alone."""
    clips = case.audios if len(case.audios) < 2 else [name.replace("short", "long") for name in case.audios]
    return replace(case, audios=clips)


CASES_3 = {name: longer(case) for name, case in CASES.items()}
KIT_3 = ProcessorKit("qwen3_omni", processor_3, image_pixels, video_pixels, clips=clips, audio=audio_features_3)
RECIPES = {
    "qwen2_5_omni": Recipe(config, TOKENIZER, CASES, BATCHES, KIT, RULES, STEPS, hub=hub, mlx=mlx, legacy=legacy),
    "qwen3_omni_moe": Recipe(
        config_3, TOKENIZER_3, CASES_3, BATCHES, KIT_3, RULES, STEPS, hub=hub, mlx=mlx_3, legacy=legacy
    ),
}
