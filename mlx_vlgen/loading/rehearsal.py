"""A forward that is drawn up and not computed: MLX tells what does not fit, and nothing is read or multiplied."""

import numpy as np
from PIL import Image

from ..engine.cache import make_cache
from ..errors import LoadError, MediaError, PromptError
from ..inputs.prompt import MediaInputs, Prompt
from ..models.base import Model


def rehearse(model: Model) -> None:
    """Raises what a request would meet: settings that the network or the processor takes, and cannot work with."""
    prompts = [Prompt(np.zeros(1, np.int32))]
    if placeholder := model.processor.placeholders.get("image"):
        media = MediaInputs(images=(Image.new("RGB", (64, 48)),))
        try:
            prompts.append(model.processor.prepare(placeholder, media))
        except (MediaError, PromptError) as error:
            raise LoadError(f"its processor cannot take a picture of 64 x 48 pixels: {error}") from error
    for prompt in prompts:
        features = [features for medium in prompt.media for features in model.encode([medium])]
        model(model.embed(prompt, features), make_cache(model.cache_layout()))
