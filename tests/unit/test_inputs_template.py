"""Messages to prompt text and tokens: as transformers renders them, and what may not be lost or mistaken on the way."""

import base64
import re
from collections import OrderedDict, UserDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity import media

from mlx_vlgen import apply_chat_template
from mlx_vlgen.errors import PromptError, UnsupportedError
from mlx_vlgen.inputs.processor import Processor, TextProcessor
from mlx_vlgen.inputs.prompt import MediaInputs

PICTURE, CLIP = media.picture("plain"), media.clip("clip")
PADS = ("<|image_pad|>", "<|video_pad|>")

LoadFamily = Callable[[str], Family]


@pytest.fixture(scope="module")
def qwen(load_family: LoadFamily) -> Any:
    return load_family("qwen3_vl").processor


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(string: str) -> dict[str, str]:
    return {"type": "text", "text": string}


def theirs(processor: Processor, messages: Sequence[Mapping[str, Any]], **keywords: Any) -> str:
    """The rendering of transformers."""
    keywords = {"add_generation_prompt": True, "enable_thinking": False} | keywords
    rendered = processor.tokenizer.apply_chat_template(
        list(messages), chat_template=processor.chat_template, tokenize=False, **keywords
    )
    return str(rendered)


def ids(processor: Processor, prompt: Any, **inputs: Any) -> list[int]:
    tokens: list[int] = processor.prepare(prompt, MediaInputs(**inputs)).tokens.tolist()
    return tokens


# apply_chat_template: its doors

