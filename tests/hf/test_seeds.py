"""The pages' examples, run as they stand but for two things: what is imported, and "pt", which becomes "mlx"."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import LoadFamily
from parity import media

import mlx_vlgen
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import PromptError

DEMO = media.DEMO / "model"
PICTURE = media.DEMO / "pictures" / "shapes.png"

# Qwen3-VL's page of model.generate.

QWEN = "Qwen/Qwen3-VL-235B-A22B-Instruct"
COMPLETE = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(
    "Qwen/Qwen3-VL-235B-A22B-Instruct",
    dtype="auto",
    device_map="auto"
)

processor = AutoProcessor.from_pretrained(
    "Qwen/Qwen3-VL-235B-A22B-Instruct"
)

messages = [
    {
        "role": "user",
        "content": [
            {
                "type": "image",
                "image": "https://example.com/image.jpg"
            },
            {"type": "text", "text": "Describe this image."}
        ]
    }
]

# Prepare inputs
inputs = processor.apply_chat_template(
    messages,
    tokenize=True,
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt"
)
inputs = inputs.to(model.device)

# Generate
generated_ids = model.generate(**inputs, max_new_tokens=128)

# Decode
generated_ids_trimmed = [
    out_ids[len(in_ids):]
    for in_ids, out_ids in zip(inputs.input_ids, generated_ids)
]
output_text = processor.batch_decode(
    generated_ids_trimmed,
    skip_special_tokens=True,
    clean_up_tokenization_spaces=False
)
print(output_text)
"""
GENERATE = "generated_ids = model.generate(**inputs, max_new_tokens=128)"
INSTRUCT = """\
generated_ids = model.generate(
    **inputs,
    max_new_tokens=32768,
    temperature=0.7,
    top_p=0.8,
    top_k=20,
    repetition_penalty=1.0,
    presence_penalty=1.5,
    do_sample=True,
    seed=3407
)
"""
THINKING = """\
generated_ids = model.generate(
    **inputs,
    max_new_tokens=40960,
    temperature=0.6,
    top_p=0.95,
    top_k=20,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    do_sample=True,
    seed=1234
)
"""
# Each call on that page that shows one parameter.
SINGLE_CALLS = [
    "generated_ids = model.generate(**inputs, max_new_tokens=2048)",
    "generated_ids = model.generate(**inputs, temperature=0.3, max_new_tokens=128)",
    """\
generated_ids = model.generate(
    **inputs,
    temperature=0.7,
    top_p=0.8,
    max_new_tokens=128
)""",
    "generated_ids = model.generate(**inputs, top_k=20, max_new_tokens=128)",
    """\
generated_ids = model.generate(
    **inputs,
    repetition_penalty=1.0,
    max_new_tokens=128
)""",
    "generated_ids = model.generate(**inputs, do_sample=False, max_new_tokens=128)",
    "generated_ids = model.generate(**inputs, do_sample=True, max_new_tokens=128)",
    "generated_ids = model.generate(**inputs, seed=42, max_new_tokens=128)",
]

# transformers' page of GenerationMixin.generate. Its first example is bitsandbytes', whose settings are
# `quantization_config={"bits": 4}` here.

LLAMA = "meta-llama/Llama-2-7b-hf"
QUANTIZED = """\
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
import torch
bnb_config = BitsAndBytesConfig(
load_in_4bit=True,
bnb_4bit_quant_type="nf4",
bnb_4bit_compute_dtype=torch.bfloat16,
)
model = AutoModelForCausalLM.from_pretrained(
"meta-llama/Llama-2-7b-hf",
quantization_config=bnb_config,
device_map="auto",
)
tokenizer = AutoTokenizer.from_pretrained("meta-llama/Llama-2-7b-hf")
inputs = tokenizer("Hello my name is", return_tensors="pt")
input_ids = inputs["input_ids"].to(model.device)
output = model.generate(input_ids=input_ids, max_new_tokens=50)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""
SETTINGS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
import torch
bnb_config = BitsAndBytesConfig(
load_in_4bit=True,
bnb_4bit_quant_type="nf4",
bnb_4bit_compute_dtype=torch.bfloat16,
)
"""
OURS = """\
from mlx_vlgen import AutoModelForCausalLM, AutoTokenizer
bnb_config = {"bits": 4}
"""
SAMPLED = """\
output = model.generate(
input_ids=input_ids,
max_new_tokens=256,
do_sample=True,
temperature=0.7,
top_k=50,
top_p=0.95,
)
"""
STREAMED = """\
from transformers import TextStreamer
streamer = TextStreamer(tokenizer, skip_special_tokens=True)
model.generate(
input_ids=input_ids,
max_new_tokens=256,
do_sample=True,
temperature=0.7,
streamer=streamer,
)
"""
GREEDY = """\
output = model.generate(
input_ids=input_ids,
max_new_tokens=100,
do_sample=False,
)
"""


