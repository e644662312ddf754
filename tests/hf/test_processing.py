"""The processor as code written for transformers calls it."""

import base64
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LoadFamily
from parity import media
from PIL import Image

from mlx_vlgen import AutoProcessor, apply_chat_template, generate, load
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import MediaError, PromptError, UnsupportedError
from mlx_vlgen.hf.encoding import Array, Encoding
from mlx_vlgen.inputs.processor import Processor
from mlx_vlgen.inputs.prompt import MediaInputs

PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
CLIP_PLACE = "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture
def processor() -> Processor:
    """The built-in model's."""
    processor: Processor = AutoProcessor.from_pretrained(media.DEMO / "model")
    return processor


def test_one_processor_for_both_faces() -> None:
    """What `load` returns is called as transformers' are, and what `AutoProcessor` returns serves `generate`."""
    model, processor = load(media.DEMO / "model")
    other = AutoProcessor.from_pretrained(media.DEMO / "model")
    assert type(other) is type(processor) and callable(processor) and processor is model.processor
    picture = plain().resize((96, 64))
    turn = ask(picture, "What is it?")
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    assert text == apply_chat_template(processor, model.config, "What is it?", num_images=1)
    results = [generate(model, each, text, picture, max_tokens=12) for each in (processor, other)]
    assert results[0].tokens == results[1].tokens
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "mlx"}
    for tensors in (
        processor.apply_chat_template(turn, **options),
        processor(picture, text, return_tensors="mlx"),
        processor(images=[picture], text=[text], return_tensors="mlx"),
    ):
        out = model.generate(**tensors, max_new_tokens=12)
        new = out[:, tensors.input_ids.shape[1] :]
        assert new.tolist() == [results[0].tokens]
        texts = processor.batch_decode(new, skip_special_tokens=True)
        assert texts == [processor.decode(new[0], skip_special_tokens=True)] == [results[0].answer]
        assert processor.tokenizer.decode(new[0]) == processor.decode(new[0])
    assert processor.tokenizer("Hello", return_tensors="mlx").input_ids.tolist() == [
        processor.tokenizer("Hello")["input_ids"]
    ]


def test_bounds_hold_in_every_face() -> None:
    small = AutoProcessor.from_pretrained("demo", max_pixels=32 * 32)
    [one] = small.prepare(ask(plain())).media
    [same] = small.prepare(ask(plain()), MediaInputs(max_pixels=96 * 64)).media
    assert len(one.pixels) < len(same.pixels)


def test_a_text_decoders_processor_is_called_too(load_family: LoadFamily) -> None:
    processor = load_family("llama").processor
    ids = processor(text="Hello there", return_tensors="np").input_ids
    assert ids.tolist() == [processor.prepare("Hello there").tokens.tolist()]
    assert processor.batch_decode(mx.array(ids), skip_special_tokens=True) == ["Hello there"]


def ask(*parts: Any) -> list[dict[str, Any]]:
    """One turn of a user: strings are text, the others pictures."""
    return [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
                for part in parts
            ],
        }
    ]


def plain() -> Image.Image:
    return Image.fromarray(media.picture("plain"))


def prepared(processor: Processor, messages: Any, **settings: Any) -> list[int]:
    """The token ids that `generate` of this package makes of messages."""
    ids: list[int] = processor.prepare(messages, MediaInputs(**settings)).tokens.tolist()
    return ids


def test_defaults_are_those_of_transformers(processor: Processor) -> None:
    parameters = inspect.signature(processor.apply_chat_template).parameters
    off = ("add_generation_prompt", "continue_final_message", "tokenize", "return_dict")
    assert [parameters[name].default for name in off] == [False] * 4
    text = processor.apply_chat_template(ask("Hello"))
    assert text == "<|im_start|>user\nHello<|im_end|>\n"
    assert processor.apply_chat_template(ask("Hello"), add_generation_prompt=True).endswith("<|im_start|>assistant\n")
    ids = processor.apply_chat_template(ask("Hello"), tokenize=True)
    assert ids == [processor.tokenizer.encode(text)]  # lists, of rows


def test_one_conversation_or_a_list_of_them(processor: Processor) -> None:
    both = processor.apply_chat_template([ask("One"), ask("Two", plain())])
    assert both == [processor.apply_chat_template(turn) for turn in (ask("One"), ask("Two", plain()))]
    ids = processor.apply_chat_template([ask("One"), ask("Two", plain())], tokenize=True, add_generation_prompt=True)
    assert ids == [prepared(processor, ask("One")), prepared(processor, ask("Two", plain()))]


