"""`model.generate` as a whole: what it takes besides settings, and what it gives back besides tokens."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LoadFamily
from PIL import Image, ImageDraw
from transformers import TextIteratorStreamer, TextStreamer

import mlx_vlgen
from mlx_vlgen import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessorList,
    Request,
    StoppingCriteriaList,
    TokenIterator,
)
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError, PromptError, UnsupportedError
from mlx_vlgen.inputs.prompt import Prompt

Inputs = Callable[..., Any]


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained("demo")


@pytest.fixture(scope="module")
def processor() -> Any:
    processor = AutoProcessor.from_pretrained("demo")
    processor.tokenizer.padding_side = "left"
    return processor


def drawn(colour: str) -> Image.Image:
    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).ellipse((20, 20, 70, 70), fill=colour)
    return picture


@pytest.fixture(scope="module")
def inputs(processor: Any) -> Inputs:
    """The tensors of questions, each about a picture of one colour, or about none."""

    def make(*colours: str | None, question: str = "Describe this image.") -> Any:
        rows = []
        for colour in colours:
            content: list[dict[str, Any]] = [{"type": "text", "text": question}]
            if colour is not None:
                content.insert(0, {"type": "image", "image": drawn(colour)})
            rows.append([{"role": "user", "content": content}])
        return processor.apply_chat_template(
            rows, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="mlx", padding=True
        )

    return make


def answers_of(processor: Any, tensors: Any, out: Any) -> list[str]:
    width = tensors.input_ids.shape[1]
    texts: list[str] = processor.batch_decode([row[width:] for row in out], skip_special_tokens=True)
    return texts


def test_a_batch_is_padded_as_transformers_pads_it(model: Any, processor: Any, inputs: Inputs) -> None:
    tensors = inputs("red", None, "blue")
    out = model.generate(**tensors, max_new_tokens=40)
    assert answers_of(processor, tensors, out)[0] == "There is a red circle in the middle."
    for row, ids, text in zip(
        np.array(out), np.array(tensors.input_ids), answers_of(processor, tensors, out), strict=True
    ):
        assert row[: len(ids)].tolist() == ids.tolist()
        alone = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert set(row[len(ids) + len(alone) + 1 :].tolist()) <= {processor.tokenizer.pad_token_id}


def test_each_returned_sequence_has_a_draw_of_its_own(model: Any, inputs: Inputs) -> None:
    tensors = inputs("red", "green")
    keywords = {"do_sample": True, "temperature": 8.0, "top_k": 0, "max_new_tokens": 12}
    three = np.array(model.generate(**tensors, **keywords, num_return_sequences=3, seed=5))
    assert len(three) == 6
    for row in (three[:3], three[3:]):
        assert len({tuple(sequence) for sequence in row.tolist()}) == 3
    one = np.array(model.generate(**tensors, **keywords, seed=5))
    width = min(one.shape[1], three.shape[1])
    assert (three[[0, 3], :width] == one[:, :width]).all()  # the first of each row is its draw alone
    listed = np.array(model.generate(**inputs("green"), **keywords, seed=[5]))
    assert (listed[0, -5:] == one[1, listed.shape[1] - 5 : listed.shape[1]]).all()
    with pytest.raises(ValueError, match="seed: 3 given for 2 rows"):
        model.generate(**tensors, **keywords, seed=[1, 2, 3])


# -- the cache that comes back


def test_a_chat_goes_on_from_the_cache_of_its_first_turn(model: Any, processor: Any, inputs: Inputs) -> None:
    """A second question, with the picture again and without, and another picture."""
    tensors = inputs("red")
    first = model.generate(**tensors, max_new_tokens=30, return_dict_in_generate=True)
    past = first.past_key_values
    assert past.get_seq_length() == first.sequences.shape[1] - 1
    question = processor.tokenizer(
        "\n<|im_start|>user\nHow many shapes are there?<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
    )["input_ids"]
    ids = mx.array([first.sequences[0].tolist() + question])
    pictures = {"pixel_values": tensors["pixel_values"], "image_grid_thw": tensors["image_grid_thw"]}
    whole = model.generate(input_ids=ids, **pictures, max_new_tokens=20)
    for more in (pictures, {}):
        again = model.generate(input_ids=ids, **more, past_key_values=past, max_new_tokens=20)
        assert again.tolist() == whole.tolist()
    assert "1 shape" in processor.batch_decode(whole)[0]


def test_a_new_picture_after_the_cache_has_its_own_place(model: Any, processor: Any, inputs: Inputs) -> None:
    tensors, other = inputs("red"), inputs("blue")
    first = model.generate(**tensors, max_new_tokens=30, return_dict_in_generate=True)
    ids = mx.concatenate([first.sequences, other.input_ids.astype(mx.int32)], axis=1)
    both = {
        "pixel_values": mx.concatenate([tensors["pixel_values"], other["pixel_values"]]),
        "image_grid_thw": mx.concatenate([tensors["image_grid_thw"], other["image_grid_thw"]]),
    }
    settings = {"max_new_tokens": 20, "return_dict_in_generate": True, "output_logits": True}
    whole = model.generate(input_ids=ids, **both, **settings)
    new = {"pixel_values": other["pixel_values"], "image_grid_thw": other["image_grid_thw"]}
    for more in (both, new):
        later = model.generate(input_ids=ids, **more, past_key_values=first.past_key_values, **settings)
        assert later.sequences.tolist() == whole.sequences.tolist()
        for mine, theirs in zip(later.logits, whole.logits, strict=True):
            assert np.abs(np.array(mine) - np.array(theirs)).max() < 1e-4


def test_a_batch_goes_on_from_its_caches(model: Any, inputs: Inputs) -> None:
    tensors = inputs("red", None)
    first = model.generate(**tensors, max_new_tokens=4, return_dict_in_generate=True)  # no row ends so soon
    mask = mx.concatenate([tensors.attention_mask, mx.ones((2, 4), dtype=tensors.attention_mask.dtype)], axis=1)
    more = {"attention_mask": mask, "max_new_tokens": 30, "past_key_values": first.past_key_values}
    later = model.generate(input_ids=first.sequences, **more)
    whole = model.generate(**tensors, max_new_tokens=34)
    assert later.tolist() == whole.tolist()


def test_what_came_with_the_cache_is_counted(model: Any, inputs: Inputs) -> None:
    first = model.generate(**inputs(None), max_new_tokens=4, return_dict_in_generate=True)
    prompt, past = Prompt(np.array(first.sequences[0])), first.past_key_values.rows[0]
    with TokenIterator(model, model.processor) as iterator:
        place = [iterator.add(Request(prompt, past=past)), iterator.add(Request(prompt))]
        results = dict(iter(iterator))
    assert [results[id].cached_tokens for id in place] == [len(prompt.tokens) - 1, 0]
    assert results[place[0]].prompt_tokens == len(prompt.tokens)


def test_a_prompt_that_is_not_the_caches_is_refused(model: Any, inputs: Inputs) -> None:
    first = model.generate(**inputs("red"), max_new_tokens=4, return_dict_in_generate=True)
    other = mx.array([[5] * (first.sequences.shape[1] + 3)])
    with pytest.raises(PromptError, match="must begin with the tokens"):
        model.generate(input_ids=other, past_key_values=first.past_key_values)
    longer = mx.concatenate([first.sequences, first.sequences[:, -1:]], axis=1)
    with pytest.raises(UnsupportedError, match="its cache is of another kind"):
        model.generate(input_ids=longer, past_key_values=first.past_key_values, kv_bits=8)
    with pytest.raises(PromptError, match="1 rows, and the prompt has 2"):
        model.generate(input_ids=mx.concatenate([other, other]), past_key_values=first.past_key_values)


# -- guidance


def test_guidance_goes_on_from_a_cache(model: Any, processor: Any, inputs: Inputs) -> None:
    """The negative prompt has no cached tokens."""
    tensors, negative = inputs("red"), inputs(None, question="Hello.").input_ids
    first = model.generate(**tensors, max_new_tokens=5, return_dict_in_generate=True)
    more = processor.tokenizer("\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    ids = mx.array([first.sequences[0].tolist() + more])
    pictures = {"pixel_values": tensors["pixel_values"], "image_grid_thw": tensors["image_grid_thw"]}
    settings = {"max_new_tokens": 4, "guidance_scale": 1.5, "return_dict_in_generate": True, "output_scores": True}
    for negatives in ({"negative_prompt_ids": negative}, {"negative_prompt_ids": tensors.input_ids}):
        whole = model.generate(input_ids=ids, **pictures, **negatives, **settings)
        again = model.generate(
            input_ids=ids, **pictures, **negatives, **settings, past_key_values=first.past_key_values
        )
        assert again.sequences.tolist() == whole.sequences.tolist()
        for mine, theirs in zip(again.scores, whole.scores, strict=True):
            assert np.abs(np.array(mine) - np.array(theirs)).max() < 1e-4


def test_a_negative_prompt_may_see_the_pictures_too(model: Any, inputs: Inputs) -> None:
    """Guidance away from the prompt itself changes nothing; away from the same text without its picture it does."""
    tensors, blind = inputs("red", "green"), inputs(None, None)
    settings = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True}
    plain = model.generate(**tensors, **settings)
    itself = {"negative_prompt_ids": tensors.input_ids, "negative_prompt_attention_mask": tensors.attention_mask}
    text_only = {"negative_prompt_ids": blind.input_ids, "negative_prompt_attention_mask": blind.attention_mask}

    def likely(out: Any) -> np.ndarray:
        scores = np.array(out.scores[0])
        return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))

    same = model.generate(**tensors, **itself, guidance_scale=3.0, **settings)
    assert same.sequences.tolist() == plain.sequences.tolist()
    assert np.abs(likely(same) - likely(plain)).max() < 1e-4
    other = model.generate(**tensors, **text_only, guidance_scale=3.0, **settings)
    assert np.abs(likely(other) - likely(plain)).max() > 0.1


# -- streamers


class Pieces(TextStreamer):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)


def test_transformers_streamer_hears_prompt_and_answer(model: Any, processor: Any, inputs: Inputs) -> None:
    tensors = inputs("red")
    for skip in (True, False):
        streamer = Pieces(processor.tokenizer, skip_prompt=skip, skip_special_tokens=True)
        out = model.generate(**tensors, streamer=streamer, max_new_tokens=40)
        text = "".join(streamer.pieces)
        assert text.endswith(answers_of(processor, tensors, out)[0])
        assert len(streamer.pieces) > 3
        assert ("Describe" in text) != skip


def test_an_iterating_streamer_in_a_thread_with_lazy_weights(processor: Any, inputs: Inputs) -> None:
    lazy, _ = mlx_vlgen.load("demo", lazy=True)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    tensors = inputs("green")
    thread = threading.Thread(target=lazy.generate, kwargs={**tensors, "streamer": streamer, "max_new_tokens": 40})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == "There is a green circle in the middle."


def test_a_streamer_takes_one_row(model: Any, processor: Any, inputs: Inputs) -> None:
    streamer = Pieces(processor.tokenizer)
    for more in ({"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
        with pytest.raises(ValueError, match="streamer: it takes one row"):
            model.generate(**inputs("red"), streamer=streamer, **more)


class CountingStreamer:
    """Fails at its `fails`-th part, if any."""

    def __init__(self, fails: int = 0, error: BaseException | None = None):
        self._fails, self._error = fails, error
        self.calls: list[str] = []

    def put(self, value: Any) -> None:
        self.calls.append("part")
        if self._error and len(self.calls) == self._fails:
            raise self._error

    def end(self) -> None:
        self.calls.append("end")


def test_a_streamer_ends_whatever_happens(model: Any, inputs: Inputs) -> None:
    """Otherwise a listener in another thread waits for ever."""

    def fails(ids: Any, scores: Any) -> Any:
        raise RuntimeError("mine")

    for keywords, error in (
        ({"logits_processor": [fails]}, RuntimeError),
        ({"stopping_criteria": [fails]}, RuntimeError),
        ({"max_new_tokens": 0}, ValueError),
        ({"pixel_value": 3}, TypeError),
        ({"num_beams": 2}, ValueError),
        ({"regex": "("}, PromptError),
    ):
        streamer = CountingStreamer()
        with pytest.raises(error):
            model.generate(**inputs(None), streamer=streamer, **keywords)
        assert streamer.calls.count("end") == 1 and streamer.calls[-1] == "end", keywords
    for stop in (KeyboardInterrupt(), ValueError("of the streamer")):
        streamer = CountingStreamer(3, stop)
        with pytest.raises(type(stop)):
            model.generate(**inputs(None), streamer=streamer)
        assert streamer.calls == ["part"] * 3 + ["end"]
    streamer = CountingStreamer()
    model.generate(**inputs(None), streamer=streamer, max_new_tokens=2)
    assert streamer.calls == ["part"] * 3 + ["end"]
    streamer = CountingStreamer()
    model.generate(
        **inputs(None), streamer=streamer, custom_generate=lambda model, **arguments: arguments["streamer"].end()
    )
    assert streamer.calls == ["end"]


# -- users' functions


def test_users_functions_get_mlx_arrays_of_one_row(model: Any, inputs: Inputs) -> None:
    tensors, shapes = inputs("red", None), set()
    lengths = set(np.array(tensors.attention_mask).sum(axis=1).tolist())

    def processor(ids: mx.array, scores: mx.array) -> mx.array:
        assert isinstance(ids, mx.array)
        shapes.add((ids.shape, scores.shape))
        return scores

    def allowed(row: int, ids: mx.array) -> list[int]:
        assert isinstance(ids, mx.array)
        assert ids.ndim == 1
        return [row + 7]

    out = model.generate(
        **tensors, logits_processor=[processor], prefix_allowed_tokens_fn=allowed, max_new_tokens=3, eos_token_id=None
    )
    assert np.array(out)[:, -3:].tolist() == [[7, 7, 7], [8, 8, 8]]
    assert {shape[0][1] for shape in shapes} == {length + step for length in lengths for step in range(3)}
    assert {shape[1] for shape in shapes} == {(1, 576)}


def test_transformers_lists_are_called_in_order(model: Any, inputs: Inputs) -> None:
    def plus(number: float) -> Any:
        return lambda ids, scores: scores + number

    processors = LogitsProcessorList([plus(1), lambda ids, scores: scores * 3])
    processors.append(plus(0.5))
    assert processors(mx.array([[1]]), mx.array([[1.0, 2.0]])).tolist() == [[6.5, 9.5]]
    criteria = StoppingCriteriaList([lambda ids, scores: ids[:, -1] == 2, lambda ids, scores: ids.shape[1] > 2])
    assert criteria(mx.array([[1, 2], [2, 1]]), None).tolist() == [True, False]
    assert criteria(mx.array([[1, 2, 3]]), None).tolist() == [True] and StoppingCriteriaList()(
        mx.array([[1]]), None
    ).tolist() == [False]
    tensors = inputs(None)
    out = model.generate(
        **tensors,
        max_new_tokens=9,
        logits_processor=LogitsProcessorList([lambda ids, scores: scores.at[0, 7].add(1e9)]),
        stopping_criteria=StoppingCriteriaList([lambda ids, scores: ids.shape[1] >= tensors.input_ids.shape[1] + 3]),
    )
    assert out[0, tensors.input_ids.shape[1] :].tolist() == [7, 7, 7]


def test_a_criterion_ends_the_row_that_it_holds_for(model: Any, inputs: Inputs) -> None:
    tensors = inputs("red", "blue")
    width = tensors.input_ids.shape[1]
    plain = np.array(model.generate(**tensors, max_new_tokens=40))
    word = plain[1, width + 4]  # where the second row names its colour

    def says_colour(ids: mx.array, scores: Any, **_: Any) -> mx.array:
        return mx.array([bool(ids[0, -1].item() == word)])

    out = np.array(model.generate(**tensors, max_new_tokens=40, stopping_criteria=[says_colour]))
    assert (out[0] == plain[0, : out.shape[1]]).all()
    stop = width + plain[1, width:].tolist().index(word)
    assert (out[1, stop + 1 :] == out[1, -1]).all()
    assert (out[1, : stop + 1] == plain[1, : stop + 1]).all()


def test_a_users_error_comes_out_and_leaves_the_model_usable(model: Any, inputs: Inputs) -> None:
    def broken(ids: mx.array, scores: mx.array) -> mx.array:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.generate(**inputs("red", "blue"), logits_processor=[broken])
    assert model.generate(**inputs("red"), max_new_tokens=2).shape[0] == 1


def test_custom_generate_is_a_function_and_not_code_from_the_hub(model: Any, inputs: Inputs) -> None:
    def mine(model: Any, input_ids: Any, generation_config: Any, **tensors: Any) -> Any:
        return generation_config.max_new_tokens, sorted(tensors)

    max_tokens, names = model.generate(**inputs("red"), custom_generate=mine, max_new_tokens=3)
    assert max_tokens == 3
    assert "pixel_values" in names
    with pytest.raises(UnsupportedError, match="is not run here"):
        model.generate(**inputs("red"), custom_generate="someone/decoder")


# -- what is missing, or wrong


def test_without_input_the_prompt_is_the_first_token(model: Any) -> None:
    assert model.generate(bos_token_id=9, max_new_tokens=2).tolist()[0][0] == 9
    with pytest.raises(PromptError, match="no input_ids"):
        model.generate(bos_token_id=None, max_new_tokens=2)


def test_128_tokens_where_nothing_says_how_many(model: Any, inputs: Inputs) -> None:
    tensors = inputs("red")
    out = model.generate(**tensors, eos_token_id=None)
    assert out.shape[1] - tensors.input_ids.shape[1] == 128


def wrong() -> Iterator[Any]:
    yield {"inputs_embeds": mx.zeros((1, 2, 4))}, UnsupportedError, "give input_ids"
    yield {"max_new_token": 3}, TypeError, "max_new_tokens"
    yield {"pixel_value": 3}, TypeError, "pixel_values"
    yield {"negative_prompt_ids": [[1]]}, PromptError, "without guidance_scale"
    yield {"num_beams": 2, "guidance_scale": 1.5}, UnsupportedError, "beam search does not go with guidance"
    yield {"num_beams": 2, "prompt_lookup_num_tokens": 3}, (UnsupportedError, ValueError), "beam"
    yield {"guidance_scale": 2.0, "prompt_lookup_num_tokens": 3}, UnsupportedError, "does not go with guidance"
    yield {"num_beams": 2, "regex": "a+"}, UnsupportedError, "beam search does not go with regex"
    traced = {"return_dict_in_generate": True, "output_attentions": True}
    yield {**traced, "kv_bits": 8}, UnsupportedError, "attention weights does not go with kv_bits"
    yield {"penalty_alpha": 0.6}, UnsupportedError, "custom_generate"


@pytest.mark.parametrize(("keywords", "error", "message"), list(wrong()), ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused_by_name(
    keywords: dict[str, Any], error: Any, message: str, model: Any, inputs: Inputs
) -> None:
    with pytest.raises(error, match=message):
        model.generate(**inputs("red"), **keywords)


def foreign() -> Iterator[Any]:
    """Settings with what is no id of the built-in model's 576."""
    for token in (576, 10**12, -577):
        yield {"bos_token_id": token}
        yield {"eos_token_id": [568, token]}
        yield {"suppress_tokens": [5, token]}
        yield {"begin_suppress_tokens": [token]}
        yield {"forced_bos_token_id": token}
        yield {"forced_eos_token_id": [token]}
        yield {"pad_token_id": token}
        yield {"bad_words_ids": [[5], [6, token]]}
        yield {"sequence_bias": {(5, token): 2.0}}
    for name in ("bos_token_id", "eos_token_id", "suppress_tokens", "forced_eos_token_id", "pad_token_id"):
        yield {name: True}
        yield {name: "a"}
        yield {name: 1.5}


