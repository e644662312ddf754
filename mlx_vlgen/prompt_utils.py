"""Chat messages to a formatted prompt string."""

import os
import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from .errors import PromptError, UnsupportedError
from .inputs import chat_template
from .inputs.kinds import Kind
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

    processor: as `load` returns it.
    config: `model.config`, as in mlx-vlm; not used, since the processor has all that is needed.
    prompt: a person's text, one message, or a list of messages.
    num_images: picture placeholders to insert before the text of the last user message. Messages with picture parts
        must have as many. Default 0.
    num_audios: as num_images, of clips of sound. Default 0.
    video: one video or a list, counted as num_images are; they are not read here. Default None.
    system: text of a first message with that role. Default None.
    enable_thinking: a variable of the template. Default False.
    add_generation_prompt: end with the beginning of an answer. Default True.
    template_kwargs: more variables of the template, or `tools`, `documents`, `continue_final_message` as in
        transformers.

    A placeholder or a control token that `prompt` contains keeps its meaning in the string that is returned. Pass
    messages to `generate` where a person's text may contain one: there it is text.

    PromptError for messages that the template cannot take or would leave out; UnsupportedError for media that the model
    cannot take; TypeError for a variable that the template does not use.
    """
    check_hears(processor, "num_audios", (None,) * num_audios)
    messages = chat_template.normalize({"role": "user", "content": prompt} if isinstance(prompt, str) else prompt)
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    counts: dict[Kind, int] = {"image": num_images, "video": len(as_videos(video)), "audio": num_audios}
    messages = chat_template.insert_media_parts(messages, counts)
    parts = [part.kind for part in chat_template.media_parts(messages)]
    for name, (kind, count) in zip(("num_images", "video", "num_audios"), counts.items(), strict=True):
        if count and parts.count(kind) != count:
            raise PromptError(
                f"{name}: {count} given, and the messages have {parts.count(kind)} {kind} parts; leave it out"
            )
    segments = processor.format(
        messages, enable_thinking=enable_thinking, add_generation_prompt=add_generation_prompt, **template_kwargs
    )
    return "".join(segment.text for segment in segments)


def as_several(kind: Kind, media: Any) -> tuple[Any, ...]:
    """One medium of a kind or several, as several; None is none."""
    if kind == "video":
        return as_videos(media)
    if media is None:
        return ()
    return tuple(media) if isinstance(media, list | tuple) and not is_clip(kind, media) else (media,)


def is_clip(kind: Kind, media: Any) -> bool:
    """Whether these are samples and their rate: a tuple that is one clip of sound."""
    pair = kind == "audio" and isinstance(media, tuple) and len(media) == 2
    return pair and isinstance(media[1], Integral) and not isinstance(media[1], bool)


def check_hears(processor: Processor, name: str, clips: Sequence[Any]) -> None:
    """UnsupportedError for clips of sound that were given as `name`, where the model does not hear."""
    if clips and "audio" not in processor.placeholders:
        raise UnsupportedError(f"{name}: this model does not hear; leave it out")


def as_videos(video: Any) -> tuple[Any, ...]:
    """One video or several, as several. A list of frames, which are pictures or paths of pictures, is one video."""
    if video is None or (isinstance(video, list | tuple) and not video):
        return ()
    if not isinstance(video, list | tuple):
        return (video,)
    return tuple(video) if any(_is_video(item) for item in video) else (video,)


def _is_video(item: Any) -> bool:
    """Whether an item of a list is a video, and not a frame."""
    if isinstance(item, str | os.PathLike):
        name = re.sub(r"^(https?:[^?#]*).*", r"\1", str(item), flags=re.DOTALL)
        return not name.startswith("data:image/") and not name.lower().endswith(FRAME_SUFFIXES)
    return isinstance(item, list | tuple) or getattr(item, "ndim", 0) == 4
