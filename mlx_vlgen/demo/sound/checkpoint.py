"""The files of the built-in ear other than its weights: tokenizer, chat template, configuration.

They follow transformers' layout of Qwen2.5-Omni's thinker.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from ..checkpoint import byte_level_bpe, tokenizer_config, write_files

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>", "<|vision_bos|>",
    "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>",
)  # fmt: skip
VOCABULARY = 765
MELS, WINDOW = 128, 100
WIDTH = 192

CHAT_TEMPLATE = """\
{%- macro text_of(content) %}
    {%- if content is string %}{{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if part.type == 'audio' or 'audio' in part or 'audio_url' in part %}
                {{- '<|audio_bos|><|AUDIO|><|audio_eos|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {{- text_of(message.content) }}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """VOCABULARY entries, special tokens included: each known word is one."""
    return byte_level_bpe(texts, VOCABULARY, pre_tokenizers.ByteLevel(add_prefix_space=False), SPECIAL)


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json. The vision tower is there because the layout has one; it is as small as can be and not trained."""
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    return {
        "architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"],
        "model_type": "qwen2_5_omni_thinker",
        "dtype": "float16",
        "tie_word_embeddings": True,
        "audio_token_index": ids["<|AUDIO|>"],
        "image_token_index": ids["<|IMAGE|>"],
        "video_token_index": ids["<|VIDEO|>"],
        "audio_start_token_id": ids["<|audio_bos|>"],
        "audio_end_token_id": ids["<|audio_eos|>"],
        "vision_start_token_id": ids["<|vision_bos|>"],
        "vision_end_token_id": ids["<|vision_eos|>"],
        "user_token_id": tokenizer.encode("user").ids[0],
        "position_id_per_seconds": 25,
        "seconds_per_chunk": 2,
        "audio_config": {
            "model_type": "qwen2_5_omni_audio_encoder",
            "num_mel_bins": MELS,
            "d_model": WIDTH,
            "encoder_layers": 5,
            "encoder_attention_heads": 3,
            "encoder_ffn_dim": 4 * WIDTH,
            "n_window": WINDOW,
            "max_source_positions": 1500,
            "activation_function": "gelu",
            "scale_embedding": False,
            "output_dim": WIDTH,
        },
        "vision_config": {
            "model_type": "qwen2_5_omni_vision_encoder",
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "hidden_act": "silu",
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
        "text_config": {
            "model_type": "qwen2_5_omni_text",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "default", "mrope_section": [8, 12, 12]},
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
    }


def write(folder: Path, tokenizer: Tokenizer) -> None:
    """Every file of the checkpoint but model.safetensors."""
    tokens = {
        "audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
        "image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
    }  # fmt: skip
    files = {
        "config.json": model_config(tokenizer),
        "preprocessor_config.json": {
            "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": MELS, "sampling_rate": 16000,
            "n_fft": 400, "hop_length": 160, "chunk_length": 300, "n_samples": 4800000, "nb_max_frames": 30000,
            "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True, "dither": 0.0,
            "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "temporal_patch_size": 2,
            "merge_size": 2, "min_pixels": 3136, "max_pixels": 12544, "processor_class": "Qwen2_5OmniProcessor",
        },
        "tokenizer_config.json": tokenizer_config(SPECIAL, "Qwen2_5OmniProcessor") | tokens,
    }  # fmt: skip
    write_files(folder, tokenizer, CHAT_TEMPLATE, files)
