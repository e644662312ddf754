"""Writes reference/processors.npz with transformers' processors, in its order. Needs PyTorch:

python tests/hf/make_processors.py
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM, SynthIDTextWatermarkingConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from hf import processor_cases as cases

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def processed(model: Any, settings: dict[str, Any], rows: np.ndarray, prompt: int, scores: np.ndarray) -> np.ndarray:
    """(steps, rows, V): the scores after every processor and warper, one step after the other as in `generate`."""
    settings = {"max_new_tokens": cases.NEW_TOKENS, "eos_token_id": cases.ENDS, "pad_token_id": 0} | settings
    allowed = settings.pop("prefix_allowed_tokens_fn", None)
    if "ngram_len" in (mark := settings.get("watermarking_config") or {}):
        settings["watermarking_config"] = SynthIDTextWatermarkingConfig(**mark)
    config, _ = GenerationMixin._prepare_generation_config(model, None, **settings)
    GenerationMixin._prepare_special_tokens(model, config, True, device="cpu")
    by_default = {"has_default_max_length": "max_length" not in settings, "has_default_min_length": True}
    ids = torch.tensor(rows)
    prompt_ids = ids[:, :prompt]
    config = GenerationMixin._prepare_generated_length(
        model, config, model_input_name="input_ids", input_ids_length=prompt, inputs_tensor=prompt_ids, **by_default
    )
    processors = GenerationMixin._get_logits_processor(
        model,
        config,
        input_ids_seq_length=prompt,
        encoder_input_ids=prompt_ids,
        prefix_allowed_tokens_fn=allowed,
        device="cpu",
        model_kwargs={"attention_mask": (prompt_ids != 0).long()},
    )
    steps = range(rows.shape[1] - prompt + 1)
    return np.stack([processors(ids[:, : prompt + n], torch.tensor(scores[n])).numpy() for n in steps])


def main() -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=cases.VOCABULARY, **TINY))
    assert model.generation_config.max_new_tokens is None

    def long(name: str, settings: dict[str, Any]) -> np.ndarray:
        return processed(model, settings, cases.ROWS, cases.PROMPT, cases.scores_of(name))

    single = np.stack([long(name, settings)[cases.SHOWN] for name, settings in cases.SINGLE.items()])
    pairs = np.stack([long("", settings)[cases.SHOWN[:: len(cases.SHOWN) - 1], 0] for settings in cases.PAIRS.values()])
    short = cases.ROWS[:, cases.PROMPT - 1 :]
    one = [processed(model, settings, short, 1, cases.scores()) for settings in cases.ONE_TOKEN.values()]
    path = Path(__file__).parent / "reference" / "processors.npz"
    np.savez_compressed(path, single=single, pairs=pairs, one=np.stack([steps[:2] for steps in one]))
    print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