@pytest.mark.parametrize("kind", ["image", "url", "path", "PIL", "array", "image_url", "base64"])
def test_pictures_in_messages_come_from_anywhere(processor: Processor, pictures: Path, kind: str) -> None:
    path = pictures / "plain.png"
    part = {
        "image": {"image": str(path)},
        "url": {"url": path.as_uri()},
        "path": {"path": path},
        "PIL": {"image": plain()},
        "array": {"image": media.picture("plain")},
        "image_url": {"type": "image_url", "image_url": {"url": str(path)}},
        "base64": {"base64": base64.b64encode(path.read_bytes()).decode()},
    }[kind]
    messages = [{"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": "What is it?"}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="np")
    expected = processor.prepare(ask(plain(), "What is it?"), add_generation_prompt=False)
    assert inputs.input_ids.tolist() == [expected.tokens.tolist()]
    assert (inputs.pixel_values == processor.pixel_values(expected.media[0])).all()


def test_a_video_in_messages_and_its_keywords(processor: Processor) -> None:
    clip = list(media.clip("clip"))
    messages = [
        {"role": "user", "content": [{"type": "video", "video": clip}, {"type": "text", "text": "What moves?"}]}
    ]
    for keywords in ({"fps": 4.0, "num_frames": 4}, {"processor_kwargs": {"fps": 4.0, "num_frames": 4}}):
        inputs = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=True, **keywords
        )
        assert inputs.input_ids == [prepared(processor, messages, video_fps=4.0, num_frames=4)]
        assert inputs.video_grid_thw[0, 0] == 2
    assert "<0.2 seconds>" in processor.decode(inputs.input_ids[0])


def test_what_comes_back_is_for_generate(processor: Processor) -> None:
    inputs = processor.apply_chat_template(
        ask(plain(), "What is it?"), tokenize=True, return_dict=True, return_tensors="mlx"
    )
    assert inputs.to("cuda") is inputs and inputs.to(mx.default_device()) is inputs
    assert dict(**inputs).keys() == {
        "input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw",
    }  # fmt: skip
    assert all(isinstance(value, mx.array) for value in inputs.values())
    assert inputs["input_ids"].to("cpu") is inputs.input_ids
    kinds = {name: value.dtype for name, value in inputs.items()}
    assert kinds.pop("pixel_values") == mx.float32 and set(kinds.values()) == {mx.int32}


def test_padding_is_the_tokenizers_unless_a_call_says_otherwise(processor: Processor) -> None:
    rows = [ask("One"), ask("Two or three words more")]

    def mask(**keywords: Any) -> np.ndarray:
        tensors = processor.apply_chat_template(
            rows, tokenize=True, return_dict=True, return_tensors="np", padding=True, **keywords
        )
        attention_mask: np.ndarray = tensors.attention_mask
        return attention_mask

    processor.tokenizer.padding_side = "left"
    assert mask()[0, 0] == 0 and mask()[0, -1] == 1
    assert mask(padding_side="right")[0, -1] == 0
    processor.tokenizer.padding_side = "right"
    assert mask()[0, -1] == 0
    assert mask(pad_to_multiple_of=32).shape == (2, 32)
    with pytest.raises(PromptError, match="padding=True"):
        processor.apply_chat_template(rows, tokenize=True, return_tensors="mlx")
    lists = processor.apply_chat_template(rows, tokenize=True, return_dict=True)
    assert [len(row) for row in lists.input_ids] == mask().sum(axis=1).tolist()
    padded = processor.apply_chat_template(rows, tokenize=True, padding="max_length", max_length=40)
    assert [len(row) for row in padded] == [40, 40]


def test_a_placeholder_is_text_in_a_message_and_not_in_a_formatted_prompt(processor: Processor) -> None:
    messages = ask("What does <|image_pad|> mean?")
    assert processor(text=messages).input_ids == [prepared(processor, messages)]
    assert "pixel_values" not in processor(text=messages)
    with pytest.raises(PromptError, match=r"1 placeholder <\|image_pad\|> and 0 pictures"):
        processor(text="What does <|image_pad|> mean?")


def test_texts_take_their_media_by_their_placeholders(processor: Processor) -> None:
    texts = ["Nothing.", PLACE + PLACE + "What differs?", PLACE + "What is it?"]
    images = [Image.fromarray(media.picture(name)) for name in ("plain", "upright", "large")]
    flat = processor(images=images, text=texts, padding=True, return_tensors="np")
    nested = processor(images=[None, images[:2], images[2:]], text=texts, padding=True, return_tensors="np")
    assert all((flat[name] == nested[name]).all() for name in flat) and flat.keys() == nested.keys()
    assert flat.image_grid_thw.shape == (3, 3)
    one = processor(images[0], PLACE)
    assert one.image_grid_thw.tolist() == flat.image_grid_thw[:1].tolist()
    with pytest.raises(PromptError, match="2 given, and the 3 texts have 3 placeholders"):
        processor(images=images[:2], text=texts)
    with pytest.raises(PromptError, match="placeholders"):  # a row takes none of another row's
        processor(images=[images[:1], images[1:], None], text=texts)


