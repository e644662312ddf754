"""`python -m mlx_vlgen.convert`: its flags, its streams and exit codes, and that no kill leaves half a checkpoint.

It is stopped at steps that are known; `-m slow` stops it at random moments too, in the middle of writing weights.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity.layouts import write_checkpoint

from mlx_vlgen import cli, load
from mlx_vlgen._runtime import mx, tree_flatten

from .conftest import COMMANDS, Completed

CONVERT = (sys.executable, "-m", "mlx_vlgen.convert")
Run = Callable[..., Completed]


# Flags


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command calls `convert` with; nothing is converted."""
    calls: dict[str, Any] = {}

    def convert(hf_path: str, **keywords: Any) -> None:
        calls.update(hf_path=hf_path, **keywords)

    import mlx_vlgen.convert

    monkeypatch.setattr(mlx_vlgen.convert, "convert", convert)
    return calls


def invoke(*arguments: str) -> int:
    try:
        return cli.main_convert(arguments)
    except SystemExit as system_exit:
        return int(system_exit.code or 0)


def test_every_flag_is_passed_on_and_no_other(calls: dict[str, Any]) -> None:
    arguments = "owner/name --mlx-path out --revision r -q --q-bits 3 --q-group-size 32 --q-mode affine"
    assert invoke(*arguments.split(), *"--quantize-vision --dtype float16 --upload-repo me/it --dry-run".split()) == 0
    assert calls == {
        "hf_path": "owner/name", "mlx_path": "out", "revision": "r", "quantize": True, "q_bits": 3, "q_group_size": 32,
        "q_mode": "affine", "quantize_vision": True, "dtype": "float16", "upload_repo": "me/it", "dry_run": True,
    }  # fmt: skip


@pytest.mark.parametrize("arguments", ["it", "--hf-path it", "--model it"])
def test_flags_not_given_are_not_passed_on(calls: dict[str, Any], arguments: str) -> None:
    assert invoke(*arguments.split()) == 0
    assert calls == {"hf_path": "it"}


@pytest.mark.parametrize("flag", ["--q-recipe", "--quant-predicate"])
def test_recipes_and_dequantizing(calls: dict[str, Any], flag: str) -> None:
    assert invoke("it", "-q", flag, "mixed_2_6") == 0
    assert calls == {"hf_path": "it", "quantize": True, "q_recipe": "mixed_2_6"}
    calls.clear()
    assert invoke("it", "-d") == 0
    assert calls == {"hf_path": "it", "dequantize": True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "no checkpoint is named"),
        ("a --model b", "name one checkpoint"),
        ("a b", "'b' belongs to no flag"),
        ("a --q-bit 4", "unknown flag --q-bit; did you mean '--q-bits'?"),
        ("a --q-bits 4", "--q-bits says how to quantize, and quantize is not given"),
        ("a -q --q-bits 7", "--q-bits=7: affine has 2, 3, 4, 5, 6, 8."),
        ("a -q --q-group-size 7", "--q-group-size=7: affine has 32, 64, 128."),
        ("a -q -d", "--dequantize and quantize exclude each other"),
        ("a -q --q-recipe mixed", "--q-recipe='mixed': expected one of mixed_2_6"),
        ("a -q --q-mode int4", "invalid choice: 'int4'"),
        ("a --dtype int8", "invalid choice: 'int8'"),
        ("a --dry-run", "--dry-run lists what --upload-repo would get"),
    ],
)
def test_wrong_usage(calls: dict[str, Any], capsys: pytest.CaptureFixture[str], arguments: str, message: str) -> None:
    assert invoke(*arguments.split()) == 2
    out, error = capsys.readouterr()
    assert (out, calls) == ("", {}) and message in error


# As a process


def test_a_checkpoint_is_converted_answers_and_is_not_overwritten(run: Run, qwen: Family, tmp_path: Path) -> None:
    result = run(*CONVERT, qwen.folder, "-q", "--q-group-size", "32", "--upload-repo", "me/it", "--dry-run")
    assert result.returncode == 0
    target = tmp_path / "mlx_model"
    message, *listed = result.stdout.splitlines()
    assert re.fullmatch(r"\d+ files, 1\.\d MB, would be uploaded to https://huggingface.co/me/it:", message)
    assert [line.split()[1] for line in listed] == sorted(path.name for path in target.iterdir())
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == ["mlx_vlgen", "mlx_vlgen"]
    assert re.search(r"mlx_model: 1\.\d MB, \d+\.\d{3} bits per weight; it was 2\.\d MB$", result.stderr)
    ours, theirs = (
        dict(tree_flatten(load(folder, quantization=how)[0].parameters()))
        for folder, how in ((target, None), (qwen.folder, {"bits": 4, "group_size": 32}))
    )
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(np.array(ours[name]), np.array(theirs[name])) for name in ours)

    answer = run(*COMMANDS, "generate", "--model", target, "--prompt", "Hi", "--max-tokens", "3")
    assert (answer.returncode, answer.stderr) == (0, "") and len(answer.stdout) > 1
    again = run(*COMMANDS, "convert", qwen.folder)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith(f"mlx_vlgen: error: {target} is there already and is not empty. ")


def test_help_is_instant(run: Run) -> None:
    result = run(sys.executable, "-W", "error", "-X", "importtime", "-m", "mlx_vlgen.convert", "--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: python -m mlx_vlgen.convert ")
    assert not re.search(r"\| +(mlx|numpy|transformers|PIL|huggingface_hub)$", result.stderr, re.MULTILINE)


