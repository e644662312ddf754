"""Qwen2-Audio."""

from typing import Any

import numpy as np

from ..recipe import (
    AUDIO_BATCHES,
    AUDIO_CASES,
    QWEN_ENDS,
    VISION_CASES,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    whisper_extractor,
)
from ..weights import Rule, Tensors
from .llava import text_config

AUDIO, BEGIN, END = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
TEMPLATE = (
    "{% set heard = namespace(count=0) %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'audio' %}{% set heard.count = heard.count + 1 %}"
    "{{ 'Audio ' ~ heard.count ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\\n' }}"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENIZER = TokenizerKit(
    "qwen2_audio", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", AUDIO, BEGIN, END], "<|im_end|>", "<|endoftext|>",
    TEMPLATE, named={"audio_token": AUDIO, "audio_bos_token": BEGIN, "audio_eos_token": END},
)  # fmt: skip
SECONDS = 2
"""Of sound that the tower takes: the longest clip is cut off."""
RULES: tuple[Rule, ...] = ((r"embed_positions\.weight$", 0.0, 0.5),)


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    return transformers.Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder", "num_mel_bins": 32, "encoder_layers": 2, "d_model": 48,
            "encoder_attention_heads": 4, "encoder_ffn_dim": 80, "max_source_positions": SECONDS * 50,
        },
        text_config=text_config(ids, vocabulary, "qwen2") | QWEN_ENDS(ids), audio_token_index=ids(AUDIO),
        **QWEN_ENDS(ids),
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    import transformers

    extractor = whisper_extractor(feature_size=32, chunk_length=SECONDS)
    return transformers.Qwen2AudioProcessor(extractor, tokenizer, chat_template=tokenizer.chat_template)


def audio_features(processor: Any, samples: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Without the silence that nothing sees."""
    made = processor.feature_extractor(samples, sampling_rate=16_000, return_attention_mask=True, return_tensors="np")
    frames = int(made["attention_mask"].sum())
    return made["input_features"][0].T[: frames + 3].astype(np.float32), (frames,)


def mlx(tensors: Tensors) -> Tensors:
    """Convolutions over time with their channels last."""
    return {
        name: np.ascontiguousarray(np.swapaxes(tensor, 1, 2)) if tensor.ndim == 3 else tensor
        for name, tensor in tensors.items()
    }


RECIPES = {
    "qwen2_audio": Recipe(
        config, TOKENIZER, {"text": VISION_CASES["text"]} | AUDIO_CASES, AUDIO_BATCHES,
        ProcessorKit("qwen2_audio", processor, audio=audio_features), RULES, mlx=mlx,
    ),
}  # fmt: skip
