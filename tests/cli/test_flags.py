"""Flags and their messages, without starting a process: what is parsed, what is refused and how."""

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from invariants.family import Family

from mlx_vlgen import SamplingParams, cli, flags
from mlx_vlgen.options import OPTIONS, SAMPLING

from .conftest import Outcome

# What the flags become

JSON = Path(cli.__file__).parent / "demo" / "model" / "config.json"
FORMS = ("json_schema", "regex", "grammar", "choices")
FLAGS: dict[str, tuple[list[str], Any]] = {
    "max_tokens": (["7"], 7),
    "sampling": (["thinking"], "thinking"),
    "temperature": (["0.5"], 0.5),
    "top_p": (["0.9"], 0.9),
    "top_k": (["-1"], -1),
    "min_p": (["0.1"], 0.1),
    "typical_p": (["0.95"], 0.95),
    "top_n_sigma": (["1.5"], 1.5),
    "xtc_probability": (["0.5"], 0.5),
    "xtc_threshold": (["0.2"], 0.2),
    "repetition_penalty": (["1.1"], 1.1),
    "repetition_context_size": (["all"], None),
    "presence_penalty": (["-0.5"], -0.5),
    "frequency_penalty": (["0.3"], 0.3),
    "thinking_budget": (["9"], 9),
    "thinking_start_token": (["<a>"], "<a>"),
    "thinking_end_token": (["</a>"], "</a>"),
    "json_schema": ([str(JSON)], JSON.read_text(encoding="utf-8")),
    "regex": (["a+"], "a+"),
    "grammar": ([str(JSON)], JSON.read_text(encoding="utf-8")),
    "choices": (["a b", "-"], ["a b", "-"]),
    "seed": (["-3"], -3),
    "eos_tokens": (["5", "</s>"], [5, "</s>"]),
    "stop": (["a b", "5"], ["a b", "5"]),
    "max_time": (["2.5"], 2.5),
    "skip_special_tokens": ([], True),
    "include_eos": ([], True),
    "resize_shape": (["30", "40"], [30, 40]),
    "min_pixels": (["10"], 10),
    "max_pixels": (["20"], 20),
    "video_fps": (["0.5"], 0.5),
    "num_frames": (["4"], 4),
    "max_frames": (["5"], 5),
    "use_audio_in_video": ([], True),
    "draft_model": (["small"], "small"),
    "num_draft_tokens": (["4"], 4),
    "prompt_lookup": (["6"], 6),
    "kv_bits": (["4"], 4),
    "kv_group_size": (["32"], 32),
    "quantized_kv_start": (["5"], 5),
    "max_kv_size": (["99"], 99),
    "enable_thinking": ([], True),
    "prefill_step_size": (["64"], 64),
}


@pytest.mark.parametrize("form", FORMS)  # of each of these kinds one alone can be given
@pytest.mark.parametrize("cache", ["kv_bits", "max_kv_size"])
def test_every_keyword_has_its_flag(
    cache: str, form: str, invoke: Callable[..., Outcome], calls: dict[str, Any]
) -> None:
    assert FLAGS.keys() == {option.name for option in OPTIONS}
    left_out = {"kv_bits", "max_kv_size", *FORMS} - {cache, form}
    flags = {name: flag for name, flag in FLAGS.items() if name not in left_out}
    arguments: list[str] = []
    for name, (values, _) in flags.items():
        arguments += ["--" + name.replace("_", "-"), *values]
    assert invoke("--prompt", "Hi", *arguments) == (0, "answer\n", "")
    assert calls["keywords"] == {name: value for name, (_, value) in flags.items()}


def test_flags_not_given_are_not_passed_on(invoke: Callable[..., Outcome], calls: dict[str, Any]) -> None:
    assert invoke("-p", "Hi", "-m", "somewhere") == (0, "answer\n", "")
    assert calls == {
        "model": "somewhere",
        "options": {"adapter_path": None, "revision": None, "dtype": "auto", "quantization": None},
        "messages": [{"role": "user", "content": "Hi"}],
        "keywords": {},
    }


