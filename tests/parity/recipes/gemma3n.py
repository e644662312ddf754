"""Gemma 3n."""

from dataclasses import replace
from typing import Any

import numpy as np

from ..recipe import (
    AUDIO_BATCHES,
    AUDIO_CASES,
    HEADS,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    renamed,
    rope,
    user,
)
from ..weights import Rule, Tensors
from .gemma3 import ENDS
from .gemma3 import TEMPLATE as GEMMA3_TEMPLATE

TEMPLATE = GEMMA3_TEMPLATE.replace(
    "{{ '<start_of_image>' }}",
    "{{ '<image_soft_token>' }}{% elif c['type'] == 'audio' %}{{ '<audio_soft_token>' }}",
)
TOKENIZER = TokenizerKit(
    "gemma3n",
    ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<start_of_audio>",
     "<end_of_image>", "<image_soft_token>", "<end_of_audio>", "<audio_soft_token>"],
    "<eos>",
    "<pad>",
    TEMPLATE,
    "<bos>",
    {
        "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
        "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>", "audio_token": "<audio_soft_token>",
    },
)  # fmt: skip
CASES = VISION_CASES | {
    "audio": AUDIO_CASES["audio"],
    "long_audio": AUDIO_CASES["long_audio"],
    # transformers fills clips of one prompt up to the longest, of which the last frames of the others hear.
    "audio_dialogue": replace(AUDIO_CASES["audio_dialogue"], audios=["sound", "sound"]),
    "img_audio": Case(user("image", "audio", "Compare."), images=["upright"], audios=["short_sound"]),
}
SIDE, RESOLUTION, CLIP, BANDS = 96, 3, 20, 32
"""Of a picture in pixels and in features; tokens of a clip; of a spectrogram."""
RULES: tuple[Rule, ...] = (
    # Scores are not divided by the root of the head's size: large ones would magnify the last bits of float32.
    (r"[qk]_norm\.weight$", 0.5, 0.1),
    (r"(norm|bn)\d?\.weight$", 1.0, 0.2),
    (r"correct_output_scale$", 0.8, 0.2),
    (r"gamma$", 0.3, 0.1),
    (r"embed_tokens\.weight$", 0.0, 0.08),
    (r"embed_tokens_per_layer\.weight$", 0.0, 0.25),
    (r"per_dim_scale$", 0.0, 0.5),
    (r"pos_proj\.weight$", 0.0, 0.5),
)


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    seen, heard = ids("<end_of_image>"), ids("<end_of_audio>")
    return transformers.Gemma3nConfig(
        text_config=HEADS | ENDS(ids) | {
            "hidden_size": 72, "intermediate_size": [96, 96, 80, 96], "num_hidden_layers": 4, "head_dim": 32,
            "vocab_size": vocabulary, "vocab_size_per_layer_input": seen, "hidden_size_per_layer_input": 16,
            "sliding_window": 10, "num_kv_shared_layers": 2, "laurel_rank": 8, "final_logit_softcapping": 3.0,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.95, 0.8, 0.0, 0.0],
            "rope_parameters": {"full_attention": rope(1e6), "sliding_attention": rope(1e4)},
        },
        vision_config={
            "architecture": "mobilenetv5_300m_enc", "vocab_offset": seen, "vocab_size": heard - seen,
            "model_args": {"channel_multiplier": 0.03, "msfa_output_resolution": RESOLUTION},
        },
        audio_config={
            "vocab_offset": heard, "vocab_size": vocabulary - heard, "hidden_size": 32, "input_feat_size": BANDS,
            "conf_num_attention_heads": 4, "conf_num_hidden_layers": 2, "sscp_conv_channel_size": [16, 8],
        },
        audio_soft_tokens_per_image=CLIP, vision_soft_tokens_per_image=RESOLUTION**2,
        boi_token_id=ids("<start_of_image>"), eoi_token_id=seen, image_token_id=ids("<image_soft_token>"),
        boa_token_id=ids("<start_of_audio>"), eoa_token_id=heard, audio_token_id=ids("<audio_soft_token>"),
        eos_token_id=[ids("<eos>"), ids("<end_of_turn>")],
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    import transformers

    size, colors = {"height": SIDE, "width": SIDE}, {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    image = transformers.SiglipImageProcessorPil(size=size, do_normalize=False, **colors)
    return transformers.Gemma3nProcessor(
        transformers.Gemma3nAudioFeatureExtractor(feature_size=BANDS), image, tokenizer, audio_seq_length=CLIP,
        image_seq_length=RESOLUTION**2, chat_template=tokenizer.chat_template,
    )  # fmt: skip


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return np.asarray(processor.image_processor(images=[image], return_tensors="np")["pixel_values"]), ()


def audio_features(processor: Any, samples: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.feature_extractor([samples], return_tensors="np")["input_features"][0]
    return features.astype(np.float32), (len(features),)


def mlx(tensors: Tensors) -> Tensors:
    """Convolutions with their channels last."""
    named = renamed(tensors, ("model.language_model.", "language_model.model."), ("model.", ""))
    return {
        name: np.ascontiguousarray(np.moveaxis(tensor, 1, -1)) if tensor.ndim >= 3 else tensor
        for name, tensor in named.items()
    }


def legacy(config: Config) -> None:
    config["vision_config"]["model_type"] = "gemma3n_vision"


RECIPES = {
    "gemma3n": Recipe(
        config, TOKENIZER, CASES, VISION_BATCHES | AUDIO_BATCHES,
        ProcessorKit("gemma3n", processor, image_pixels, nested=True, audio=audio_features), RULES, 8, mlx=mlx,
        legacy=legacy,
    ),
}  # fmt: skip