def test_clips_are_told_from_frames(processor: Processor) -> None:
    one, other = list(media.clip("clip")), list(media.clip("odd_clip"))
    alone = [processor(text=CLIP_PLACE, videos=clip).video_grid_thw[0].tolist() for clip in (one, other)]
    for texts, clips in (
        ([CLIP_PLACE, CLIP_PLACE], [one, other]),
        ([CLIP_PLACE, CLIP_PLACE], [[one], [other]]),
        ([CLIP_PLACE * 2, "Nothing."], [one, other]),
        ([CLIP_PLACE * 2], [one, other]),
    ):
        tensors = processor(text=texts, videos=clips, padding=True, return_tensors="np")
        assert tensors.video_grid_thw.tolist() == alone


def test_bounds_of_pictures_are_the_calls_or_the_processors(processor: Processor) -> None:
    def patches(processor: Processor, **keywords: Any) -> int:
        return len(processor(plain(), PLACE, return_tensors="np", **keywords).pixel_values)

    small = AutoProcessor.from_pretrained("demo", max_pixels=32 * 32)
    assert patches(processor, max_pixels=32 * 32) == patches(small) < patches(processor)
    assert patches(small, max_pixels=None) == patches(small) < patches(small, max_pixels=96 * 64)


def test_texts_of_arrays_lists_and_single_tokens(processor: Processor) -> None:
    ids = [*processor.tokenizer.encode("Hello there"), processor.tokenizer.eos_token_id]
    for rows in ([ids], mx.array([ids]), np.array([ids]), [mx.array(ids)], Array([ids])):
        texts = processor.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert texts == processor.post_process_image_text_to_text(rows) == ["Hello there"]
    assert processor.decode(mx.array(ids)) == "Hello there" + processor.tokenizer.eos_token
    assert processor.decode(mx.array(ids)[0]) == processor.decode(ids[:1])


def test_templates_of_a_call_and_variables(processor: Processor) -> None:
    before = processor.chat_template
    template = "{% for m in messages if m.role == 'user' %}<{{ m.content[0].text }}>{% endfor %}{{ mood }}"
    assert processor.apply_chat_template(ask("x"), chat_template=template, mood="!") == "<x>!"
    with pytest.raises(PromptError, match="leaves out"):  # text is checked like tokens
        processor.apply_chat_template([{"role": "system", "content": "y"}, *ask("x")], chat_template=template, mood="!")
    assert processor.chat_template == before != template  # the processor stays as it was
    prefill = [*ask("x"), {"role": "assistant", "content": "It is"}]
    assert processor.apply_chat_template(prefill, continue_final_message=True).endswith("assistant\nIt is")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"max_pixel": 5}, r"unknown keyword 'max_pixel'; did you mean 'max_pixels'\?"),
        ({"add_generaton_prompt": True}, r"did you mean 'add_generation_prompt'\?"),
        ({"processor_kwargs": {"paddding": True}}, r"did you mean 'padding'\?"),
        ({"return_assistant_tokens_mask": True}, "unknown keyword"),
    ],
)
def test_unknown_keywords_are_never_swallowed(processor: Processor, keywords: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        processor.apply_chat_template(ask("x"), **keywords)
    with pytest.raises(TypeError, match=r"did you mean 'padding'\?"):
        processor(text="x", pading=True)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"return_tensors": "pt"}, r"return_tensors='pt': expected \"mlx\", or \"np\""),
        ({"return_tensors": "tf"}, "return_tensors='tf'"),
        ({"return_tensors": "jax"}, "return_tensors='jax'"),
        ({"truncation": True}, "truncation=True: .*placeholders"),
        ({"do_sample_frames": False}, "do_sample_frames=False"),
        ({"add_special_tokens": False}, "add_special_tokens=False"),
        ({"audio": [0.0]}, "does not hear"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(processor: Processor, keywords: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        processor(text="x", **keywords)
    with pytest.raises(UnsupportedError, match=message):
        processor.apply_chat_template(ask("x"), tokenize=True, **keywords)


def test_what_asks_for_nothing_is_taken(processor: Processor) -> None:
    same = processor(text="x")
    idle = {"truncation": False, "do_sample_frames": True, "add_special_tokens": True, "audio": None, "fps": None}
    assert processor(text="x", padding=False, **idle) == same
    assert isinstance(same, Encoding)


def test_what_is_wrong_with_the_inputs_says_so(processor: Processor) -> None:
    with pytest.raises(PromptError, match="text is missing"):
        processor(images=plain())
    with pytest.raises(MediaError, match="no such file"):
        processor.apply_chat_template(ask(Path("/nowhere.png")), tokenize=True)
    with pytest.raises(PromptError, match="list of messages"):
        processor.apply_chat_template([])
