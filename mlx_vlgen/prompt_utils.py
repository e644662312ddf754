"""Chat messages to a formatted prompt string."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import PromptError, UnsupportedError
from .inputs import chat_template
from .inputs.processor import Processor

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif")


def apply_chat_template(
    processor: Processor,
    config: Mapping[str, Any],
    prompt: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    num_images: int = 0,
    num_audios: int = 0,
    video: Any = None,
    system: str | None = None,
    enable_thinking: bool = False,
    add_generation_prompt: bool = True,
    **template_kwargs: Any,
) -> str:
    """Format `prompt` with the checkpoint's chat template.

    prompt: a person's text, a message, or messages. num_images: picture placeholders to put before the text of the
    last user message; messages with picture parts of their own must have so many. video: a video or a list of them,
    likewise; they are not read here. system: a first message of that role. config: the model's, as in mlx-vlm; the
    processor knows all that is needed. template_kwargs: more variables for the template, or `tools`, `documents`,
    `continue_final_message` as in transformers.

    In the string that comes back everything is what it says: a placeholder stands for a picture and a control token
    steers, also one that the text itself contained. Give messages to `generate` where a person's words may hold one:
    there they are text.

    Raises PromptError for messages that the template cannot take or would leave out, UnsupportedError for media that
    the model cannot, TypeError for a variable that the template does not use.
    """
    if num_audios:
        raise UnsupportedError("num_audios: this model does not hear")
    messages = chat_template.normalize({"role": "user", "content": prompt} if isinstance(prompt, str) else prompt)
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    videos = len(as_videos(video))
    messages = chat_template.insert_media_parts(messages, num_images, videos)
    parts = [part.kind for part in chat_template.media_parts(messages)]
    for name, kind, count in (("num_images", "image", num_images), ("video", "video", videos)):
        if count and parts.count(kind) != count:
            raise PromptError(
                f"{name}: {count} given, and the messages have {parts.count(kind)} {kind} parts of their own; "
                "leave it out"
            )
    segments = processor.format(
        messages, enable_thinking=enable_thinking, add_generation_prompt=add_generation_prompt, **template_kwargs
    )
    return "".join(segment.text for segment in segments)


def as_videos(video: Any) -> tuple[Any, ...]:
    """One video or several, as several. A list is one video when it holds frames: pictures, or paths of pictures."""
    if video is None or (isinstance(video, list | tuple) and not video):
        return ()
    if not isinstance(video, list | tuple):
        return (video,)
    return tuple(video) if any(_is_video(item) for item in video) else (video,)


def _is_video(item: Any) -> bool:
    """Whether an item of a list is a video by itself, and not a frame."""
    if isinstance(item, str | os.PathLike):
        name = re.sub(r"^(https?:[^?#]*).*", r"\1", str(item), flags=re.DOTALL)
        return not name.startswith("data:image/") and not name.lower().endswith(FRAME_SUFFIXES)
    return isinstance(item, list | tuple) or getattr(item, "ndim", 0) == 4
