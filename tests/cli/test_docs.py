"""The pages: README.md and docs/*.md. Every block runs as it stands, with the built-in model, or says why it does not.

A block of `sh` or `python` may follow a line `<!-- not run: why -->`. A block of `text` is what the block before it
prints. Where a page names a model on the Hub, the built-in one takes its place.
"""

import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from invariants.family import Family
from PIL import Image

import mlx_vlgen
from mlx_vlgen import cli, verify
from mlx_vlgen.convert import convert
from mlx_vlgen.demo import MODEL as DEMO
from mlx_vlgen.options import OPTIONS
from mlx_vlgen.session import Session, save_copy, talks_folder

from .conftest import Outcome

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HUB = re.compile(r"(?:mlx-community|Qwen)/[\w.-]+")
BLOCK = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?:^|\s+)# .*$", re.MULTILINE)
OPERATORS = {">", "<", "<<", "&&", ";", "&"}
COMMANDS: dict[str, Callable[..., int]] = {
    "generate": cli.main_generate,
    "chat": cli.main_chat,
    "batch": cli.main_batch,
    "convert": cli.main_convert,
    "serve": cli.main_serve,
    "verify": cli.main_verify,
    "plan": cli.main_plan,
}

QUICK = ("--max-tokens", "8", "--max-pixels", "2100")
"""What is added to jobs, whose answers are not compared here."""

Run = Callable[[str], str]