@pytest.mark.parametrize("keywords", list(foreign()), ids=str)
def test_settings_hold_the_models_own_ids(keywords: dict[str, Any], model: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(keywords))}(:|=)"):
        model.generate(mx.array([[1, 2]]), max_new_tokens=2, **keywords)


@pytest.mark.parametrize(
    "ids", [[[1, 576, 3]], [[1, 10**12]], [[1, -1]], [[True, False]], [[1.0, 2.0]], np.array([[2**32 + 5]])], ids=str
)
def test_the_prompts_are_the_models_own_ids(ids: Any, model: Any) -> None:
    for call in (model.generate, model):
        with pytest.raises(PromptError, match=r"^input_ids: .* is no token of this model: expected ids, .* 0 to 575"):
            call(input_ids=ids)
    with pytest.raises(PromptError, match=r"^negative_prompt_ids: .* is no token of this model"):
        model.generate([[1, 2]], negative_prompt_ids=ids, guidance_scale=2.0)


def test_padding_that_nobody_reads_may_be_anything(model: Any) -> None:
    """As where a tokenizer has a pad token that the layers have no row for."""
    alone = model.generate([[1, 2]], max_new_tokens=2)[:, -2:].tolist()
    padded = {"input_ids": [[999, 999, 1, 2]], "attention_mask": [[0, 0, 1, 1]]}
    assert model.generate(**padded, max_new_tokens=2)[:, -2:].tolist() == alone
    assert np.allclose(model(**padded).logits[:, 2:], model([[1, 2]]).logits, atol=1e-4)


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty", "presence_penalty", "guidance_scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, True], ids=str)
def test_numbers_that_are_none_are_refused_by_name(name: str, value: float, model: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}="):
        model.generate([[1, 2]], do_sample=True, **{name: value})


