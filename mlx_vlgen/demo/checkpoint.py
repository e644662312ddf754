"""The files of the built-in checkpoint other than its weights: tokenizer, chat template, configuration.

They follow the Hub's Qwen3-VL checkpoints (transformers 4.57 layout).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PLAIN_ADDED = ("<think>", "</think>")  # as in Qwen3: added, yet part of the text
VOCABULARY = 576

PATCH, MERGE, TEMPORAL = 8, 2, 2
# 36 to 49 tokens: a picture always arrives at about the same scale. A little over 112 x 112: at exactly 112 x 112
# rounding would decide whether a square becomes 112 or 96 a side.
MIN_PIXELS, MAX_PIXELS = 9216, 12600
VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS = 4096, 50300  # of a whole clip (frames x height x width), as Qwen3-VL counts

# Quoted text and digits are one token a character, so that reading print is copying glyphs. The rest is Qwen2's
# pattern. Onigmo takes a look-behind of several fixed lengths: up to eight characters after an opening quote.
_SPELT = r'(?<="' + "".join(rf'|"[A-Za-z0-9]{{{n}}}' for n in range(1, 8)) + r")[A-Za-z0-9]"
_PATTERN = (
    rf"{_SPELT}|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}\"]?\p{{L}}+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- macro text_of(content) %}
    {%- if content is string %}{{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' or 'video' in part %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {{- text_of(message.content).split('</think>')[-1].lstrip('\\n') }}
    {%- else %}
        {{- text_of(message.content) }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """VOCABULARY entries, special tokens included, as small as the model's world."""
    split = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    return byte_level_bpe(texts, VOCABULARY, split, SPECIAL, PLAIN_ADDED)


def byte_level_bpe(
    texts: Iterable[str], size: int, split: pre_tokenizers.PreTokenizer, special: Sequence[str],
    plain: Sequence[str] = (),
) -> Tokenizer:  # fmt: skip
    """Byte-level BPE of `size` entries, the added ones of `special` and `plain` included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    added = len(special) + len(plain)
    trainer = trainers.BpeTrainer(vocab_size=size - added, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} tokens, not {size}")
    return tokenizer


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json. Sizes: 4.47 million parameters, a little over half in the text decoder."""
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": "bfloat16",
        "tie_word_embeddings": True,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": VOCABULARY,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "initializer_range": 0.02,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [12, 10, 10]},
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "use_cache": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "dtype": "bfloat16",
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 6,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_heads": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "out_hidden_size": 192,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [2],
            "initializer_range": 0.02,
        },
    }


def write(folder: Path, tokenizer: Tokenizer) -> None:
    """Every file of the checkpoint but model.safetensors."""
    processing = {
        "patch_size": PATCH, "temporal_patch_size": TEMPORAL, "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "processor_class": "Qwen3VLProcessor",
    }  # fmt: skip
    files = {
        "config.json": model_config(tokenizer),
        "preprocessor_config.json": {
            "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}, **processing,
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        "video_preprocessor_config.json": {
            "size": {"shortest_edge": VIDEO_MIN_PIXELS, "longest_edge": VIDEO_MAX_PIXELS}, **processing,
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
        "tokenizer_config.json": tokenizer_config(SPECIAL, "Qwen3VLProcessor"),
    }  # fmt: skip
    write_files(folder, tokenizer, CHAT_TEMPLATE, files)


def tokenizer_config(special: Sequence[str], processor_class: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "unk_token": None, "add_prefix_space": False,
        "additional_special_tokens": list(special[1:]), "clean_up_tokenization_spaces": False,
        "model_max_length": 4096, "padding_side": "left", "processor_class": processor_class,
    }  # fmt: skip


def write_files(folder: Path, tokenizer: Tokenizer, chat_template: str, files: dict[str, dict[str, Any]]) -> None:
    """The tokenizer, the template, `files` by their names, and how to generate."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(chat_template)
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    generation = {"bos_token_id": pad, "pad_token_id": pad, "eos_token_id": [end, pad], "do_sample": False}
    for name, content in {**files, "generation_config.json": generation}.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