@dataclass(frozen=True)
class Block:
    reason: str  # why it is not run; "" for one that is
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*match.groups("")) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def shell_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command and its parts; one may have several lines, as a here-document has."""
    pending = ""
    for line in text.splitlines(keepends=True):
        pending += line
        head, here, rest = pending.partition("<<'")
        if here and line.strip() != rest.partition("'")[0]:  # a here-document that has not ended
            continue
        if pending.endswith("\\\n"):
            continue
        lexer = shlex.shlex(COMMENT.sub("", head + here[:2]).replace("\\\n", ""), posix=True, punctuation_chars=True)
        lexer.commenters, lexer.whitespace_split = "", True
        try:
            parts = list(lexer)
        except ValueError:  # a quotation that is still open
            continue
        if parts:
            yield pending, parts
        pending = ""
    assert not pending.strip(), pending


def split_at(parts: list[str], separator: str) -> list[list[str]]:
    ends = [i for i, part in enumerate(parts) if part == separator]
    return [parts[start:end] for start, end in zip([0, *(end + 1 for end in ends)], [*ends, len(parts)], strict=True)]


def command_of(parts: list[str]) -> tuple[Callable[..., int], list[str]] | None:
    """A function of `cli` and its arguments; None for what a shell must run."""
    if OPERATORS & set(parts):
        return None
    if parts[0] == "mlx-vlgen":
        return cli.main, parts[1:]
    if parts[:2] == ["python", "-m"] and (name := parts[2].removeprefix("mlx_vlgen.")) in COMMANDS:
        return COMMANDS[name], [*parts[3:], *(QUICK if name == "batch" else ())]
    return None


def draw_files(folder: Path) -> None:
    """What the pages' blocks name."""
    pictures = DEMO.parent / "pictures"
    for part in ("pictures", "sound/recordings"):
        shutil.copytree(DEMO.parent / part, folder / "mlx_vlgen/demo" / part)
    shutil.copytree(pictures, folder, dirs_exist_ok=True)
    (folder / "photos").mkdir()
    (folder / "scans").mkdir()
    for name, source in {
        "photo.jpg": "shapes", "a.jpg": "shapes", "b.jpg": "trio", "photos/beach.jpg": "shapes",
        "photos/hill.jpg": "trio", "scans/scan.pdf": "hello",
    }.items():  # fmt: skip
        Image.open(pictures / f"{source}.png").convert("RGB").resize((112, 112)).save(folder / name)
    with av.open(folder / "clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 112, 112, "yuv420p"
        for number in range(8):
            frame = np.full((112, 112, 3), 255, np.uint8)
            frame[40:70, 10 * number : 10 * number + 30] = (255, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    (folder / "products.csv").write_text("file,product\nphotos/beach.jpg,beach\n")
    (folder / "notes.txt").write_text("What can you do?")
    (folder / "schema.json").write_text('{"enum": ["circle", "square"]}')
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (folder / "requests.jsonl").write_text(json.dumps(line))


@pytest.fixture
def shell(
    invoke: Callable[..., Outcome],
    environment: dict[str, str],
    load_family: Callable[[str], Family],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run a block of sh in a folder with the files that pages name, and return what it prints: this package's commands
    in this process, with what comes out of a pipe before them, and all else in bash."""
    really_load = mlx_vlgen.load

    def load(name: str, **options: Any) -> tuple[Any, Any]:
        """The built-in model that all tests share, unless it is to be changed."""
        if name != "demo" or any(options.values()):
            return really_load(name, **options)
        demo = load_family("demo")
        return demo.model, demo.processor

    monkeypatch.setattr(mlx_vlgen, "load", load, raising=False)
    monkeypatch.setattr(verify, "STEPS", 4)  # its tests have 16
    for name, value in {
        "MLX_VLGEN_MODEL": "demo", "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    draw_files(tmp_path)
    save_copy(talks_folder() / "yesterday.jsonl", Session())

    def run(text: str) -> str:
        printed = ""
        for command, parts in shell_commands(text):
            *piped, last = split_at(parts, "|")
            ours = command_of(last)
            script = command.rpartition(" | ")[0] if ours else command
            bash = ["bash", "-eo", "pipefail", "-c", script]
            done = subprocess.run(bash, capture_output=True, check=False) if piped or not ours else None
            assert not done or done.returncode == 0, f"{command}{done.stderr.decode()}"
            out = done.stdout.decode(errors="replace") if done else ""
            if ours:
                stdin = io.BytesIO(done.stdout if done else b"")
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin, encoding="utf-8"))
                code, out, err = invoke(*ours[1], command=ours[0])
                assert code == 0, f"{command}{err}"
            printed += out
        return printed

    return run


@pytest.fixture
def python(shell: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a block of Python in this process, with the names that earlier blocks of its page have made."""
    names: dict[str, object] = {}

    def run(text: str) -> str:
        file = tmp_path / "block.py"
        file.write_text(text, encoding="utf-8")
        names.update(runpy.run_path(str(file), names))
        return capsys.readouterr().out

    return run


@pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="the built-in model is not there")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page: Path, shell: Run, python: Run) -> None:
    if page.stem == "convert":  # it converts checkpoints of a reader
        shutil.copytree(DEMO, "my-model")
        convert("demo", "my-model-4bit", quantize=True)
    printed = ""
    for block in blocks(page):
        text = HUB.sub("demo", block.text)
        if block.language in ("sh", "python") and not block.reason:
            printed = (shell if block.language == "sh" else python)(text)
        elif block.language == "text":
            assert block.text == printed
        elif block.language == "json":
            shown = json.loads(block.text)
            if page.stem != "batch":
                continue  # settings of another program
            row = json.loads(Path("captions.jsonl").read_text().splitlines()[0])
            assert list(shown) == list(row) and list(shown["usage"]) == list(row["usage"])
    if page.stem == "batch":
        assert Path("photos/beach.txt").read_text().startswith("a photo of photos, ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_blocks_that_are_known_here_and_links_that_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = blocks(page)
    assert text.count("```") == 2 * len(found)
    assert text.count("<!-- not run") == sum(bool(block.reason) for block in found)
    assert {block.language for block in found} <= {"sh", "python", "text", "json", "yaml", ""}
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        name, _, part = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE) if part else []
        assert not part or part in [title.lower().replace(" ", "-") for title in titles], link


def test_the_readme_links_every_page() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    assert not [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme]


def test_the_settings_are_all_keywords() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert not {option.name for option in OPTIONS} - set(re.findall(r"`(\w+)", page))


def test_flags_in_docs_are_flags(invoke: Callable[..., Outcome]) -> None:
    known = {"--peer", "--transformers", "--count"}  # of benchmarks
    known |= {"--system-prompt", "--tools", "--config"}  # of clients
    known |= {"--head", "--address", "--hostfile", "--limit", "--workflow", "--name"}  # of ray, mlx.launch and gh
    for command in (*COMMANDS.values(), cli.main_cache, cli.main_models, cli.main_pull, cli.main_rm):
        known |= set(re.findall(r"--[a-z][a-z-]*", invoke("--help", command=command)[1]))
    for page in PAGES[1:]:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text(encoding="utf-8")))
        assert named <= known, page.name


def test_a_block_that_fails_is_told(shell: Run, python: Run) -> None:
    with pytest.raises(AssertionError, match="no-such"):
        shell("python -m mlx_vlgen.generate --image no-such.jpg")
    with pytest.raises(AssertionError, match="no-such"):
        shell("cat no-such.jpg | cat")
    with pytest.raises(ZeroDivisionError):
        python("1 / 0")
    quoted = list(shell_commands("a 'b\nc'  # d\n\n# e\nf <<'END'\n'\nEND\ng | h#2\n"))
    assert [parts[:2] for _, parts in quoted] == [["a", "b\nc"], ["f", "<<"], ["g", "|"]]
