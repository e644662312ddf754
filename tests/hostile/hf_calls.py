"""Tensors and settings of `model.generate`, with values of any kind."""

import random
from pathlib import Path
from typing import Any

import numpy as np
from parity.layouts import write_checkpoint

import mlx_vlgen
from mlx_vlgen._runtime import mx
from mlx_vlgen.hf.resolve import NAMES
from mlx_vlgen.inputs.tensors import NAMES as TENSORS

from .trial import Try
from .values import NUMBERS, array, value

OTHERS = [
    "inputs",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "streamer",
    "custom_generate",
    "past_key_values",
]
IDS = [name for name in sorted(NAMES) if "token" in name or name in ("bad_words_ids", "sequence_bias")]


class Attack:
    """On a tiny Qwen3-VL."""

    def __init__(self, folder: Path):
        checkpoint = write_checkpoint("qwen3_vl", "v5", folder / "model")
        self._model = mlx_vlgen.load(checkpoint, dtype="float32")[0]
        self._processor = mlx_vlgen.AutoProcessor.from_pretrained(checkpoint)
        self._text: dict[str, Any] = {"input_ids": np.array([[5, 6, 7, 8]])}
        self._image_inputs = self._inputs_with_image()

    def _inputs_with_image(self) -> dict[str, Any]:
        image = np.full((48, 64, 3), 128, dtype=np.uint8)
        messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
        inputs = self._processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="np")
        return dict(inputs)

    def draw(self, seed: int) -> Try:
        draw = random.Random(seed)
        keywords = dict(self._image_inputs if draw.random() < 0.4 else self._text)
        for name in draw.sample([*sorted(NAMES), *IDS, *OTHERS, *sorted(TENSORS) * 3], draw.choice([1, 1, 2])):
            keywords[name] = self._value(draw, name, keywords.get(name))
        return Try(f"{keywords!r:.300}", lambda: self._generate(keywords), [*keywords, "token", "unknown tensor"])

    def _value(self, draw: random.Random, name: str, original: Any) -> Any:
        if isinstance(original, np.ndarray) and draw.random() < 0.6:
            return damaged(draw, original)
        if name in TENSORS and draw.random() < 0.7:
            tensor = array(draw)
            return mx.array(tensor.copy()) if tensor.dtype in (np.int32, np.float32) and tensor.size else tensor
        return draw.choice(NUMBERS) if draw.random() < 0.6 else value(draw)

    def _generate(self, keywords: dict[str, Any]) -> None:
        keywords = dict(keywords)
        if not {"max_length", "max_new_tokens"} & set(keywords):
            keywords["max_new_tokens"] = 3
        keywords.setdefault("max_time", 1.0)
        mx.eval(self._model.generate(**keywords))


def damaged(draw: random.Random, tensor: np.ndarray) -> np.ndarray:
    """Another shape, or other numbers in it."""
    match draw.randrange(5):
        case 0:
            return tensor[..., :-1]
        case 1:
            return np.concatenate([tensor, tensor])
        case 2:
            return tensor[None]
        case 3:
            return tensor.reshape(-1)[: draw.randrange(tensor.size + 1)]
    changed = tensor.copy()
    changed.reshape(-1)[draw.randrange(changed.size)] = draw.choice([-1, 0, 1, 3, 511, 2**20, 2**31 - 1])
    return changed