def test_a_full_disk_leaves_nothing(environment: dict[str, str], qwen: Family, tmp_path: Path) -> None:
    # No file of this process may be larger than half a megabyte.
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000,) * 2); " \
              "from mlx_vlgen.cli import main_convert; sys.exit(main_convert(sys.argv[1:]))"  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", limited, qwen.folder, "--mlx-path", tmp_path / "out"],
        capture_output=True, encoding="utf-8", env=environment, check=False,
    )  # fmt: skip
    assert result.returncode == 1 and result.stderr.startswith("mlx_vlgen: error: ")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out.*"))


# Killed

STOPS_ITSELF = """
import os, sys
step, begin, end, how = sys.argv[1:5]
def hook(event, arguments):
    if event == step and str(arguments[0]).startswith(begin) and str(arguments[0]).endswith(end):
        os.kill(os.getpid(), int(how))
sys.addaudithook(hook)
from mlx_vlgen import entry
sys.argv[1:] = sys.argv[5:]
entry.convert()
"""
"""The command, which gets a signal before a step on a path that begins and ends so: it cannot land too early or too
late."""

STEPS = (("os.mkdir", ".converting"), ("open", "config.json"), ("os.rename", ""))


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize(
    ("how", "steps"),
    [
        (signal.SIGKILL, STEPS),
        (signal.SIGINT, STEPS[1:2]),
        pytest.param(signal.SIGINT, STEPS, marks=pytest.mark.slow),
    ],
    ids=["SIGKILL", "SIGINT", "SIGINT at each"],
)
def test_killed_before_a_step_it_leaves_nothing(
    how: signal.Signals, steps: Sequence[tuple[str, str]], environment: dict[str, str], qwen: Family, tmp_path: Path
) -> None:
    target, part = tmp_path / "out", str(tmp_path / ".out.")
    flags = [qwen.folder, "--mlx-path", target, "-q", "--q-group-size", "32"]
    for step, end in steps:
        command = [sys.executable, "-c", STOPS_ITSELF, step, part, end, str(int(how)), *flags]
        result = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
        assert b"Traceback" not in result.stderr
        assert result.returncode == (130 if how == signal.SIGINT else -how)
        assert not target.exists()
        assert bool(list(tmp_path.glob(".out.*"))) == (how == signal.SIGKILL and step != "os.mkdir")
    assert cli.main_convert([str(flag) for flag in flags]) == 0  # what the killed ones left is no hindrance
    whole = contents(target)
    assert "config.json" in whole and len(whole["model.safetensors"]) > 1_000_000
    assert not list(tmp_path.glob(".out.*"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that takes a while: the tiny one with a larger vocabulary."""
    folder = write_checkpoint("llama", "v5", tmp_path_factory.mktemp("large"))
    config = json.loads((folder / "config.json").read_text())
    tensors = dict(mx.load(str(folder / "model.safetensors")).items())  # type: ignore[union-attr]
    config["vocab_size"] = 50_000
    for name, tensor in tensors.items():
        if "embed_tokens" in name or "lm_head" in name:
            tensors[name] = mx.random.normal((50_000, tensor.shape[1]), key=mx.random.key(0))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def until(process: "subprocess.Popen[bytes]", happened: Callable[[], bool]) -> float:
    """The time at which it happened, or the process ended."""
    while not happened() and process.poll() is None:
        time.sleep(0.0005)
    return time.perf_counter()


@pytest.mark.slow
@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
def test_killed_at_any_moment_it_leaves_nothing_or_all(
    how: signal.Signals, environment: dict[str, str], large: Path, tmp_path: Path
) -> None:
    """No signal is sent before this run's folder is there, which is long after Python heeds interrupts, and what an
    exit code must be is asked only where the result is not there, so that the run had not come to its end: neither a
    slow machine nor an early or a late signal is a reason to fail. Runs go on, and signals come the earlier, until
    three were stopped."""
    target = tmp_path / "out"

    def start() -> "subprocess.Popen[bytes]":
        command = [*CONVERT, str(large), "--mlx-path", str(target), "-q", "--q-group-size", "32"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def parts() -> set[Path]:
        return set(tmp_path.glob(".out.*"))

    first = start()
    begun = until(first, lambda: bool(parts()))
    length = until(first, target.exists) - begun
    assert first.wait(timeout=60) == 0
    whole = contents(target)
    assert "config.json" in whole and len(whole["model.safetensors"]) > 1_000_000
    random_moments = random.Random(0)
    runs = stopped = 0
    while runs < 10 or stopped < 3:
        runs += 1
        if target.exists():
            target.rename(tmp_path / f"whole{len(os.listdir(tmp_path))}")
        left = parts()
        process = start()
        until(process, lambda left=left: bool(parts() - left))  # type: ignore[misc]
        time.sleep(random_moments.uniform(0, length) * 10 / max(10, runs))
        process.send_signal(how)
        _, error = process.communicate(timeout=60)
        assert b"Traceback" not in error
        if target.exists():
            assert contents(target) == whole
        else:
            stopped += 1
            assert process.returncode == (130 if how == signal.SIGINT else -how)
            assert how == signal.SIGKILL or not parts()
    if target.exists():
        target.rename(tmp_path / "last")
    assert start().wait(timeout=60) == 0  # what the killed ones left is no hindrance
    assert contents(target) == whole and not parts()
