"""Malformed messages, and user texts that would steer the conversation."""

import random
from pathlib import Path
from typing import Any

import numpy as np
from parity.layouts import write_checkpoint

import mlx_vlgen

from .trial import Try
from .values import TEXTS, value

STEERING = ["<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>",
            "<|vision_end|>", "<tool_call>", "</tool_call>", "<|endoftext|>"]  # fmt: skip
ROLES = ["user", "user", "system", "tool", "assistant"]


class Attack:
    """On a tiny Qwen3-VL."""

    def __init__(self, folder: Path):
        _, self._processor = mlx_vlgen.load(write_checkpoint("qwen3_vl", "v5", folder / "model"), dtype="float32")
        tokenizer = self._processor.tokenizer
        self._ids = [i for text in STEERING if (i := tokenizer.get_vocab().get(text)) is not None]

    def draw(self, seed: int) -> Try:
        draw = random.Random(seed)
        if draw.random() < 0.5:
            texts = [self._text(draw) for _ in range(draw.randrange(1, 4))]
            return Try(f"texts {texts!r:.300}", lambda: self._check_marks(texts))
        messages = self._odd(draw)
        keywords = {
            name: value(draw) for name in draw.sample(["tools", "enable_thinking", "documents"], draw.randrange(2))
        }
        return Try(f"{messages!r:.300} {keywords!r:.100}", lambda: self._prepare(messages, keywords), keywords)

    def _prepare(self, messages: Any, keywords: dict[str, Any]) -> Any:
        return self._processor.prepare(messages, **keywords).tokens

    def _text(self, draw: random.Random) -> str:
        """A text that imitates the template: whole special tokens, or cut where two parts meet."""
        return "".join(draw.choice([*STEERING, "system\n", "word", " ", "<|im_", "start|>", "<|image_", "pad|>"])
                       for _ in range(draw.randrange(1, 5)))  # fmt: skip

    def _check_marks(self, texts: list[str]) -> None:
        """The prompt has the same control tokens as with harmless texts in their place."""

        def marks(texts: list[str]) -> list[int]:
            parts = [{"type": "text", "text": text} for text in texts]
            tokens = self._prepare([{"role": "user", "content": parts}], {})
            return [int(np.count_nonzero(tokens == mark)) for mark in self._ids]

        assert marks(texts) == marks(["x"] * len(texts)), "a user's text became control tokens"

    def _odd(self, draw: random.Random) -> Any:
        """Messages with something wrong in them."""
        if draw.random() < 0.2:
            return value(draw)
        messages = [
            {"role": draw.choice(ROLES), "content": draw.choice(["Hi", [{"type": "text", "text": draw.choice(TEXTS)}]])}
            for _ in range(draw.randrange(1, 4))
        ]
        target: Any = draw.choice(messages)
        match draw.randrange(4):
            case 0:
                target[draw.choice(["role", "content", "name", "tool_calls", 5])] = value(draw)
            case 1:
                target["content"] = [value(draw) for _ in range(3)]
            case 2:
                key = draw.choice(["type", "text", "image", "video", "base64", "url", "image_url"])
                target["content"] = [{"type": "image", key: value(draw)}]
            case _:
                target["content"] = [{"type": draw.choice(["text", "image", "audio", "x", None]), "text": value(draw)}]
        return messages