SAY_HI = [{"role": "user", "content": "Hi"}]
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    user({"type": "image"}, text("Naïve 日本 🎈?")),
    {"role": "assistant", "content": "A circle."},
    {"role": "user", "content": "And now?\n\n"},
]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
DOORS: dict[str, tuple[Any, dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = {
    # what is given -> the messages and keywords that transformers is given
    "string": ("Hi", {}, SAY_HI, {}),
    "message": (SAY_HI[0], {}, SAY_HI, {}),
    "messages": (DIALOGUE, {}, DIALOGUE, {}),
    "num_images": ("Hi", {"num_images": 2}, [user({"type": "image"}, {"type": "image"}, text("Hi"))], {}),
    "video": ("Hi", {"video": "a.mp4"}, [user({"type": "video"}, text("Hi"))], {}),
    "videos": ("Hi", {"video": ["a.mp4", "b.mp4"]}, [user({"type": "video"}, {"type": "video"}, text("Hi"))], {}),
    "frames": ("Hi", {"video": ["1.png", "2.png"]}, [user({"type": "video"}, text("Hi"))], {}),
    "both": (
        "Hi",
        {"num_images": 1, "video": "a.mp4"},
        [user({"type": "image"}, {"type": "video"}, text("Hi"))],
        {},
    ),
    "system": ("Hi", {"system": "Be brief."}, [{"role": "system", "content": "Be brief."}, *SAY_HI], {}),
    "last user": (
        [*SAY_HI, {"role": "assistant", "content": "Yes?"}, *SAY_HI],
        {"num_images": 1},
        [*SAY_HI, {"role": "assistant", "content": "Yes?"}, user({"type": "image"}, text("Hi"))],
        {},
    ),
    "no answer": ("Hi", {"add_generation_prompt": False}, SAY_HI, {"add_generation_prompt": False}),
    "variable": (DIALOGUE, {"add_vision_id": True}, DIALOGUE, {"add_vision_id": True}),
    "tools": ("Hi", {"tools": [TOOL]}, SAY_HI, {"tools": [TOOL]}),
    "continued": (
        DIALOGUE[:3],
        {"continue_final_message": True, "add_generation_prompt": False},
        DIALOGUE[:3],
        {"continue_final_message": True, "add_generation_prompt": False},
    ),
    "special tokens": ("a<|im_end|><|im_start|>b", {}, [{"role": "user", "content": "a<|im_end|><|im_start|>b"}], {}),
}


@pytest.mark.parametrize("door", DOORS)
def test_rendering_is_transformers_own(qwen: Any, door: str) -> None:
    prompt, keywords, messages, same = DOORS[door]
    assert apply_chat_template(qwen, {}, prompt, **keywords) == theirs(qwen, messages, **same)


def test_thinking_is_the_templates_business(load_family: LoadFamily, qwen: Any) -> None:
    with pytest.raises(PromptError, match="enable_thinking: this checkpoint's chat template knows no thinking"):
        apply_chat_template(qwen, {}, "Hi", enable_thinking=True)
    template = "{{ messages[0].content }}{% if not enable_thinking %}<think></think>{% endif %}"
    thinker = Processor(qwen.tokenizer, template)
    assert apply_chat_template(thinker, {}, "Hi", enable_thinking=True) == "Hi"
    assert apply_chat_template(thinker, {}, "Hi") == "Hi<think></think>"


def test_tokens_are_transformers_own(qwen: Any) -> None:
    messages = [DIALOGUE[0], DIALOGUE[3], {"role": "assistant", "content": "a<|im_end|>b"}, *SAY_HI]
    expected = qwen.tokenizer(theirs(qwen, messages))["input_ids"]
    assert ids(qwen, messages) == ids(qwen, theirs(qwen, messages)) == expected


def test_a_system_message_alone_is_rendered(qwen: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}]
    assert apply_chat_template(qwen, {}, messages) == theirs(qwen, messages)


# Nothing is lost


def test_messages_that_the_template_would_drop_are_refused(qwen: Any) -> None:
    second = [{"role": "system", "content": "One."}, {"role": "system", "content": "Two."}, *SAY_HI]
    assert "Two." not in theirs(qwen, second)  # transformers says nothing
    with pytest.raises(PromptError, match="leaves out message 2, of role 'system'"):
        apply_chat_template(qwen, {}, second)
    with pytest.raises(PromptError, match="leaves out message 2, of role 'system'"):
        apply_chat_template(qwen, {}, second[1:], system="Zero.")
    with pytest.raises(PromptError, match="leaves out message 1, of role 'usr'"):
        apply_chat_template(qwen, {}, [{"role": "usr", "content": "Hi"}])


def test_unknown_variables_of_the_template_are_refused(qwen: Any) -> None:
    with pytest.raises(TypeError, match="unknown keyword 'add_vision_ids'"):
        apply_chat_template(qwen, {}, "Hi", add_vision_ids=True)
    with pytest.raises(TypeError, match="unknown keyword 'tokenize'"):
        apply_chat_template(qwen, {}, "Hi", tokenize=True)


def test_settings_inside_a_media_part_are_refused(qwen: Any) -> None:
    with pytest.raises(PromptError, match="'max_pixels' in a content part of type 'image' is not read"):
        ids(qwen, [user({"type": "image", "image": PICTURE, "max_pixels": 4096}, text("Hi"))])
    with pytest.raises(PromptError, match="one picture or video; this one has image and url"):
        ids(qwen, [user({"type": "image", "image": "a.png", "url": "b.png"})])


@pytest.mark.parametrize("face", [lambda qwen, prompt: ids(qwen, prompt), lambda q, p: apply_chat_template(q, {}, p)])
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "this is an empty one"),
        (7, "this is a int"),
        (["Hi"], "a message is a mapping like"),
        ([{"content": "Hi"}], "a message is a mapping like"),
        ([{"role": "user", "content": 5}], "a string or a list of parts; this is int"),
        ([user(5)], "a content part is a mapping like"),
        ([user({"type": "text"})], "of type 'text' with 'type' is not known"),
        ([user({"type": "text", "text": 5})], "of type 'text' with 'type', 'text' is not known"),
        ([user({"type": "smell", "smell": "rose"})], "of type 'smell' with 'type', 'smell' is not known"),
        ([user({})], "of type None with nothing is not known"),
    ],
)
def test_what_is_no_message_is_told_so(qwen: Any, face: Callable[..., Any], prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=re.escape(message)):
        face(qwen, prompt)


def nested(depth: int) -> Any:
    nested: Any = "x"
    for _ in range(depth):
        nested = [nested]
    return nested


