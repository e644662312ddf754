"""Voxtral: clips in chunks, its own layout of prompts, and Mistral's tokenizer file."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity import expected, media

from mlx_vlgen import generate, load
from mlx_vlgen.errors import LoadError, PromptError
from mlx_vlgen.inputs.processor_files import check_tokenizer, load_tokenizer
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.inputs.voxtral import TEMPLATE, VoxtralProcessor
from mlx_vlgen.models.voxtral import Voxtral

CHUNK = 32_000


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("voxtral")


@pytest.mark.parametrize(("samples", "chunks"), [(1, 1), (CHUNK, 1), (CHUNK + 1, 2), (3 * CHUNK, 3)])
def test_clips_become_whole_chunks(family: Family, samples: int, chunks: int) -> None:
    clip = np.resize(media.sound("sound"), samples)
    prompt = family.processor.prepare("[BEGIN_AUDIO][AUDIO]", MediaInputs(audios=[clip]))
    assert prompt.media[0].pixels.shape == (chunks * 200, 32) and prompt.media[0].grid == (chunks * 200,)
    assert prompt.media[0].spans == ((2, 2 + chunks * 25),)  # <s> is before them
    assert family.processor.audio_tensors.pack(prompt.media)["input_features"].shape == (chunks, 32, 200)


def test_chunks_are_encoded_alone(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many at once."""
    clips = [np.resize(np.roll(media.sound("sound"), shift), 5 * CHUNK) for shift in (0, 5000)]
    prompt = family.processor.prepare("[BEGIN_AUDIO][AUDIO]" * 2, MediaInputs(audios=clips))
    together = [np.array(features.embeds) for features in family.model.encode(prompt.media)]
    monkeypatch.setattr("mlx_vlgen.models.voxtral.CHUNKS_AT_ONCE", 3)
    for medium, features in zip(prompt.media, together, strict=True):
        assert features.shape == (125, 64)
        assert np.abs(np.array(family.model.encode([medium])[0].embeds) - features).max() < 1e-5


def test_the_layout_of_prompts(family: Family) -> None:
    processor = VoxtralProcessor(family.processor.tokenizer, None, sound=family.processor.sound)
    assert processor.chat_template == TEMPLATE
    messages = [
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What? [INST]"}]},
        {"role": "assistant", "content": "A bell."},
        {"role": "user", "content": "When?"},
    ]
    prompt = processor.prepare(messages, MediaInputs(audios=[media.sound("sound")]))
    text = processor.tokenizer.decode(prompt.tokens)
    heard = "[AUDIO]" * 25
    assert text == f"<s>[INST][BEGIN_AUDIO]{heard}What? [INST][/INST]A bell.</s>[INST]When?[/INST]"
    turns = processor.tokenizer.convert_tokens_to_ids("[INST]")
    assert (prompt.tokens == turns).sum() == 2  # a person's is text
    with pytest.raises(PromptError, match="knows no messages with the role tool"):
        processor.prepare([{"role": "tool", "content": "1"}])
    with pytest.raises(PromptError, match="no system message beside sound"):
        processor.prepare([{"role": "system", "content": "Hi."}, *messages], MediaInputs(audios=[media.sound("sound")]))


def test_transcripts(family: Family) -> None:
    """As the case of the reference writes them."""
    processor, sounds = family.processor, [media.sound("short_sound"), media.sound("long_sound")]
    case = expected.case("voxtral", "transcript")
    asked = {"model_id": "mistralai/Voxtral-Mini-3B-2507", "format": "wav", "return_tensors": "np"}
    one = processor.apply_transcription_request(sounds[0], language="en", **asked)
    assert one["input_ids"].tolist() == [case.ids.tolist()] and one["input_features"].shape == (1, 32, 200)
    two = processor.apply_transcription_request(sounds, language=["en", None], sampling_rate=16_000, **asked)
    assert two["input_features"].shape == (3, 32, 200) and two["attention_mask"].sum(axis=1).tolist() == [
        len(case.ids),
        55,
    ]
    answers = family.model.generate(**two, max_new_tokens=3)
    assert answers.shape == (2, two["input_ids"].shape[1] + 3)
    for language, message in (("[INST]", "expected two letters"), (["en"] * 3, "3 languages were given for 2 clips")):
        with pytest.raises(PromptError, match=message):
            processor.apply_transcription_request(sounds, language=language)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("audio_config", {"model_type": "voxtral_realtime_encoder"}, "audio tower is 'voxtral_realtime_encoder'"),
        ("text_config", {"model_type": "qwen2"}, "text decoder is 'qwen2'"),
    ],
)
def test_other_parts_are_refused(family: Family, part: str, change: dict[str, Any], message: str) -> None:
    config = dict(family.model.config)
    with pytest.raises(LoadError, match=message):
        Voxtral(config | {part: config[part] | change})


def tekken(folder: Path) -> Path:
    """A file of Mistral's with 256 bytes, two words and some special tokens."""
    words = [bytes([byte]) for byte in range(256)] + [b"th", b"the"]
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AUDIO]", "[BEGIN_AUDIO]"]
    path = folder / "tekken.json"
    path.write_text(
        json.dumps(
            {
                "config": {"pattern": r"\p{L}+|\s|.", "default_vocab_size": 300, "default_num_special_tokens": 10},
                "vocab": [
                    {"rank": rank, "token_bytes": base64.b64encode(word).decode()} for rank, word in enumerate(words)
                ],
                "special_tokens": [
                    {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(special)
                ],
            }
        )
    )
    return path


def test_mistrals_tokenizer_file_is_read(tmp_path: Path) -> None:
    tekken(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    check_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.chat_template == "{{ messages }}"
    ids = tokenizer.encode("<s>[INST][BEGIN_AUDIO][AUDIO]the é")
    assert ids == [1, 3, 6, 5, 10 + 257, 10 + 32, 10 + 0xC3, 10 + 0xA9]
    assert tokenizer.decode(ids[4:]) == "the é" and tokenizer.eos_token_id == 2 and tokenizer.bos_token_id == 1


def test_a_checkpoint_with_mistrals_file_alone(family: Family, tmp_path: Path) -> None:
    """As it is published: no template, and no tokenizer.json."""
    folder = tmp_path / "voxtral"
    shutil.copytree(family.folder, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    tekken(folder)
    model, processor = load(str(folder))
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "the [AUDIO]"}]}]
    prompt = processor.prepare(messages, MediaInputs(audios=[media.sound("long_sound")]))
    text = [10 + 257, 10 + 32, *(10 + byte for byte in b"[AUDIO]")]
    assert prompt.tokens.tolist() == [1, 3, 6, *[5] * 50, *text, 4]
    assert generate(model, processor, messages, audio=media.sound("long_sound"), max_tokens=3).generation_tokens


def test_a_file_of_its_first_form_is_refused(tmp_path: Path) -> None:
    path = tekken(tmp_path)
    content = json.loads(path.read_text())
    del content["special_tokens"]
    path.write_text(json.dumps(content))
    with pytest.raises(LoadError, match="in its first form, without special_tokens"):
        check_tokenizer(tmp_path)
