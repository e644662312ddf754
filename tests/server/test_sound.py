"""Sound in requests to a server: in chat completions and responses, of a model that hears and one that does not."""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from hostile.sounds import wav
from invariants.family import Family
from parity import expected, media

from mlx_vlgen.server.models import Source

from .serving import Loaded, Running, running

CASE = expected.case("qwen2_audio", "audio")
STEPS = len(CASE.tokens)
SOUND = wav(media.sound("sound").tobytes())
DATA = base64.b64encode(SOUND).decode()
INPUT_AUDIO = {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}


@pytest.fixture(scope="module")
def hearing(
    load_family: Callable[[str], Family], loaded: Loaded, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    family, folder = load_family("qwen2_audio"), tmp_path_factory.mktemp("sounds")
    (folder / "sound.wav").write_bytes(SOUND)
    sources = {"ear": Source(lambda: (family.model, family.processor)), "demo": Source(lambda: loaded)}
    with running(sources, media_path=folder) as server:
        yield server


@pytest.fixture(scope="module")
def client(hearing: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{hearing.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def answer(load_family: Callable[[str], Family]) -> str:
    text: str = load_family("qwen2_audio").processor.decode(CASE.tokens.tolist())
    return text


def chat(client: openai.OpenAI, part: dict[str, Any], model: str = "ear") -> Any:
    messages: Any = [{"role": "user", "content": [part, {"type": "text", "text": "Describe this."}]}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=STEPS, temperature=0)


@pytest.mark.parametrize("part", [
    INPUT_AUDIO,
    {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{DATA}"}},
    {"type": "audio_url", "audio_url": {"url": "sound.wav"}},
])  # fmt: skip
def test_chat_completions_hear(client: openai.OpenAI, answer: str, part: dict[str, Any]) -> None:
    said = chat(client, part)
    assert said.choices[0].message.content == answer and said.usage.prompt_tokens == len(CASE.ids)


def test_responses_hear(client: openai.OpenAI, answer: str) -> None:
    content: Any = [INPUT_AUDIO, {"type": "input_text", "text": "Describe this."}]
    said = client.responses.create(
        model="ear", input=[{"role": "user", "content": content}], max_output_tokens=STEPS, temperature=0
    )
    assert said.output_text == answer and said.usage and said.usage.input_tokens == len(CASE.ids)


@pytest.mark.parametrize(("part", "model", "message"), [
    (INPUT_AUDIO, "demo", "audio was given, and this model takes only text, pictures and videos"),
    ({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}, "ear", "truncated"),
    ({"type": "input_audio", "input_audio": {"data": 1}}, "ear", 'expected {"data": base64, "format": "wav"}'),
    ({"type": "audio_url", "audio_url": {"url": "../a.wav"}}, "ear", "no such file in the folder of --media-path"),
    ({"type": "image_url", "image_url": {"url": "data:,x"}}, "ear", "takes only text and audio clips"),
])  # fmt: skip
def test_what_cannot_be_heard_is_named(client: openai.OpenAI, part: Any, model: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, part, model)
    assert message in caught.value.message


def test_responses_name_what_they_take(client: openai.OpenAI) -> None:
    content: Any = [{"type": "input_sound"}]
    with pytest.raises(openai.BadRequestError, match="expected input_text, output_text, input_image or input_audio"):
        client.responses.create(model="ear", input=[{"role": "user", "content": content}])