@pytest.mark.parametrize("face", [lambda qwen, prompt: ids(qwen, prompt), lambda q, p: apply_chat_template(q, {}, p)])
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([user({"type": "image", "base64": 5})], "'base64' of a content part is a string; this is 5"),
        (
            [user({"type": ["a"], "text": "Hi"})],
            "a content part's type is a name like 'text' or 'image'; this is ['a']",
        ),
        ([user({"type": {}, "image": "a.png"})], "a content part's type is a name like 'text' or 'image'; this is {}"),
        ([user({"type": 7, "text": "Hi"})], "a content part's type is a name like 'text' or 'image'; this is 7"),
        ([{"role": ["user"], "content": "Hi"}], "a message's role is a name like 'user' or 'system'; this is ['user']"),
        ([{"role": None, "content": "Hi"}], "a message's role is a name like 'user' or 'system'; this is None"),
        (
            [{"role": "a<|im_end|>", "content": "Hi"}],
            "a message's role is a name like 'user' or 'system'; this is 'a<|im_",
        ),
        ([{"role": "", "content": "Hi"}], "a message's role is a name like 'user' or 'system'; this is ''"),
        ([{"role": "user", 5: "Hi"}], "the keys of messages and their parts are strings; this is 5"),
        (
            [user({"type": "text", "text": "Hi", None: 1})],
            "the keys of messages and their parts are strings; this is None",
        ),
        ([{"role": "user", "content": "a\udcffb"}], "bytes that are not text in UTF-8"),
        ([{"role": "us\udcffer", "content": "a"}], "bytes that are not text in UTF-8"),
        ([user(text("a\ud800"))], "bytes that are not text in UTF-8"),
        ([{"role": "user", "content": b"Hi"}], "a string or a list of parts; this is bytes"),
        ([{"role": "user", "content": nested(50_000)}], "a content part is a mapping like"),
        (nested(50_000), "a message is a mapping like"),
        ([{**SAY_HI[0], "more": nested(50_000)}], "are nested more than 100 deep: flatten them"),
    ],
)
def test_odd_messages_are_told_so(qwen: Any, face: Callable[..., Any], prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=re.escape(message)):
        face(qwen, prompt)


def test_any_mapping_is_a_message(qwen: Any) -> None:
    parts = [UserDict(type="text", text="Hi"), OrderedDict(type="image")]
    messages = [MappingProxyType({"role": "user", "content": parts, "name": None})]
    assert apply_chat_template(qwen, {}, messages) == theirs(qwen, [user(text("Hi"), {"type": "image"})])
    assert ids(qwen, [MappingProxyType({"role": "user", "content": UserDict(type="text", text="Hi")})]) == ids(
        qwen, SAY_HI
    )


# Media in messages


URI = "data:image/png;base64,"


@pytest.mark.parametrize(
    "part",
    [
        lambda path: {"type": "image", "image": str(path)},
        lambda path: {"type": "image", "image": path},
        lambda path: {"type": "image", "path": str(path)},
        lambda path: {"type": "image", "url": path.as_uri()},
        lambda path: {"type": "image", "base64": base64.b64encode(path.read_bytes()).decode()},
        lambda path: {"type": "image_url", "image_url": {"url": path.as_uri(), "detail": "high"}},
        lambda path: {"type": "image_url", "image_url": URI + base64.b64encode(path.read_bytes()).decode()},
        lambda path: {"type": "image", "image": path.read_bytes(), "text": None, "video": None},
        lambda path: {"image": str(path)},
    ],
)
def test_every_convention_of_a_picture_part(qwen: Any, pictures: Path, part: Callable[[Path], dict[str, Any]]) -> None:
    expected = qwen.prepare(theirs(qwen, [user({"type": "image"}, text("Hi"))]), MediaInputs(images=[PICTURE]))
    prompt = qwen.prepare([user(part(pictures / "plain.png"), text("Hi"))])
    assert prompt.tokens.tolist() == expected.tokens.tolist()
    assert np.array_equal(prompt.media[0].pixels, expected.media[0].pixels)


