"""The command: its process, its signals, its flags."""

import json
import os
import plistlib
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from mlx_vlgen.cli import main_serve
from mlx_vlgen.flags import serve_parser
from mlx_vlgen.serve import settings_of


def test_sigterm_lets_an_answer_come_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k\n")
    command = [sys.executable, "-m", "mlx_vlgen.serve", "--model", "demo", "--port", "0", "--api-key-file", "key"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                               env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert process.stderr is not None
    url = next(line.split()[-1] for line in process.stderr if "answering on" in line)
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 60, "stream": True,
            "logit_bias": {"568": -100, "566": -100}}  # fmt: skip
    headers = {"Content-Type": "application/json", "Authorization": "Bearer k"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        first = response.readline()
        process.send_signal(signal.SIGTERM)
        rest = response.read().decode()
    assert first.startswith(b"data: {") and rest.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in rest
    assert process.wait(10) == 0
    events = [json.loads(line) for line in process.stderr if line.startswith("{")]
    assert [event["event"] for event in events] == ["request"] and "Hi" not in json.dumps(events)
    process.stderr.close()


def test_the_key_comes_from_the_flag_the_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(*flags: str) -> str | None:
        return settings_of(serve_parser("serve").parse(flags)).api_key

    assert key() is None
    monkeypatch.setenv("MLX_VLGEN_API_KEY", "e")
    (tmp_path / "key").write_text("f\n")
    assert (key(), key("--api-key-file", str(tmp_path / "key")), key("--api-key", "g")) == ("e", "f", "g")
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        key("--api-key-file", str(tmp_path / "key"))


def test_launchd_gets_the_same_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_serve(["--launchd", "--model", "demo", "--port", "81"]) == 0
    plist = plistlib.loads(capsys.readouterr().out.encode())
    assert plist["ProgramArguments"][1:] == ["-m", "mlx_vlgen.serve", "--model", "demo", "--port", "81"]
    assert main_serve(["--launchd", "--api-key", "k"]) == 1


@pytest.mark.parametrize(
    "flags",
    [["--host", "0.0.0.0"], ["--media-path", "/nowhere"], ["--max-queue", "0"], ["--port", "99999"], ["--hots"]],
)
def test_wrong_flags_are_usage_errors(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main_serve(flags)
    assert caught.value.code == 2 and flags[0] in capsys.readouterr().err
