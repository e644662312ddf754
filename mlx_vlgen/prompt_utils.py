"""Chat messages to a formatted prompt string."""

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import UnsupportedError
from .inputs import chat_template
from .inputs.processor import Processor


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
    last user message, unless the messages have picture parts of their own. video: a video or a list of them, for
    placeholders; they are not read here. system: a first message of that role. config: the model's, as in mlx-vlm;
    the processor knows all that is needed. template_kwargs: more variables for the template.

    In the string that comes back every placeholder stands for a picture, also one that the text itself contained:
    give messages to `generate` where a person's words may hold one.
    """
    if num_audios:
        raise UnsupportedError("num_audios: this model does not hear")
    messages = chat_template.normalize([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)  # type: ignore[arg-type]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    videos = len(video) if isinstance(video, list | tuple) else int(video is not None)
    messages = chat_template.place(messages, num_images, videos)
    segments = processor.format(
        messages, enable_thinking=enable_thinking, add_generation_prompt=add_generation_prompt, **template_kwargs
    )
    return "".join(segment.text for segment in segments)
