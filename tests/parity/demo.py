"""The built-in model's cases, on its checkpoint and with its pictures."""

from typing import Any

from . import media
from .recipe import Case, ProcessorKit, Recipe, TokenizerKit, user
from .recipes.qwen3_vl import image_pixels, video_pixels

MODEL = media.DEMO / "model"


def _processor(tokenizer: Any) -> Any:
    import transformers

    return transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessorPil.from_pretrained(MODEL),
        tokenizer,
        transformers.Qwen3VLVideoProcessor.from_pretrained(MODEL),
        chat_template=tokenizer.chat_template,
    )


DEMO = Recipe(
    config=lambda ids, vocabulary: None,
    tokenizer=TokenizerKit("", [], "", "", ""),
    cases={
        "text": Case([{"role": "user", "content": "What can you do?"}]),
        "shapes": Case(user("image", "Describe this image."), images=["shapes.png"]),
        "print": Case(user("image", "What does it say?"), images=["hello.png"]),
        "img2": Case(
            user("image", "image", "What is the difference between the two images?"), images=["plain", "shapes.png"]
        ),
        "video": Case(user("video", "What moves in this video?"), videos=["clip"]),
    },
    batches={"batch": ["shapes", "text", "img2"]},
    processor=ProcessorKit("demo", _processor, image_pixels, video_pixels),
    new_tokens=48,
)
