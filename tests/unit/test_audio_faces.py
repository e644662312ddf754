"""Sound through every face: each gives the answer of the reference."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.sounds import wav
from invariants.family import Family
from parity import expected, media

from mlx_vlgen import Request, SamplingParams, TokenIterator, apply_chat_template, batch_generate, generate
from mlx_vlgen.batch.engine import ModelEngine
from mlx_vlgen.batch.rows import Asked, rows_of
from mlx_vlgen.batch.sources import Item, read
from mlx_vlgen.chat_lines import parse_line
from mlx_vlgen.chat_media import MediaStore
from mlx_vlgen.errors import MediaError, PromptError
from mlx_vlgen.inputs.prompt import MediaInputs

STEPS = 12
CASE = expected.case("qwen2_audio", "audio2")
TOKENS = CASE.tokens.tolist()
NAMES = CASE.audios


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen2_audio")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for name in media.SOUNDS:
        (folder / f"{name}.wav").write_bytes(wav(media.sound(name).tobytes()))
    return folder


def asked(*parts: Any) -> list[dict[str, Any]]:
    first, second = parts
    return [{"role": "user", "content": [first, " and ", second, "What differs?"]}]


def packed(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


Source = Callable[[Path], Any]
SOURCES: dict[str, Source] = {
    "path": str,
    "Path": lambda path: path,
    "file URL": lambda path: path.as_uri(),
    "data URI": lambda path: f"data:audio/wav;base64,{packed(path)}",
    "bytes": lambda path: path.read_bytes(),
    "file": lambda path: io.BytesIO(path.read_bytes()),
    "array": lambda path: media.sound(path.stem),
    "array with its rate": lambda path: (media.sound(path.stem), media.SOUND_RATE),
    "floats of two channels": lambda path: np.stack([media.sound(path.stem) / 32768] * 2),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_sources(family: Family, folder: Path, source: Source) -> None:
    clips = [source(folder / f"{name}.wav") for name in NAMES]
    assert generate(family.model, family.processor, CASE.text, audio=clips, max_tokens=STEPS).tokens == TOKENS


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "audio": lambda path: {"type": "audio", "audio": str(path)},
    "audio_url": lambda path: {"type": "audio_url", "audio_url": {"url": path.as_uri()}},
    "transformers": lambda path: {"type": "audio", "audio_url": str(path)},
    "input_audio": lambda path: {"type": "input_audio", "input_audio": {"data": packed(path), "format": "wav"}},
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_parts_of_messages(family: Family, folder: Path, part: Callable[[Path], Any]) -> None:
    messages = asked(*(part(folder / f"{name}.wav") for name in NAMES))
    assert generate(family.model, family.processor, messages, max_tokens=STEPS).tokens == TOKENS


def test_one_clip_is_no_list(family: Family) -> None:
    case = expected.case("qwen2_audio", "audio")
    clip = media.sound("sound"), media.SOUND_RATE
    for audio in (clip, [clip], media.sound("sound")):
        assert (
            generate(family.model, family.processor, case.text, audio=audio, max_tokens=4).tokens
            == case.tokens[:4].tolist()
        )
        batch = batch_generate(family.model, family.processor, audios=audio, prompts=[case.text], max_tokens=4)
        assert batch.results[0].tokens == case.tokens[:4].tolist()
    assert batch.image_sizes == [[]]


def test_ragged_batches_and_rows_without_sound(family: Family) -> None:
    cases = [expected.case("qwen2_audio", name) for name in ("audio2", "text", "long_audio", "audio_dialogue")]
    audios = [[media.sound(name) for name in case.audios] or None for case in cases]
    response = batch_generate(
        family.model, family.processor, audios=audios, prompts=[case.messages for case in cases], max_tokens=STEPS
    )
    assert [result.tokens for result in response.results] == [case.tokens.tolist() for case in cases]


def test_a_bad_clip_ends_its_own_row_only(family: Family) -> None:
    ask = [{"role": "user", "content": "Describe this."}]
    response = batch_generate(
        family.model, family.processor, audios=[b"RIFF", media.sound("sound")], prompts=[ask, ask], max_tokens=2
    )
    assert isinstance(response.results[0].error, MediaError)
    assert response.results[1].tokens == expected.case("qwen2_audio", "audio").tokens[:2].tolist()


def test_the_iterator(family: Family) -> None:
    sounds = MediaInputs(audios=[media.sound(name) for name in NAMES])
    with TokenIterator(family.model, family.processor) as iterator:
        iterator.add(Request(CASE.text, sounds, SamplingParams(max_tokens=STEPS)))
        assert [result.token for _, result in iterator] == TOKENS


def test_templates_count_clips(family: Family) -> None:
    text = apply_chat_template(family.processor, family.model.config, "What differs?", num_audios=2)
    assert text.count("<|audio_bos|><|AUDIO|><|audio_eos|>") == 2
    with pytest.raises(PromptError, match="num_audios: 1 given, and the messages have 2 audio parts"):
        apply_chat_template(family.processor, {}, asked({"type": "audio"}, {"type": "audio"}), num_audios=1)
    with pytest.raises(PromptError, match=r"has 2 placeholders <.AUDIO.> and 1 audio clip was given.*num_audios="):
        generate(family.model, family.processor, text, audio=media.sound("sound"))


def test_calls_of_transformers(family: Family) -> None:
    """Of texts and of messages, several rows at once; the tensors have the names and shapes that they have there."""
    case = expected.case("qwen2_audio", "audio")
    clips = [media.sound(name).astype(np.float32) / 32768 for name in (*NAMES, *case.audios)]
    inputs = family.processor(
        text=[CASE.text, case.text], audio=clips, sampling_rate=media.SOUND_RATE, return_tensors="np", padding=True
    )
    assert inputs["input_features"].shape == (3, 32, 200) and inputs["feature_attention_mask"].shape == (3, 200)
    answers = np.array(family.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False))
    answers = answers[:, inputs["input_ids"].shape[1] :]
    for row, tokens in zip(answers.tolist(), (TOKENS, case.tokens.tolist()), strict=True):
        assert row[: len(tokens)] == tokens
    messages = asked(*({"type": "audio", "audio": clip} for clip in clips[:2]))
    told = family.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
    )
    assert told["input_ids"][0].tolist() == CASE.ids.tolist()
    assert np.abs(np.array(family.model(**told).logits)[0, -1] - CASE.last).max() < CASE.tolerance
    by_row = family.processor(text=[CASE.text, case.text], audio=[clips[:2], clips[2:]], padding=True)
    assert np.array_equal(by_row["input_features"], inputs["input_features"])


def test_jobs(family: Family, folder: Path) -> None:
    """A column, a pattern of files, and lines of OpenAI's format."""
    names = [str(folder / f"{name}.wav") for name in NAMES]
    data = [{"type": "input_audio", "input_audio": {"data": packed(Path(name)), "format": "wav"}} for name in names]
    items = [
        Item({"audio": names, "messages": CASE.messages}),
        Item({"audio": f'["{names[0]}", "{names[1]}"]', "prompt": "x"}, table=True),
        Item({"custom_id": "a", "body": {"messages": asked(*data)}}),
        *read([str(folder / "*.wav")]),
    ]
    rows = [row for item in items for row in rows_of(item, Asked())]
    assert [row.error for row in rows] == [None] * 6
    assert [row.prompt for row in rows] == [None, "x", None, *["Describe this audio."] * 3]
    assert rows[1].audios == tuple(names) == rows[1].files
    engine = ModelEngine(family.model, family.processor, {}, 4, True)
    ids = [engine.add(row, {"max_tokens": STEPS}) for row in rows]
    tokens: dict[int, list[Any]] = {id: [] for id in ids}
    for id, result in engine:
        assert result.error is None
        tokens[id].append(result.token)
    engine.close()
    assert tokens[ids[0]] == tokens[ids[2]] == TOKENS


def test_chats_take_files_by_their_names(folder: Path) -> None:
    path = str(folder / "sound.wav")
    question = parse_line(f"{path} What is it?", lambda name: name == path)
    assert question.media == (("audio", path),) and question.text == "What is it?"  # type: ignore[union-attr]
    store = MediaStore()
    part, picture = store.read("audio", path)
    assert picture is None and store.source(part) == path and store.problem(part) is None
    with pytest.raises(MediaError, match=r"gone\.wav: no such file"):
        store.read("audio", str(folder / "gone.wav"))