def test_model_flags_reach_load(invoke: Callable[..., Outcome], calls: dict[str, Any]) -> None:
    model_flags = "-m m --adapter-path a --revision r --dtype float16 --quantize 4".split()
    repeated = "--temp 1 --stop x --stop y --choice u --choice v w".split()
    assert invoke("-p", "Hi", *model_flags, *repeated)[0] == 0
    assert calls["options"] == {"adapter_path": "a", "revision": "r", "dtype": "float16", "quantization": 4}
    assert calls["keywords"] == {"temperature": 1.0, "stop": ["x", "y"], "choices": ["u", "v", "w"]}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--image", "a.png"], "Describe this image."),
        (["--video", "v"], "Describe this video."),
        (["--image", "a.png", "--video", "v"], "Describe this image."),
        (["--image", "a.png", "--prompt", ""], ""),
        (["--image", "a.png", "--prompt=-5 or -6?"], "-5 or -6?"),
    ],
)
def test_pictures_come_before_the_question(
    invoke: Callable[..., Outcome], calls: dict[str, Any], arguments: list[str], text: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    (tmp_path / "v").mkdir()
    assert invoke("--model", "m", *arguments, "--system", "Be brief.") == (0, "answer\n", "")
    system, user = calls["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    media = [{"type": "image", "image": "a.png"}] * ("--image" in arguments)
    media += [{"type": "video", "video": "v"}] * ("--video" in arguments)
    assert user == {"role": "user", "content": [*media, {"type": "text", "text": text}]}


def test_pictures_may_be_many_and_remote(invoke: Callable[..., Outcome], calls: dict[str, Any]) -> None:
    urls = ["https://example.org/a.png", "data:image/png;base64,AAAA"]
    assert invoke("--model", "m", "--image", *urls, "--image", urls[0])[0] == 0
    assert [part.get("image") for part in calls["messages"][0]["content"]] == [*urls, urls[0], None]


@pytest.mark.parametrize(
    ("arguments", "by_default"), [([], True), (["--max-tokens", "2"], False), (["--max-time", "1"], False)]
)
def test_an_answer_cut_by_a_default_is_told(
    invoke: Callable[..., Outcome], calls: dict[str, Any], arguments: list[str], by_default: bool
) -> None:
    calls["reason"] = "length"
    code, out, error = invoke("-m", "m", "-p", "Hi", *arguments)
    assert (code, out) == (0, "answer\n")
    assert error == "mlx_vlgen: the answer was cut after 0 tokens; --max-tokens allows more\n" * by_default


# What is refused: exit code 2, before a model is loaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to answer: give --image, --video or --prompt"),
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt"], "argument --prompt/-p: expected one argument (write a value that begins with - as --flag=-v"),
        (["--image", "-a.png"], "argument --image: expected at least one argument (write a value that begins with -"),
        (["--imgae", "a.png"], "unknown flag --imgae; did you mean '--image'?"),
        (["-p", "Hi", "--max-token=3"], "unknown flag --max-token; did you mean '--max-tokens'?"),
        (["-p", "Hi", "--max", "3"], "unknown flag --max"),
        (["-p", "Hi", "--zzz"], "unknown flag --zzz\n"),
        (["-p", "What", "is", "this"], "'is' belongs to no flag; put quotation marks around text of several words"),
        (["-p", "Hi", "--top-p", "much"], "argument --top-p: invalid float value: 'much'"),
        (["-p", "Hi", "--seed", "1.5"], "argument --seed: invalid int value: '1.5'"),
        (["-p", "Hi", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["-p", "Hi", "--resize-shape", "3"], "argument --resize-shape: expected 2 arguments"),
        (["-p", "Hi", "--top-p", "1.5"], "--top-p=1.5: expected 0 to 1"),
        (["-p", "Hi", "--temperature", "nan"], "--temperature=nan: expected a finite number"),
        (["-p", "Hi", "--max-tokens", "-1"], "--max-tokens=-1: expected at least 0"),
        (["-p", "Hi", "--max-time", "0"], "--max-time=0.0: expected more than 0"),
        (["-p", "Hi", "--json-schema", "none.json"], "argument --json-schema: none.json: No such file or directory\n"),
        (
            ["-p", "Hi", "--regex", "a", "--choice", "b"],
            "--choices: only one of --json-schema, regex, grammar, choices",
        ),
        (["-p", "Hi", "--stop", ""], "--stop: an empty string would stop at once"),
        (["-p", "Hi", "--resize-shape", "0", "9"], "--resize-shape=0: expected more than 0"),
        (["-p", "Hi", "--prefill-step-size", "0"], "--prefill-step-size=0: expected more than 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_told_in_two_lines(
    invoke: Callable[..., Outcome], calls: dict[str, Any], arguments: list[str], message: str
) -> None:
    code, out, error = invoke(*arguments)
    assert (code, out, calls) == (2, "", {})
    assert error.startswith(f"python -m mlx_vlgen.generate: error: {message}")
    assert error.endswith("\nTry: python -m mlx_vlgen.generate --help\n") and error.count("\n") == 2


def test_files_that_a_flag_cannot_read_are_told(invoke: Callable[..., Outcome], tmp_path: Path) -> None:
    notes, latin = tmp_path / "notes.txt", tmp_path / "latin.txt"
    notes.write_text("no schema")
    latin.write_bytes(b'start: "\xe9"')
    for flag, path, message in (
        ("--json-schema", notes, "--json-schema: not JSON: Expecting value"),
        ("--grammar", latin, f"argument --grammar: {latin}: not text in UTF-8"),
    ):
        code, out, error = invoke("-p", "Hi", flag, path)
        assert (code, out) == (2, "") and message in error


def test_the_commands_refuse_what_they_do_not_know(invoke: Callable[..., Outcome]) -> None:
    assert invoke("genrate", command=cli.main)[0] == 2
    assert "invalid choice: 'genrate' (choose from" in invoke("genrate", command=cli.main)[2]
    assert "unknown flag --verison; did you mean '--version'?" in invoke("--verison", command=cli.main)[2]


# Files and models that cannot be read: exit code 1


@pytest.mark.parametrize("flag", ["--image", "--video"])
def test_a_missing_file_is_told_before_a_model_is_loaded(
    invoke: Callable[..., Outcome], calls: dict[str, Any], flag: str
) -> None:
    assert invoke(flag, "no such.png") == (1, "", "mlx_vlgen: error: no such.png: no such file\n")
    hint = "no such file; if this is the prompt, write --prompt before it"
    assert invoke(flag, "What is it?") == (1, "", f"mlx_vlgen: error: What is it?: {hint}\n")
    assert invoke(flag, "file:///no/such.png") == (1, "", "mlx_vlgen: error: file:///no/such.png: no such file\n")
    assert calls == {}


def test_what_cannot_be_read_is_told_in_one_line(
    invoke: Callable[..., Outcome], qwen: Family, pictures: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes((pictures / "large.png").read_bytes()[:500])
    notes = tmp_path / "notes.txt"
    notes.write_text("Not a picture.")
    expected = {
        ("--image", damaged): "damaged.png: the PNG is truncated or damaged; get a whole copy",
        ("--image", notes): "notes.txt: not a picture that is read here (it looks like text); expected JPEG",
        ("--image", tmp_path): "is a folder; expected a file",
        ("--video", pictures / "large.png"): "large.png: a still picture; give it as --image\n",
        ("--video", notes): "notes.txt: not a video that is read here",
        ("--prompt", b"a\xff".decode("utf-8", "surrogateescape")): "bytes that are not text in UTF-8",
        ("--eos-tokens", "two words", "-p", "Hi"): "error: --eos-tokens: 'two words' is",
    }
    for arguments, message in expected.items():
        code, out, error = invoke("--model", qwen.folder, "--max-tokens", "1", *arguments)
        assert (code, out) == (1, "") and error.startswith("mlx_vlgen: error: ") and message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["", "./nowhere", "nowhere", "owner/nowhere", "not an id"])
def test_a_named_model_that_is_missing_is_no_reason_for_another(
    invoke: Callable[..., Outcome], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, error = invoke("--prompt", "Hi", "--model", name)
    assert (code, out) == (1, "") and error.startswith("mlx_vlgen: error: ") and error.count("\n") == 1
    assert name in error and "built-in" not in error
    if name:  # an empty variable is none
        monkeypatch.setenv("MLX_VLGEN_MODEL", name)
        assert invoke("--prompt", "Hi") == (1, "", error)


def test_an_unexpected_error_is_named_and_its_traceback_can_be_had(
    invoke: Callable[..., Outcome], calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(sys.modules["mlx_vlgen.generate"], "stream_generate", broken)
    assert invoke("-m", "m", "-p", "Hi") == (
        1, "", "mlx_vlgen: error: RuntimeError: out of luck (set MLX_VLGEN_TRACEBACK=1 for more)\n",
    )  # fmt: skip
    monkeypatch.setenv("MLX_VLGEN_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="out of luck"):
        invoke("-m", "m", "-p", "Hi")


# Help


def test_help_tells_every_flag_its_default_and_the_exit_codes(invoke: Callable[..., Outcome]) -> None:
    code, out, error = invoke("--help")
    assert (code, error) == (0, "")
    for flag in ("--image", "--video", "--prompt", "-p", "--system", "--system-prompt", "--model", "-m", "--temp"):
        assert re.search(rf"(^|[ ,]){flag}\b", out)
    assert "mlx-community/Qwen3-VL-2B-Instruct-4bit" in out and "$MLX_VLGEN_MODEL" in out
    assert "exit codes: 0, 1 failed, 2 usage, 130 Ctrl-C" in out
    assert out.startswith("usage: python -m mlx_vlgen.generate [--image IMAGE ...]")
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
    for option in OPTIONS:
        assert re.search(rf"^  {option.flag}\b", out, re.MULTILINE)
        if default := re.search(r"\(default ([0-9.]+)", option.help):
            assert option not in SAMPLING or float(default[1]) == defaults[option.name]
    assert invoke("generate", "--help", command=cli.main)[1].startswith("usage: mlx-vlgen generate ")


def test_the_commands_are_listed(invoke: Callable[..., Outcome]) -> None:
    code, out, error = invoke(command=cli.main)
    assert (code, error) == (0, "")
    for name, help in flags.COMMANDS.items():
        assert f"  {name:10} {help}\n" in out
    assert invoke("--help", command=cli.main)[1] == out
    assert re.fullmatch(r"mlx-vlgen \d+\.\d+\.\d+\n", invoke("--version", command=cli.main)[1])
    assert invoke("--version") == invoke("--version", command=cli.main)
