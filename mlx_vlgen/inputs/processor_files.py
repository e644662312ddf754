"""The files of a processor in a checkpoint's folder: tokenizer, chat template, settings for images and videos."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import LoadError
from .files import check_bytes, check_settings, read_json, read_text, reading


def check_tokenizer(folder: Path) -> None:
    """LoadError for a checkpoint on disk without a tokenizer that can be read."""
    if _has_tekken_only(folder):
        if "special_tokens" not in read_json(folder / "tekken.json"):
            raise LoadError(
                f"{folder} has Mistral's tekken.json in its first form, without special_tokens, and no tokenizer.json: "
                "put the tokenizer.json and tokenizer_config.json of this model beside it, as copies of it for MLX "
                "have them."
            )
        return
    files = {path.name for path in folder.iterdir()}
    if not files & {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}:
        raise LoadError(f"{folder} holds no tokenizer.")


def _has_tekken_only(folder: Path) -> bool:
    files = {path.name for path in folder.iterdir()}
    return "tekken.json" in files and not files & {"tokenizer.json", "tokenizer.model"}


def load_tokenizer(folder: Path, **keywords: Any) -> Any:
    """transformers' tokenizer of a checkpoint on disk, which also takes and returns MLX's arrays: no network, no code
    of the checkpoint's. keywords: of `AutoTokenizer.from_pretrained`."""
    from transformers import AutoTokenizer

    check_tokenizer(folder)
    for path in folder.iterdir():
        if path.suffix in (".json", ".model", ".tiktoken", ".txt"):
            check_bytes(path)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        _read_json(folder / name)  # transformers would not say which of them it cannot read
    if (template := folder / "chat_template.jinja").is_file():
        read_text(template)
    with reading(folder / "tokenizer.json", "and the files beside it give no tokenizer"):
        if _has_tekken_only(folder):
            tokenizer = _read_tekken(folder)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, **_known_config(folder), **keywords
            )
    return import_module("mlx_vlgen.hf.encoding").taking_arrays(tokenizer)  # imported late: MLX is unknown in this room


def _known_config(folder: Path) -> dict[str, Any]:
    """What transformers is to read in the place of a config.json that it does not know and that has rotary settings: it
    fails on those, and takes nothing from it for a tokenizer."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = _read_json(folder / "config.json")
    known = config.get("model_type") in CONFIG_MAPPING_NAMES or not config.get("rope_scaling")
    return {} if known else {"config": PreTrainedConfig()}


def _read_tekken(folder: Path) -> Any:
    """transformers' tokenizer of Mistral's file."""
    path = folder / "tekken.json"
    with reading(path, "gives no tokenizer"):
        from transformers import PreTrainedTokenizerFast
        from transformers.integrations.mistral.tokenizer import MistralConverter

        read = MistralConverter(str(path)).converted()
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        known = {name: token for name, token in named.items() if read.token_to_id(token) is not None}
        template = _read_json(folder / "tokenizer_config.json").get("chat_template")
        return PreTrainedTokenizerFast(
            tokenizer_object=read, padding_side="left", clean_up_tokenization_spaces=False, chat_template=template,
            **known,
        )  # fmt: skip


def load_template(folder: Path, tokenizer: Any) -> str | None:
    """The chat template: chat_template.jinja, chat_template.json, or the tokenizer's."""
    if (path := folder / "chat_template.jinja").is_file():
        return read_text(path)
    if (path := folder / "chat_template.json").is_file():
        template = read_json(path).get("chat_template")
    else:
        path, template = folder / "tokenizer_config.json", tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template is None:
            return None
    if not isinstance(template, str):
        raise LoadError(f"{path} says chat_template = {template!r:.80}; expected a Jinja template's text.")
    return template


@dataclass(frozen=True)
class ProcessorSettings:
    """What a checkpoint says of its processor, and of how it makes images, videos, and features of sound."""

    processor: Mapping[str, Any]
    image: Mapping[str, Any]
    video: Mapping[str, Any]
    audio: Mapping[str, Any]


def read_settings(folder: Path) -> ProcessorSettings:
    """From one nested file, as transformers 5 writes it, or from a flat one for each part. Before there was one for
    videos, that for images was for both; settings of sound lie in it, too."""
    names = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
    processor, image, video = (_read_json(folder / name) for name in names)
    for name, settings in zip(names, (processor, image, video), strict=True):
        check_settings(folder / name, settings)
    return ProcessorSettings(
        processor,
        processor.get("image_processor") or image,
        processor.get("video_processor") or video or image,
        processor.get("feature_extractor") or processor.get("audio_processor") or image,
    )


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
