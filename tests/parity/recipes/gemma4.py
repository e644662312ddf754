"""Gemma 4, dense and mixture of experts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..recipe import (
    AUDIO_BATCHES,
    AUDIO_CASES,
    HEADS,
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
    ends,
    metadata,
    renamed,
    rope,
    user,
)
from ..weights import Rule, Tensors

# Does what the published one does, which is not ours to copy: the first token, a system turn, trimmed texts.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<|turn>' + role + '\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ['image', 'video'] %}{{ '<|' + c['type'] + '|>' }}{% else %}{{ c['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<turn|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\\n' }}{% endif %}"
)
TOKENIZER = TokenizerKit(
    "gemma4",
    ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>", "<|audio>", "<audio|>",
     "<|audio|>", "<|video|>"],
    "<eos>",
    "<pad>",
    TEMPLATE,
    "<bos>",
    {
        "boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>",
        "boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": "<|audio|>",
    },
)  # fmt: skip
HEARING = replace(
    TOKENIZER, name="gemma4_audio", template=TEMPLATE.replace("['image', 'video']", "['image', 'video', 'audio']")
)
CASES = VISION_CASES | {name: VIDEO_CASES[name] for name in ("video", "odd_video", "video_img")}
HEARING_CASES = (
    {name: VISION_CASES[name] for name in ("text", "img1")}
    | {name: AUDIO_CASES[name] for name in ("audio", "long_audio", "audio_dialogue")}
    | {"img_audio": Case(user("image", "audio", "Compare."), images=["upright"], audios=["short_sound"])}
)
ENDS = ends("<bos>", "<eos>", "<pad>")
PATCH, POOL, PICTURE, FRAME = 4, 3, 24, 6
"""The last two: tokens of each at most. A picture has more than the sliding window, which hides some from others."""

BANDS = 32
"""Of a spectrogram: as many as the audio tower's first convolution has channels."""

FULL_ROPE: Config = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
ROPE: Config = {"full_attention": FULL_ROPE, "sliding_attention": rope(1e4)}
RULES: tuple[Rule, ...] = (
    # Scores are not divided by the root of the head's size: large ones would magnify the last bits of float32.
    (r"[qk]_norm\.weight$", 0.5, 0.1),
    (r"norm(_\d)?\.weight$", 1.0, 0.2),
    (r"embed_tokens\.weight$", 0.0, 0.08),
    (r"embed_tokens_per_layer\.weight$", 0.0, 0.25),
    (r"position_embedding_table$", 0.0, 0.5),
    (r"layer_scalar$", 0.8, 0.1),
    (r"put_min$", -1.0, 0.1),
    (r"put_max$", 1.0, 0.1),
    (r"std_bias$", 0.0, 0.5),
    (r"(std_scale|router\.scale|per_expert_scale)$", 1.0, 0.2),
    (r"router\.proj\.weight$", 0.0, 1.0),
)


def config(text: Config, vision: Config, audio: Config | None) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        text_config = HEADS | ENDS(ids) | {
            "hidden_size": 72, "intermediate_size": 96, "head_dim": 32, "global_head_dim": 64, "vocab_size": vocabulary,
            "vocab_size_per_layer_input": vocabulary, "sliding_window": 10, "final_logit_softcapping": 3.0,
            "num_hidden_layers": 6, "layer_types": [*["sliding_attention"] * 2, "full_attention"] * 2,
            "rope_parameters": ROPE,
        } | text  # fmt: skip
        vision_config = {
            "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 4, "head_dim": 12, "patch_size": PATCH, "pooling_kernel_size": POOL,
            "position_embedding_size": 64,
        } | vision  # fmt: skip
        return transformers.Gemma4Config(
            text_config=text_config, vision_config=vision_config, audio_config=audio, boi_token_id=ids("<|image>"),
            eoi_token_id=ids("<image|>"), image_token_id=ids("<|image|>"), video_token_id=ids("<|video|>"),
            boa_token_id=ids("<|audio>"), eoa_token_index=ids("<audio|>"), audio_token_id=ids("<|audio|>"),
            eos_token_id=[ids("<eos>"), ids("<turn|>")],
        )  # fmt: skip

    return build


def processor(tokenizer: Any) -> Any:
    import transformers
    from transformers.models.gemma4 import image_processing_pil_gemma4 as images
    from transformers.models.gemma4 import video_processing_gemma4 as videos

    # It takes no smaller numbers of tokens than the published models know.
    images._SUPPORTED_SOFT_TOKENS = videos._SUPPORTED_SOFT_TOKENS = (PICTURE, FRAME)
    sizes = {"patch_size": PATCH, "pooling_kernel_size": POOL}
    return transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(), images.Gemma4ImageProcessorPil(max_soft_tokens=PICTURE, **sizes),
        tokenizer, videos.Gemma4VideoProcessor(max_soft_tokens=FRAME, **sizes), image_seq_length=PICTURE,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


