"""A forward that is built and never computed: MLX raises for shapes that do not fit, and reads no weights."""

import numpy as np
from PIL import Image

from ..engine.cache import make_cache
from ..errors import LoadError, MediaError, PromptError
from ..inputs.prompt import MediaInputs, Prompt
from ..models.base import Model
from ..models.building import building_only


def check_forward(model: Model) -> None:
    """Run a short prompt, and a picture where the model takes one, without computing anything.

    Raises what a request would raise because of the checkpoint's settings.
    """
    prompts = [Prompt(np.zeros(1, np.int32))]
    if placeholder := model.processor.placeholders.get("image"):
        media = MediaInputs(images=(Image.new("RGB", (64, 48)),))
        try:
            prompts.append(model.processor.prepare(placeholder, media))
        except (MediaError, PromptError) as error:
            raise LoadError(f"its processor cannot take a picture of 64 x 48 pixels: {error}") from error
    with building_only():
        for prompt in prompts:
            features = [features for medium in prompt.media for features in model.encode([medium])]
            model(model.embed(prompt, features), make_cache(model.cache_layout()))
