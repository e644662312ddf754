"""What the tests of `generate`, `stream_generate` and `batch_generate` share: prompts for a tiny Qwen3-VL."""

import io
from typing import Any

from parity import media
from PIL import Image

from mlx_vlgen import apply_chat_template

Loaded = tuple[Any, Any]
"""Model and processor."""

SHORT = {"max_tokens": 6}
QUESTION = "What is this?"


def ask(*parts: dict[str, Any], text: str = QUESTION) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def formatted(vl: Loaded, images: int = 0, video: Any = None, text: str = QUESTION) -> str:
    return apply_chat_template(vl[1], vl[0].config, text, num_images=images, video=video)


def png(name: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(media.picture(name)).save(out, "PNG")
    return out.getvalue()
