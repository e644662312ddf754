"""InternVL with Qwen2, with Qwen3, and as version 2 with InternLM2 and with Phi-3."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..recipe import (
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
    join_qkv,
    renamed,
    rope,
    user,
)
from ..weights import Rule, Tensors
from .llava import text_config
from .text import legacy_longrope, longrope

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
    "{% elif c['type'] == 'video' %}{{ '<video>\\n' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENIZER = TokenizerKit(
    "internvl",
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
    "<|im_end|>", "<|endoftext|>", TEMPLATE,
    named={
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
)  # fmt: skip
RULES: tuple[Rule, ...] = (
    (r"position_embeddings$|cls_token$", 0.0, 0.5),
    (r"layernorm_(before|after)\.weight$", 1.0, 0.2),
    (r"lambda_\d$", 0.8, 0.3),
)
TOWER: Config = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": [28, 28], "patch_size": [7, 7],
}  # fmt: skip
NORMAL: Config = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CASES = (
    VISION_CASES
    | VIDEO_CASES
    | {
        "wide": Case(user("What is wide? ", "image"), images=["wide"]),
        "small": Case(user("image", "What is small?"), images=["small"]),
    }
)
BATCHES = VISION_BATCHES | VIDEO_BATCHES | {"batch_shapes": ["wide", "img2", "small"]}


def _config(model_type: str, vision: Config, **text: Any) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        return transformers.InternVLConfig(
            vision_config=TOWER | vision,
            text_config=text_config(ids, vocabulary, model_type, rms_norm_eps=1e-6, **text) | QWEN_ENDS(ids),
            image_token_id=ids("<IMG_CONTEXT>"), image_seq_length=4, tie_word_embeddings=False, **QWEN_ENDS(ids),
        )  # fmt: skip

    return build


def _processor(min_tiles: int, max_tiles: int) -> Callable[[Any], Any]:
    """The bounds of the number of tiles. As in published files, `crop_to_patches` is false."""

    def build(tokenizer: Any) -> Any:
        import transformers

        square: Config = {"size": {"height": 28, "width": 28}} | NORMAL
        return transformers.InternVLProcessor(
            transformers.GotOcr2ImageProcessorPil(
                crop_to_patches=False, min_patches=min_tiles, max_patches=max_tiles, **square
            ),
            tokenizer, transformers.InternVLVideoProcessor(**square), image_seq_length=4,
            chat_template=tokenizer.chat_template,
        )  # fmt: skip

    return build


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.image_processor(images=[image], crop_to_patches=True, return_tensors="np")
    return np.asarray(features["pixel_values"]), ()


def video_pixels(processor: Any, clip: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.video_processor(videos=[clip], do_sample_frames=False, return_tensors="np")
    return np.asarray(features["pixel_values_videos"])[0], ()


def legacy(config: Config) -> None:
    config["vision_config"]["model_type"] = "internvl_vision"
    for key in ("tie_word_embeddings", "projector_hidden_act", "downsample_ratio"):
        config.pop(key, None)


def first_release(config: Config) -> None:
    """As the authors' code has it."""
    config |= {"model_type": "internvl_chat", "llm_config": config.pop("text_config"), "select_layer": -1}
    config |= {"downsample_ratio": 0.5, "ps_version": "v2", "dynamic_image_size": True, "use_thumbnail": True}
    for key in ("vision_feature_layer", "vision_feature_select_strategy", "image_seq_length"):
        del config[key]
    vision = config["vision_config"]
    config["vision_config"] = {
        key: vision[key]
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "norm_type")
    } | {
        "model_type": "intern_vit_6b", "image_size": 28, "patch_size": 7, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        "qkv_bias": vision["attention_bias"], "qk_normalization": vision["use_qk_norm"],
    }  # fmt: skip


def hub(tensors: Tensors) -> Tensors:
    """The names of transformers' modules, which it reads and does not write."""
    pairs = (
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
    )
    return renamed(tensors, *pairs)


