"""Chat templates and tokenizers of published checkpoints: ours beside transformers'.

    PYTHONPATH=. python benchmarks/templates.py FOLDER

FOLDER holds one folder a checkpoint with its small files, without weights: chat_template.jinja or .json,
tokenizer_config.json, config.json and the processor's. Every template renders the conversations of
tests/parity/templates.py in both ways, and the strings must be equal; where the vocabulary is there (tokenizer.json, or
vocab.json and merges.txt), the prompts are tokenized in both ways too, with pictures of the tests, and the ids must be
equal. Without it the tests' byte-pair model stands in, with the checkpoint's special tokens, which is all that a
template can ask of a tokenizer. A checkpoint of a family that this package does not run goes through the part that all
families share. One line a checkpoint; the exit code is 1 if anything differs.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from parity.layouts import REFERENCE, read_json, write_json
from parity.templates import difference, fitting, ids_difference

from mlx_vlgen.inputs.processor import Processor
from mlx_vlgen.models import FAMILIES, find

VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def read(folder: Path, temporary: Path) -> tuple[Processor, bool]:
    """The processor of a checkpoint's small files, and whether its tokenizer is the real one."""
    real = any(all((folder / name).is_file() for name in names) for names in VOCABULARIES)
    shutil.copytree(folder, temporary, dirs_exist_ok=True)
    if not real:
        stand_in(temporary)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("model_type") in FAMILIES:
        return find(config).load_processor(temporary, config), real
    processor = Processor.from_folder(temporary, config)
    processor.placeholders = {"image": "<image>", "video": "<video>"}  # they are never expanded
    return processor, real


def stand_in(folder: Path) -> None:
    """A tokenizer of the tests' byte-pair model with the special tokens that the checkpoint's files name."""
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    named = [token["content"] for token in config.pop("added_tokens_decoder", {}).values()]
    named += [_content(config[key]) for key in ("bos_token", "eos_token", "pad_token", "unk_token") if config.get(key)]
    model = read_json(REFERENCE / "tokenizers" / "bpe.json")
    kit = read_json(REFERENCE / "tokenizers" / "qwen" / "tokenizer.json")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [
        {"id": number, "content": token, **flags}
        for number, token in enumerate(dict.fromkeys(named), len(model["vocab"]))
    ]
    write_json(folder / "tokenizer.json", kit | {"model": model, "added_tokens": added})
    config = {key: value for key, value in config.items() if key not in ("auto_map", "processor_class")}
    write_json(folder / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    for name in ("special_tokens_map.json", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def compare(folder: Path) -> tuple[str, list[str]]:
    """A line, and the differences."""
    with tempfile.TemporaryDirectory() as temporary:
        processor, real = read(folder, Path(temporary))
    if processor.chat_template is None:
        return "has no chat template", []
    results = {name: difference(processor, conversation) for name, conversation in fitting(processor)}
    line = f"{len(results)} prompts rendered"
    if real:
        ids = {name: ids_difference(processor, conversation) for name, conversation in fitting(processor)}
        tokenized = {f"{name}, ids": said for name, said in ids.items() if said is not None}
        results |= tokenized
        line += f", {len(tokenized)} tokenized"
    differences = [f"{name}: {said}" for name, said in results.items() if said]
    return f"{line}, {len(differences) or 'none'} differently", differences


def loose_templates(folder: Path, into: Path) -> list[Path]:
    """The .json files of a folder that hold nothing but a template, each in a new folder."""
    folders = []
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if file.name != "chat_template.json" and isinstance(content, dict) and list(content) == ["chat_template"]:
            folders.append(into / file.stem)
            folders[-1].mkdir()
            shutil.copy(file, folders[-1] / "chat_template.json")
    return folders


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folders = [path for path in sorted(args.folder.iterdir()) if path.is_dir()]
        for folder in [one for path in folders for one in (loose_templates(path, Path(temporary)) or [path])]:
            line, differences = compare(folder)
            print(f"{folder.name}: {line}", flush=True)
            for difference in differences:
                print(f"    {difference}")
            wrong += len(differences)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