def hearing_processor(tokenizer: Any) -> Any:
    import transformers

    made = processor(tokenizer)
    made.feature_extractor = transformers.Gemma4AudioFeatureExtractor(feature_size=BANDS)
    return made


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.image_processor(images=[image], return_tensors="np")
    return unpadded(features["pixel_values"], features["image_position_ids"])


def video_pixels(processor: Any, clip: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.video_processor(videos=[clip], return_tensors="np", do_sample_frames=False, **metadata([clip]))
    return unpadded(np.asarray(features["pixel_values_videos"]), np.asarray(features["video_position_ids"]))


def unpadded(pixels: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """positions: (column, row) of each patch, -1 where it is padding."""
    columns, rows = (positions[0].max(axis=0) + 1).tolist()
    return pixels[:, : rows * columns], (rows, columns)


def audio_features(processor: Any, samples: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Without padding."""
    made = processor.feature_extractor([samples], return_tensors="np")
    frames = int(made["input_features_mask"].sum())
    return made["input_features"][0][:frames].astype(np.float32), (frames,)


def mlx(tensors: Tensors) -> Tensors:
    """Experts under mlx-lm's names, convolutions with their channels last."""
    pairs = (
        ("model.vision_tower.", "vision_tower."),
        ("model.embed_vision.", "embed_vision."),
        ("model.audio_tower.", "audio_tower."),
        ("model.embed_audio.", "embed_audio."),
        ("model.language_model.", "language_model.model."),
    )
    out = renamed(tensors, *pairs)
    for name in [name for name in out if name.endswith(".experts.gate_up_proj")]:
        stem = name.removesuffix("gate_up_proj")
        gate, up = np.split(out.pop(name), 2, axis=1)
        out[f"{stem}switch_glu.gate_proj.weight"] = np.ascontiguousarray(gate)
        out[f"{stem}switch_glu.up_proj.weight"] = np.ascontiguousarray(up)
        out[f"{stem}switch_glu.down_proj.weight"] = out.pop(f"{stem}down_proj")
    for name in [name for name in out if name.endswith((".conv.weight", ".depthwise_conv1d.weight"))]:
        out[name] = np.ascontiguousarray(np.moveaxis(out[name], 1, -1))
    return out


def legacy(config: Config) -> None:
    """The first release had rotary parameters as today's, but sizes of global layers under other names."""
    text, vision = config["text_config"], config["vision_config"]
    for key in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
        text.pop(key, None)
    text["rope_parameters"] = ROPE
    vision |= {"model_type": "gemma4_vision", "rope_parameters": rope(100.0)}
    full = next(iter(text.pop("per_layer_config").values()))
    text |= {"global_head_dim": full["head_dim"], "num_global_key_value_heads": full.get("num_key_value_heads")}


def recipe(text: Config, **vision: Any) -> Recipe:
    kit = ProcessorKit("gemma4", processor, image_pixels, video_pixels, channels_last=True, nested=True)
    return Recipe(
        config(text, vision, None), TOKENIZER, CASES, VISION_BATCHES | VIDEO_BATCHES, kit, RULES,
        mlx=mlx, legacy=legacy,
    )  # fmt: skip


def hearing_recipe() -> Recipe:
    text: Config = {
        "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 2, "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }  # fmt: skip
    audio: Config = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "subsampling_conv_channels": [32, 8],
        "output_proj_dims": 40,
    }  # fmt: skip
    kit = ProcessorKit(
        "gemma4_audio", hearing_processor, image_pixels, channels_last=True, nested=True, audio=audio_features
    )
    rules = (*RULES, (r"per_dim_scale$", 0.0, 0.5), (r"relative_k_proj\.weight$", 0.0, 0.5))
    return Recipe(
        config(text, {}, audio), HEARING, HEARING_CASES, AUDIO_BATCHES, kit, rules, 8, mlx=mlx, legacy=legacy
    )  # fmt: skip


RECIPES = {
    "gemma4_audio": hearing_recipe(),
    "gemma4": recipe(
        {"hidden_size_per_layer_input": 16, "num_kv_shared_layers": 3, "use_double_wide_mlp": True},
        use_clipped_linears=True,
    ),
    "gemma4_moe": recipe(
        {
            "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2,
            "moe_intermediate_size": 40, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
            "use_bidirectional_attention": "vision",
        },
        standardize=True,
    ),
}  # fmt: skip