def cached_as(folder: Path, repo: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a checkpoint into an empty Hugging Face cache, as a whole copy of `repo`."""
    entry = cache / f"models--{repo.replace('/', '--')}"
    (entry / "snapshots").mkdir(parents=True)
    (entry / "snapshots" / "main").symlink_to(folder, target_is_directory=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


@pytest.fixture
def qwen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's checkpoint and picture: the built-in ones."""
    cached_as(DEMO, QWEN, tmp_path, monkeypatch)
    pictures = {"https://example.com/image.jpg": PICTURE.read_bytes()}
    monkeypatch.setattr("mlx_vlgen.inputs.media.fetch", lambda url, limits: pictures[url])


def run(example: str, **names: Any) -> dict[str, Any]:
    """The names that an example leaves behind."""
    exec(compile(example, "example", "exec"), names)
    return names


def ported(example: str) -> str:
    """The two differences."""
    assert example.count("from transformers import Auto") == example.count('"pt"') == 1
    return example.replace("from transformers import Auto", "from mlx_vlgen import Auto").replace('"pt"', '"mlx"')


def trimmed(names: dict[str, Any]) -> list[list[int]]:
    """The new tokens of each row, with the end token and without what fills up a row after it."""
    ids, ends = names["generated_ids"], names["model"].generation_config["eos_token_id"]
    ends = {ends} if isinstance(ends, int) else set(ends)
    rows = []
    for row in ids[:, names["inputs"].input_ids.shape[1] :].tolist():
        first = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        rows.append(row[:first])
    return rows


def answer(messages: Any, **sampling: Any) -> list[int]:
    """The tokens of an answer by `mlx_vlgen.generate`."""
    tokens: list[int] = mlx_vlgen.generate(*mlx_vlgen.load("demo"), messages, **sampling).tokens
    return tokens


def with_picture(text: str) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": PICTURE}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def test_the_complete_example_runs(qwen: None, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(ported(COMPLETE))
    assert capsys.readouterr().out == f"{names['output_text']}\n"
    ids = names["generated_ids"]
    assert isinstance(ids, mx.array) and ids.shape[0] == 1
    assert ids[:, : names["inputs"].input_ids.shape[1]].tolist() == names["inputs"].input_ids.tolist()
    tokens = answer(
        with_picture("Describe this image."), max_tokens=128
    )  # greedy, as the built-in model's settings say
    assert trimmed(names) == [tokens]
    assert names["output_text"] == [names["processor"].decode(tokens, skip_special_tokens=True)] != [""]


@pytest.mark.parametrize(("call", "preset", "seed"), [(INSTRUCT, "instruct", 3407), (THINKING, "thinking", 1234)])
def test_the_recommended_settings_run(qwen: None, call: str, preset: str, seed: int) -> None:
    names = run(ported(COMPLETE).replace(GENERATE, call))
    max_tokens = {INSTRUCT: 32768, THINKING: 40960}[call]
    assert trimmed(names) == [
        answer(with_picture("Describe this image."), sampling=preset, seed=seed, max_tokens=max_tokens)
    ]


def test_each_parameters_example_runs(qwen: None) -> None:
    prepared = ported(COMPLETE).partition("# Generate")[0]
    short = [{"role": "user", "content": "Hello!"}]  # a short answer, and no picture to encode again
    names = run(prepared.replace("# Prepare inputs", "messages = short"), short=short)
    for call in SINGLE_CALLS:
        assert run(call, **names)["generated_ids"].shape[1] > names["inputs"].input_ids.shape[1], call


BATCH_NOTE = "always set processor.tokenizer.padding_side = 'left' and include padding=True in apply_chat_template()"
QUESTIONS = ("Describe this image.", "How many shapes are there?")


def batched(example: str, side: str) -> str:
    """The complete example with a picture and two questions, and what the page's note asks for."""
    rows = example.replace(
        "# Prepare inputs", f"messages = batch\nprocessor.tokenizer.padding_side = {side!r}\n# Prepare inputs"
    )
    return rows.replace("    messages,\n    tokenize", "    messages,\n    padding=True,\n    tokenize")


def batch(texts: Sequence[str]) -> list[Any]:
    return [with_picture(texts[0]), [{"role": "user", "content": [{"type": "text", "text": texts[1]}]}]]


def test_a_batch_with_padding_on_the_left_runs_and_each_row_answers_as_it_does_alone(qwen: None) -> None:
    rows = batch(QUESTIONS)
    names = run(batched(ported(COMPLETE), "left"), batch=rows)
    assert names["inputs"].attention_mask[1, 0] == 0
    tokens = [answer(row, max_tokens=128) for row in rows]
    assert trimmed(names) == tokens
    assert names["output_text"] == [names["processor"].decode(row, skip_special_tokens=True) for row in tokens]


def test_a_batch_with_padding_on_the_right_says_what_to_set(qwen: None) -> None:
    with pytest.raises(PromptError, match=r'processor\.tokenizer\.padding_side = "left"'):
        run(batched(ported(COMPLETE), "right"), batch=batch(QUESTIONS))


# -- transformers' page


@pytest.fixture
def llama(load_family: LoadFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's checkpoint: a tiny one."""
    folder = load_family("llama").folder
    cached_as(folder, LLAMA, tmp_path, monkeypatch)
    return folder


def test_the_pages_four_examples_run(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert QUANTIZED.startswith(SETTINGS)
    names = run((OURS + QUANTIZED.removeprefix(SETTINGS)).replace('"pt"', '"mlx"'))
    prompt = names["input_ids"].tolist()[0]
    decode = names["tokenizer"].decode
    assert capsys.readouterr().out == decode(names["output"][0], skip_special_tokens=True) + "\n"
    assert (
        decode(names["output"][0]).startswith(decode(prompt))
        and len(prompt) < names["output"].shape[1] <= len(prompt) + 50
    )

    names = run(SAMPLED, **names)
    assert names["output"][0, : len(prompt)].tolist() == prompt and names["output"].shape[1] <= len(prompt) + 256

    run(STREAMED, **names)
    assert capsys.readouterr().out.startswith(decode(prompt, skip_special_tokens=True))

    greedy = run(GREEDY, **names)["output"]
    tokens = mlx_vlgen.generate(names["model"], names["model"].processor, "Hello my name is", max_tokens=100).tokens
    assert greedy[0, len(prompt) :].tolist() == tokens