@pytest.mark.parametrize(
    "part",
    [{"type": "video", "video": CLIP}, {"type": "video", "video": list(CLIP)}, {"video": CLIP, "type": None}],
    ids=["array", "frames", "no type"],
)
def test_every_convention_of_a_video_part(qwen: Any, part: dict[str, Any]) -> None:
    expected = ids(qwen, theirs(qwen, [user({"type": "video"}, text("Hi"))]), videos=[CLIP])
    assert ids(qwen, [user(part, text("Hi"))]) == expected


def test_every_convention_of_a_text_part(qwen: Any) -> None:
    parts = ["Hi", text("Hi"), {"text": "Hi"}, {"type": "input_text", "text": "Hi"}]
    parts += [{"type": "text", "text": "Hi", "image": None}, {"type": "text", "text": "Hi", "cache_control": {}}]
    for part in parts:
        assert ids(qwen, [user(part)]) == ids(qwen, SAY_HI)
    assert ids(qwen, [{"role": "user", "content": text("Hi")}]) == ids(qwen, SAY_HI)


def test_bare_parts_take_what_was_given_beside_them(qwen: Any) -> None:
    large = media.picture("large")
    prompt = [user({"type": "image"}, text("and"), {"type": "image", "image": large}, {"type": "image"}, text("?"))]
    sizes = [one.size for one in qwen.prepare(prompt, MediaInputs(images=[PICTURE, media.picture("small")])).media]
    assert sizes == [(64, 96), (130, 150), (30, 40)]


def test_too_many_and_too_few_are_counted(qwen: Any) -> None:
    bare, filled = {"type": "image"}, {"type": "image", "image": PICTURE}
    with pytest.raises(PromptError, match="the messages have more picture parts than pictures were given"):
        ids(qwen, [user(bare, bare, text("Hi"))], images=[PICTURE])
    with pytest.raises(PromptError, match="2 more pictures given than the messages have parts for"):
        ids(qwen, [user(bare, text("Hi"))], images=[PICTURE] * 3)
    with pytest.raises(PromptError, match="1 more picture given than the messages have parts for"):
        ids(qwen, [user(filled, text("Hi"))], images=[PICTURE])
    with pytest.raises(PromptError, match="the messages have more video parts than videos were given"):
        ids(qwen, [user({"type": "video"}, text("Hi"))], images=[PICTURE])
    with pytest.raises(PromptError, match="num_images: 2 given, and the messages have 1 image parts"):
        apply_chat_template(qwen, {}, [user(bare, text("Hi"))], num_images=2)
    with pytest.raises(PromptError, match="no message of role 'user' that could hold them"):
        apply_chat_template(qwen, {}, [{"role": "system", "content": "Hi"}], num_images=1)
    with pytest.raises(PromptError, match=re.escape("has 0 placeholders <|image_pad|> and 1 picture was given")):
        ids(qwen, [{"role": "system", "content": [filled, text("Look.")]}, *SAY_HI])  # this template shows none there


def test_the_given_messages_are_left_as_they_were(qwen: Any) -> None:
    content: list[Any] = [{"type": "image", "image": "a.png"}, "Hi <|image_pad|>"]
    messages = [{"role": "user", "content": content}]
    apply_chat_template(qwen, {}, messages)
    assert messages == [{"role": "user", "content": [{"type": "image", "image": "a.png"}, "Hi <|image_pad|>"]}]


# User text is no placeholder


@pytest.mark.parametrize(
    "string",
    ["a<|image_pad|>b", "<|video_pad|>", "<|image_pad|><|image_pad|> <|video_pad|>", "\ue0ff\ue0fe0\ue0fe\ue0ff"],
)
@pytest.mark.parametrize("role", ["system", "user"])
def test_a_placeholder_in_a_persons_words_is_text(qwen: Any, string: str, role: str) -> None:
    for content in (string, [text(string)]):
        messages = [{"role": role, "content": content}, *SAY_HI]
        tokens = ids(qwen, messages)
        assert not {qwen.tokenizer.convert_tokens_to_ids(pad) for pad in PADS} & set(tokens)
        assert qwen.tokenizer.decode(tokens) == theirs(qwen, messages)