def test_ids_of_a_checkpoints_files_that_its_layers_do_not_have_are_none(
    model: Any, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.generate(**inputs("red"), max_new_tokens=40).tolist()
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        monkeypatch.setitem(model.generation_config, name, {"eos_token_id": [568, 566, 576]}.get(name, 576))
    assert model.generate(**inputs("red"), max_new_tokens=40).tolist() == expected
    monkeypatch.setitem(model.generation_config, "eos_token_id", "a")
    with pytest.raises(LoadError, match=r"eos_token_id is 'a'; expected a token id or a list"):
        model.generate(**inputs("red"))


def test_inputs_as_a_mapping_or_as_ids(model: Any, inputs: Inputs, tmp_path: Path) -> None:
    tensors = inputs(None)
    by_name = model.generate(**tensors, max_new_tokens=5).tolist()
    assert model.generate(tensors, max_new_tokens=5).tolist() == by_name
    assert model.generate(tensors.input_ids, max_new_tokens=5).tolist() == by_name
    with pytest.raises(TypeError, match="give one of them"):
        model.generate(tensors.input_ids, input_ids=tensors.input_ids)


@pytest.mark.parametrize("name", ["input_ids", "attention_mask"])
def test_rows_of_unlike_length_are_named(load_family: LoadFamily, name: str) -> None:
    tensors: dict[str, Any] = {"input_ids": [[3, 4]], "attention_mask": [[1, 1]]} | {name: [[1, 1], [1]]}
    with pytest.raises(PromptError, match=name):
        load_family("qwen3").model.generate(**tensors, max_new_tokens=1)
