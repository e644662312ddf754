"""A prompt that takes over two seconds to read, on a real terminal."""

import sys
from pathlib import Path

import pytest

from .terminal import Terminal

CALL = {
    "generate": "generate(*load('demo'), prompt, verbose=True, **settings)",
    "command": "cli.main_generate(['--model', 'demo', '-p', prompt, '--prefill-step-size', '24', '--max-tokens', '1'])",
}


@pytest.mark.parametrize("call", [pytest.param(CALL["generate"], marks=pytest.mark.slow), CALL["command"]], ids=CALL)
def test_a_slow_prompts_progress_is_shown(call: str, environment: dict[str, str], tmp_path: Path) -> None:
    """How many of its tokens are read, after two seconds; the answer has the line for itself."""
    script = f"""
import time
from mlx_vlgen import cli, generate, load
from mlx_vlgen.engine.prefill import Prefill

step = Prefill.step
def slow(*args, **keywords):
    time.sleep(1.5)
    return step(*args, **keywords)
Prefill.step = slow
prompt, settings = "red " * 30, dict(prefill_step_size=24, max_tokens=1)
{call}
print("the end")
"""
    terminal = Terminal([sys.executable, "-c", script], environment | {"COLUMNS": ""}, tmp_path)
    try:
        terminal.wait(lambda show: "reading the prompt: " in show)
        assert " 24/" in terminal.show
        terminal.wait("the end")
        assert "reading the prompt" not in terminal.show and b"[00:01<" not in terminal.written
    finally:
        terminal.close()