def mlx(tensors: Tensors) -> Tensors:
    """The names of the first release, whose queries, keys and values were one."""
    names = (
        (r"^vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
        (r"^vision_tower\.", "vision_model."),
        ("embeddings.cls_token", "embeddings.class_embedding"),
        ("embeddings.position_embeddings", "embeddings.position_embedding"),
        ("embeddings.patch_embeddings.projection", "embeddings.patch_embedding"),
        ("attention.projection_layer", "attn.proj"),
        ("attention", "attn"),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("lambda_", "ls"),
        (r"^multi_modal_projector\.layer_norm", "mlp1.0"),
        (r"^multi_modal_projector\.linear_1", "mlp1.1"),
        (r"^multi_modal_projector\.linear_2", "mlp1.3"),
    )
    out: Tensors = {}
    for name, tensor in channels_last(tensors).items():
        if not name.startswith("language_model."):
            for old, new in names:
                name = re.sub(old, new, name)
        out[name] = tensor
    return join_qkv(out, ".attn.")


def legacy_phi3(config: Config) -> None:
    legacy(config)
    legacy_longrope(config["text_config"])


def phi3_release(config: Config) -> None:
    """InternVL 2's, where LongRoPE has the name of its first release, which transformers 5 cannot read."""
    first_release(config)
    config["llm_config"]["rope_scaling"]["type"] = "su"


def internlm2_release(config: Config) -> None:
    """InternVL 2's, whose text decoder is InternLM2, which transformers has not."""
    first_release(config)
    config["llm_config"] |= {"model_type": "internlm2", "bias": False}
    del config["llm_config"]["attention_bias"], config["llm_config"]["mlp_bias"]


def internlm2(tensors: Tensors) -> Tensors:
    """The names of that release; each group of queries, their key and their value one after another."""
    names = (
        ("model.embed_tokens", "model.tok_embeddings"), ("lm_head", "output"), ("self_attn.o_proj", "attention.wo"),
        ("mlp.gate_proj", "feed_forward.w1"), ("mlp.up_proj", "feed_forward.w3"), ("mlp.down_proj", "feed_forward.w2"),
        ("post_attention_layernorm", "ffn_norm"), ("input_layernorm", "attention_norm"),
    )  # fmt: skip
    out: Tensors = {}
    first = mlx(tensors)
    for name, tensor in first.items():
        new = name
        if name.startswith("language_model."):
            if re.search(r"\.[kv]_proj", name):
                continue
            for old, part in names:
                new = new.replace(old, part)
        if ".q_proj" in name:
            key, value = (first[name.replace(".q_proj", f".{part}_proj")] for part in "kv")
            groups = HEADS["num_key_value_heads"]
            parts = [part.reshape(groups, -1, part.shape[-1]) for part in (tensor, key, value)]
            new = new.replace("self_attn.q_proj", "attention.wqkv")
            tensor = np.concatenate(parts, axis=1).reshape(-1, tensor.shape[-1])
        out[new] = tensor
    return out


# The 300M tower, and Qwen2.5 with the rotary scaling that InternVL 3 is published with.
PLAIN: Config = {"norm_type": "layer_norm", "attention_bias": True, "use_qk_norm": False}
DYNAMIC = rope(1e6, rope_type="dynamic", factor=2.0)
# The 6B tower.
LARGE: Config = {"norm_type": "rms_norm", "attention_bias": False, "use_qk_norm": True}
FEW = {name: CASES[name] for name in ("text", "img1", "img2")}
RECIPES = {
    "internvl": Recipe(
        _config("qwen2", PLAIN, rope_parameters=DYNAMIC), TOKENIZER, CASES, BATCHES,
        ProcessorKit("internvl", _processor(2, 6), image_pixels, video_pixels), RULES,
        hub=hub, mlx=mlx, legacy=legacy, mlx_config=first_release,
    ),
    "internvl_internlm2": Recipe(
        _config("llama", PLAIN, rope_parameters=DYNAMIC), TOKENIZER, FEW, {"batch": ["img1", "text"]},
        ProcessorKit("internvl", _processor(2, 6), image_pixels, video_pixels), RULES,
        hub=hub, mlx=internlm2, legacy=legacy, mlx_config=internlm2_release,
    ),
    # A text has the first of Phi-3's frequencies, a prompt with a picture the second.
    "internvl_phi3": Recipe(
        _config("phi3", PLAIN, **longrope(40)), TOKENIZER, FEW, {"batch": ["img1", "text"]},
        ProcessorKit("internvl", _processor(2, 6), image_pixels, video_pixels), RULES,
        hub=hub, mlx=mlx, legacy=legacy_phi3, mlx_config=phi3_release,
    ),
    "internvl_qwen3": Recipe(
        _config("qwen3", LARGE, rope_parameters=rope(1e6), head_dim=32), TOKENIZER, CASES, BATCHES,
        ProcessorKit("internvl_qwen3", _processor(1, 3), image_pixels, video_pixels), RULES,
        hub=hub, mlx=mlx, legacy=legacy, mlx_config=first_release,
    ),
}  # fmt: skip
