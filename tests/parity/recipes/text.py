"""mlx-lm's text decoders that this package proves."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..recipe import (
    EXPERTS,
    GEMMA_RULES,
    HEADS,
    QWEN_ENDS,
    TEXT_BATCHES,
    TEXT_CASES,
    Config,
    Ids,
    Recipe,
    TokenizerKit,
    channels_last,
    ends,
    rope,
    switch_experts,
)
from ..weights import Rule, Tensors
from .qwen3_vl import QWEN


def chatml_template(begin: str) -> str:
    """Turns between <|im_start|> and <|im_end|>, after `begin`."""
    return (
        begin + "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
        "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}"
    "{{ message['content'] + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
LLAMA = TokenizerKit("llama", ["<unk>", "<s>", "</s>", "<pad>"], "</s>", "<pad>", LLAMA_TEMPLATE, bos="<s>")
GEMMA = TokenizerKit(
    "gemma",
    ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
    "<eos>",
    "<pad>",
    GEMMA_TEMPLATE,
    bos="<bos>",
)
LFM2 = TokenizerKit(
    "lfm2",
    ["<|pad|>", "<|startoftext|>", "<|im_start|>", "<|im_end|>"],
    "<|im_end|>",
    "<|pad|>",
    chatml_template("{{ bos_token }}"),
    bos="<|startoftext|>",
)


def _decoder(config: str, ends: Callable[[Ids], Config], **fields: Any) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": vocabulary}
        return getattr(transformers, config)(**(sizes | HEADS | ends(ids) | copy.deepcopy(fields)))

    return build


def _mlx(tensors: Tensors) -> Tensors:
    return channels_last(switch_experts(tensors))


def _legacy_gemma3(config: Config) -> None:
    config["sliding_window_pattern"] = config.pop("layer_types").index("full_attention") + 1
    config.pop("_sliding_window_pattern", None)


def longrope(switch: int) -> Config:
    """Phi-3's fields for rotary positions that change where a row has more than `switch`."""
    return {
        "original_max_position_embeddings": switch,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
            "long_factor": [1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
        },
    }  # fmt: skip


def legacy_longrope(text: Config) -> None:
    rope = text["rope_scaling"]
    text["rope_scaling"] = {"type": "longrope"} | {key: rope[key] for key in ("short_factor", "long_factor")}


def _legacy_lfm2(config: Config) -> None:
    width = config["hidden_size"]
    attention = [i for i, kind in enumerate(config.pop("layer_types")) if kind == "full_attention"]
    config.update(
        block_dim=width,
        block_ff_dim=config.pop("intermediate_size"),
        block_norm_eps=config["norm_eps"],
        block_use_swiglu=True,
        conv_dim=width,
        conv_dim_out=width,
        full_attn_idxs=attention,
        num_heads=config["num_attention_heads"],
    )


def _family(
    tokenizer: TokenizerKit,
    config: Callable[[Ids, int], Any],
    rules: Sequence[Rule] = (),
    legacy: Callable[[Config], None] | None = None,
) -> Recipe:
    recipe = Recipe(config, tokenizer, TEXT_CASES, TEXT_BATCHES, rules=rules, mlx=_mlx)
    return recipe if legacy is None else replace(recipe, legacy=legacy)


RECIPES: dict[str, Recipe] = {
    "llama": _family(
        LLAMA,
        _decoder(
            "LlamaConfig",
            ends("<s>", "</s>", "<pad>"),
            tie_word_embeddings=False,
            rms_norm_eps=1e-5,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        ),
    ),
    "qwen2": _family(
        QWEN,
        _decoder("Qwen2Config", QWEN_ENDS, tie_word_embeddings=True, rope_parameters=rope(1e6)),
    ),
    "qwen3": _family(
        QWEN,
        _decoder(
            "Qwen3Config", QWEN_ENDS, tie_word_embeddings=True, head_dim=32, rope_parameters=rope(1e6)
        ),
    ),
    "qwen3_moe": _family(
        QWEN,
        _decoder(
            "Qwen3MoeConfig",
            QWEN_ENDS,
            tie_word_embeddings=False,
            head_dim=32,
            rope_parameters=rope(1e6),
            **EXPERTS,
        ),
    ),
    "gemma3_text": _family(
        GEMMA,
        _decoder(
            "Gemma3TextConfig",
            ends("<bos>", "<eos>", "<pad>"),
            tie_word_embeddings=True,
            hidden_size=72,
            num_hidden_layers=4,
            head_dim=32,
            sliding_window=16,
            query_pre_attn_scalar=24,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": rope(1e4),
            },
        ),
        GEMMA_RULES,
        _legacy_gemma3,
    ),
    # The second frequencies begin while "short" is answered; "plain" has the first ones, "long" the second.
    "phi3": _family(
        LLAMA,
        _decoder(
            "Phi3Config",
            ends("<s>", "</s>", "<pad>"),
            tie_word_embeddings=False,
            sliding_window=262144,
            **longrope(27),
        ),
        legacy=legacy_longrope,
    ),
    "lfm2": _family(
        LFM2,
        _decoder(
            "Lfm2Config",
            ends("<|startoftext|>", "<|im_end|>", "<|pad|>"),
            tie_word_embeddings=True,
            num_hidden_layers=4,
            layer_types=["conv", "full_attention", "conv", "full_attention"],
            conv_L_cache=3,
            block_auto_adjust_ff_dim=False,
            rope_parameters=rope(1e6),
        ),
        legacy=_legacy_lfm2,
    ),
}  # fmt: skip
