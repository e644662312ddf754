"""A tiny checkpoint on disk, and the command line as a person runs it: a separate process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from invariants.family import Family

from mlx_vlgen import GenerationResult, cli

GENERATE = (sys.executable, "-m", "mlx_vlgen.generate")
COMMANDS = (sys.executable, "-m", "mlx_vlgen")

Completed = subprocess.CompletedProcess[str]
Outcome = tuple[int, str, str]


@pytest.fixture(scope="session")
def qwen(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3_vl")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An empty cache, no network, no settings of whoever runs the tests; of this process and of those it starts."""
    for name in ("MLX_VLGEN_MODEL", "MLX_VLGEN_TRACEBACK", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # both were read when it was imported
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return dict(os.environ)


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Callable[..., Completed]:
    """Run a command to its end, in an empty folder; no traceback is ever a person's."""

    def run(
        *command: str | Path, env: dict[str, str] | None = None, stdin: bytes = b"", encoding: str = "utf-8"
    ) -> Completed:
        result = subprocess.run(
            list(map(str, command)),
            input=stdin,
            env=environment | (env or {}),
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert b"Traceback" not in result.stderr
        return Completed(result.args, result.returncode, result.stdout.decode(encoding), result.stderr.decode(encoding))

    return run


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Processes that are started here can be interrupted, even when these tests run as a shell's background job, which
    ignores Ctrl-C and hands that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], environment: dict[str, str]) -> Callable[..., Outcome]:
    """Run a command in this process: its exit code, stdout and stderr."""

    def invoke(*arguments: str | Path, command: Callable[..., int] = cli.main_generate) -> Outcome:
        try:
            code = command([str(argument) for argument in arguments])
        except SystemExit as system_exit:
            code = int(system_exit.code or 0)
        return code, *capsys.readouterr()

    return invoke


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `run_generate` calls `load` and `stream_generate` with; nothing is loaded."""
    calls: dict[str, Any] = {}

    def load(name: str, **options: Any) -> tuple[str, str]:
        calls.update(model=name, options=options)
        return "model", "processor"

    def stream(
        model: Any, processor: Any, messages: Any, prompt_progress_callback: Any, **keywords: Any
    ) -> list[GenerationResult]:
        calls.update(messages=messages, keywords=keywords)
        last = GenerationResult("wer", answer="answer", finish_reason=calls.get("reason", "stop"))
        return [GenerationResult("ans", answer="ans"), last]

    import mlx_vlgen.generate

    monkeypatch.setattr(mlx_vlgen, "load", load, raising=False)
    monkeypatch.setattr(sys.modules["mlx_vlgen.generate"], "stream_generate", stream)
    return calls
