"""LLaVA's processor: one square picture, one token a patch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .images import CLIP_MEAN, CLIP_STD
from .plain import PlainSettings, fixed_picture
from .processor import Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import MediaInputs


class LlavaProcessor(Processor):
    """Source: transformers' LlavaProcessor and CLIPImageProcessor. count: features of a picture."""

    def __init__(self, tokenizer: Any, chat_template: str | None, pictures: PlainSettings, count: int):
        super().__init__(tokenizer, chat_template)
        self.placeholders: Mapping[Kind, str] = {"image": "<image>"}
        self.pictures, self.count = pictures, count

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "LlavaProcessor":
        tokenizer, vision = load_tokenizer(folder), config["vision_config"]
        settings = read_settings(folder)
        pictures = PlainSettings.read(settings.image, vision["image_size"], CLIP_MEAN, CLIP_STD)
        rows, columns = (side // vision["patch_size"] for side in pictures.crop or pictures.size or (0, 0))
        whole = config.get("vision_feature_select_strategy", "default") == "full"
        first = vision.get("model_type") != "siglip_vision_model"  # CLIP's class token
        return cls(tokenizer, load_template(folder, tokenizer), pictures, rows * columns + (whole and first))

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        pixels, original = fixed_picture(source, media, self.pictures)
        return Expansion(self.placeholders[kind] * self.count, (self.count,), pixels, (), original)