def test_real_pictures_stand_beside_words_that_look_like_them(qwen: Any) -> None:
    string = "<|image_pad|> is what a picture looks like: "
    prompt = qwen.prepare([user(text(string), {"type": "image", "image": PICTURE}, text("<|video_pad|>?"))])
    pad = qwen.tokenizer.convert_tokens_to_ids(PADS[0])
    places = np.flatnonzero(prompt.tokens == pad)
    [(start, end)] = prompt.media[0].spans
    assert places.tolist() == list(range(start, end)) and len(places) == 6
    assert prompt.text.count(string) == 1


def test_in_a_formatted_string_a_placeholder_counts(qwen: Any) -> None:
    string = apply_chat_template(qwen, {}, "<|image_pad|>")
    assert ids(qwen, string, images=[PICTURE]).count(qwen.tokenizer.convert_tokens_to_ids(PADS[0])) == 6
    with pytest.raises(PromptError, match=re.escape("has 1 placeholder <|image_pad|> and 0 pictures were given")):
        ids(qwen, string)
    with pytest.raises(PromptError, match=re.escape("has 1 placeholder <|image_pad|> and 2 pictures were given")):
        ids(qwen, string, images=[PICTURE] * 2)


def test_bytes_that_are_no_text_are_refused(qwen: Any) -> None:
    with pytest.raises(PromptError, match="bytes that are not text in UTF-8"):
        ids(qwen, b"a\xffb".decode("utf-8", "surrogateescape"))


# Text decoders, and tokenizers with a first token


def test_text_models_take_parts_of_text_and_no_media(load_family: LoadFamily) -> None:
    llama = load_family("llama").processor
    assert isinstance(llama, TextProcessor)
    assert ids(llama, [user(text("Hi "), "there")]) == ids(llama, [{"role": "user", "content": "Hi there"}])
    for prompt in (SAY_HI, "Hi"):
        with pytest.raises(UnsupportedError, match="a picture was given, and this model takes only text"):
            ids(llama, prompt, images=[PICTURE])
    with pytest.raises(UnsupportedError, match="a video was given, and this model takes only text"):
        ids(llama, [user({"type": "video", "video": CLIP})])
    with pytest.raises(UnsupportedError, match="a picture was given, and this model takes only text"):
        apply_chat_template(llama, {}, "Hi", num_images=1)


def test_audio_parts_are_refused_by_name(qwen: Any) -> None:
    for face in (ids, lambda q, p: apply_chat_template(q, {}, p)):
        with pytest.raises(UnsupportedError, match="audio was given, and this model takes only text, pic"):
            face(qwen, [user({"type": "audio", "audio": "a.wav"}, text("Hi"))])
    with pytest.raises(UnsupportedError, match="num_audios"):
        apply_chat_template(qwen, {}, "Hi", num_audios=1)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "lfm2"])
def test_the_first_token_is_written_once(load_family: LoadFamily, family: str) -> None:
    processor = load_family(family).processor
    bos = processor.tokenizer.bos_token_id
    formatted = apply_chat_template(processor, {}, "Hi")
    assert formatted.startswith(processor.tokenizer.bos_token)
    for prompt in (SAY_HI, formatted):
        tokens = ids(processor, prompt)
        assert tokens[0] == bos and tokens.count(bos) == 1
    assert ids(processor, "Hi") == processor.tokenizer("Hi")["input_ids"]


def test_without_a_chat_template_messages_are_refused(qwen: Any) -> None:
    bare = Processor(qwen.tokenizer, None)
    assert ids(bare, "Hi") == qwen.tokenizer("Hi")["input_ids"]
    with pytest.raises(PromptError, match="has no chat template, so it takes no messages: give the prompt as a string"):
        ids(bare, SAY_HI)


def test_a_templates_own_refusal_is_told_in_its_words(qwen: Any) -> None:
    strict = Processor(qwen.tokenizer, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(PromptError, match="the chat template refuses these messages: roles must alternate"):
        ids(strict, SAY_HI)
