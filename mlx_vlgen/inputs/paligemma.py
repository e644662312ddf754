"""PaliGemma's processor: images, the first token, the text of one task, and a line feed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .fixed_size import FixedSizeSettings
from .images import SIGLIP_MEAN, SIGLIP_STD
from .literal import Segment, join_equal
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import Media, MediaInputs, Span

# Published checkpoints have none: they were trained on a task and its answer, without turns.
TEMPLATE = """\
{%- if messages | length != 1 or messages[0].role != 'user' -%}
{{- raise_exception('PaliGemma takes one message, of role user: it was not made for dialogue') -}}
{%- endif -%}
{%- if messages[0].content is string -%}
{{- messages[0].content -}}
{%- else -%}
{%- for part in messages[0].content if part.type == 'image' -%}{{- '<image>' -}}{%- endfor -%}
{%- for part in messages[0].content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}"""


@dataclass(eq=False, repr=False)
class PaliGemmaProcessor(Processor):
    """Source: transformers' PaliGemmaProcessor and SiglipImageProcessor; it takes no text without an image, which is
    laid out here as one with an image. image_tokens: tokens of an image."""

    image_settings: FixedSizeSettings
    image_tokens: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<image>"}
    prompt_tokens = r"<loc\d{4}>|<seg\d{3}>"
    adds_first_token = False

    def __post_init__(self) -> None:
        self.chat_template = self.chat_template or TEMPLATE

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        vision = config["vision_config"]
        side, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
        image = FixedSizeSettings.read(settings.image, side, SIGLIP_MEAN, SIGLIP_STD)
        return {"image_settings": image, "image_tokens": (side // patch) ** 2}

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        pixels, original = self.image_settings.load_pixels(source, media)
        text, normalization = self.placeholders[kind] * self.image_tokens, self.image_settings.normalization
        return Expansion(text, (self.image_tokens,), pixels, (), original, normalization=normalization)

    def lay_out(self, segments: list[Segment], images: int) -> list[Segment]:
        """The first token after the last image, and a line feed at the end. Text that names no image gets all of them
        before it."""
        token, bos = self.placeholders["image"], self.tokenizer.bos_token
        naming = [i for i, segment in enumerate(segments) if token in segment.text and not segment.literal]
        if not naming:
            segments, naming = [Segment(token * images), *segments], [0]
        last = naming[-1]
        head, separator, tail = segments[last].text.rpartition(token)
        segments = [*segments[:last], Segment(head + separator + bos + tail), *segments[last + 1 :], Segment("\n")]
        return join_equal(segments)

    def two_way(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[Span, ...]:
        return ((0, len(tokens)),)
