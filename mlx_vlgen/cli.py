"""What the commands share: the choice of the model, what goes where, exit codes.

Exit codes: 0; 1 failed; 2 usage; 130 Ctrl-C. The answer goes to stdout and all else to stderr.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import __version__
from .errors import MediaError, UnreachableError, VlgenError, described
from .flags import COMMANDS, DEFAULT_MODEL, MODEL_VARIABLE, Parser, convert_parser, generate_parser, in_flags
from .notices import notice, on_terminal, progress_bar, reworded, tell
from .options import OPTIONS, divide
from .results import GenerationResult

TRACEBACK_VARIABLE = "MLX_VLGEN_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m mlx_vlgen` and `mlx-vlgen`: list the commands, or run one."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] == "generate":
        return main_generate(arguments[1:], program="mlx-vlgen generate")
    if arguments and arguments[0] == "convert":
        return main_convert(arguments[1:], program="mlx-vlgen convert")
    return guarded(lambda: list_commands(arguments))


def list_commands(arguments: Sequence[str]) -> int:
    listing = "\n".join(f"  {name:10} {help}" for name, help in COMMANDS.items())
    parser = Parser(
        prog="mlx-vlgen",
        usage="%(prog)s COMMAND [options]",
        description="Vision-language models on Apple silicon with MLX.",
        epilog=f"commands:\n{listing}\n\nmlx-vlgen COMMAND --help tells more of one.",
    )
    parser.add_argument("command", choices=COMMANDS, nargs="?", metavar="COMMAND", help="one of those below")
    parser.add_argument("--version", action="version", version=f"mlx-vlgen {__version__}")
    parser.parse(arguments)
    parser.print_help()
    return 0


def main_generate(arguments: Sequence[str] | None = None, program: str = "python -m mlx_vlgen.generate") -> int:
    """`python -m mlx_vlgen.generate` and `mlx-vlgen generate`."""
    return guarded(lambda: run_generate(generate_parser(program), arguments))


def main_convert(arguments: Sequence[str] | None = None, program: str = "python -m mlx_vlgen.convert") -> int:
    """`python -m mlx_vlgen.convert` and `mlx-vlgen convert`."""
    return guarded(lambda: run_convert(convert_parser(program), arguments))


def run_generate(parser: Parser, arguments: Sequence[str] | None) -> int:
    given = parser.parse(arguments)
    if given.prompt is None and not given.image and not given.video:
        parser.error("nothing to answer: give --image, --video or --prompt")
    if given.prompt == "" and not given.image and not given.video:
        parser.error("--prompt is empty")
    if [given.prompt, *given.image].count("-") > 1:
        parser.error("stdin can be read once: give only one - for --prompt and --image")
    keywords = {option.name: getattr(given, option.name) for option in OPTIONS if hasattr(given, option.name)}
    try:
        check_keywords(keywords)
    except ValueError as error:
        refuse(parser, error)
    if sys.stdout is None:
        raise VlgenError("stdout is closed: there is nowhere to write the answer")
    text = read_prompt(given)
    check_files([*given.image, *given.video])  # all this before a model is loaded
    content = [{"type": "image", "image": read_picture() if image == "-" else image} for image in given.image]
    content += [{"type": "video", "video": video} for video in given.video]

    from .generate import statistics, stream_generate

    model, processor = choose_model(given)
    messages = [{"role": "system", "content": given.system}] if given.system else []
    messages.append({"role": "user", "content": [*content, {"type": "text", "text": text}] if content else text})
    if given.verbose:
        tell(f"{'=' * 10}\nPrompt: {text}\n")
    bar = progress_bar("reading the prompt", "token")
    if bar is not None:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        keywords["prompt_progress_callback"] = progress
    screen, result = Screen(given.hide_thinking), None
    for result in stream_generate(model, processor, messages, **keywords):
        screen.show(result)
    screen.finish()
    if result is not None and result.finish_reason == "length" and not {"max_tokens", "max_time"} & set(keywords):
        notice(f"the answer was cut after {result.generation_tokens} tokens; --max-tokens allows more")
    if given.verbose and result is not None:
        tell(statistics(result))
    return 0


class Screen:
    """Where the parts of a stream go: the answer to stdout; what the model thinks before it to stderr, dim on a
    terminal, or nowhere."""

    def __init__(self, hide_thinking: bool):
        self._hide = hide_thinking
        dims = on_terminal() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        self._dim, self._plain = ("\033[2m", "\033[0m") if dims else ("", "")
        self._thought = self._said = 0  # characters that are out
        self._line_open = False  # on stderr

    def show(self, result: GenerationResult) -> None:
        thinking, answer = result.thinking or "", result.answer or ""
        if thinking[self._thought :] and not self._hide:
            tell(f"{self._dim}{thinking[self._thought :]}{self._plain}", end="")
            self._line_open = True
        self._thought = len(thinking)
        if len(answer) < self._said:  # it was none yet: the model thinks again
            self._said = 0
        if answer[self._said :]:
            self._end_thinking()
            print(answer[self._said :], end="", flush=True)
        self._said = len(answer)

    def finish(self) -> None:
        self._end_thinking()
        print(flush=True)

    def _end_thinking(self) -> None:
        if self._line_open:
            tell("")
        self._line_open = False


def run_convert(parser: Parser, arguments: Sequence[str] | None) -> int:
    given = vars(parser.parse(arguments))
    named = [given.pop(name) for name in ("given", "hf_path") if name in given]
    if len(named) != 1:
        parser.error("name one checkpoint to convert" if named else "no checkpoint is named")
    if given.get("dry_run") and "upload_repo" not in given:
        parser.error("--dry-run lists what --upload-repo would get, which is not given")

    from .convert import Plan, convert

    where = {name: given.pop(name) for name in ("mlx_path", "revision", "upload_repo", "dry_run") if name in given}
    try:
        Plan.of(**given)
    except ValueError as error:
        refuse(parser, error)
    convert(named[0], **where, **given)
    return 0


def refuse(parser: Parser, error: ValueError) -> None:
    """End with what is wrong with a flag's value; the message begins with its keyword."""
    parser.error(in_flags(re.sub(r"^\w+", lambda name: "--" + name[0].replace("_", "-"), str(error))))


def check_keywords(keywords: dict[str, Any]) -> None:
    """ValueError, whose message begins with the keyword's name, for values out of range."""
    from .engine.kv_settings import KVSettings
    from .engine.params import sampling_params

    given = divide(keywords)
    sampling_params(given["sampling"], {})
    KVSettings.of(given["kv"])


def read_prompt(given: argparse.Namespace) -> str:
    """The prompt's text, from stdin for "-"."""
    if given.prompt is None:
        return f"Describe this {'video' if given.video and not given.image else 'image'}."
    if given.prompt != "-":
        return str(given.prompt)
    if sys.stdin is None:
        raise ValueError("--prompt -: stdin is closed")
    if sys.stdin.isatty():
        notice("reading the prompt from the terminal; end with Ctrl-D")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are refused with the prompt
    text = sys.stdin.read().rstrip("\n")
    if not text:
        raise ValueError("--prompt -: nothing came from stdin")
    return text


def read_picture() -> io.BytesIO:
    """The picture that comes from stdin."""
    if sys.stdin is None:
        raise MediaError("--image -: stdin is closed")
    if sys.stdin.isatty():
        raise MediaError("--image -: stdin is the terminal; send the picture's file there: … --image - < photo.jpg")
    from .inputs.media import Limits, read_source

    picture = io.BytesIO(read_source(sys.stdin.buffer, Limits()))
    picture.name = "stdin"
    return picture


def check_files(sources: Sequence[str]) -> None:
    """MediaError for a file that is not there."""
    if not sources:
        return
    from .inputs.media import describe_source, is_local, local_path

    for source in sources:
        if source != "-" and is_local(source) and not os.path.exists(local_path(source)):  # noqa: PTH110  Path's raises for long names
            raise MediaError(f"{describe_source(source)}: no such file")


def choose_model(given: argparse.Namespace) -> tuple[Any, Any]:
    """The model that was named; or the default one, or in its absence the built-in one, with a notice."""
    from . import load
    from .demo import NOTICE

    name = given.model if given.model is not None else os.environ.get(MODEL_VARIABLE)
    options = {"adapter_path": given.adapter_path, "revision": given.revision, "dtype": given.dtype,
               "quantization": given.quantize}  # fmt: skip
    if name is not None and (name or given.model is not None):
        return load(name, **options)
    try:
        return load(DEFAULT_MODEL, **options)
    except UnreachableError as error:
        if given.no_fallback or given.adapter_path or given.revision or given.quantize:
            raise
        notice(f"the default model cannot be had: {error}")
        notice(NOTICE)
        return load("demo", dtype=given.dtype)


def guarded(run: Callable[[], int]) -> int:
    """Run a command; what goes wrong becomes a line on stderr and an exit code, never a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it tells that torch is missing
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the terminal cannot show must not end the answer
    with reworded(in_flags):
        try:
            try:
                return run()
            finally:
                flush_stdout()
        except KeyboardInterrupt:
            tell("")
            return 130
        except BrokenPipeError:  # the reader of our output has left, like `| head -1`
            return 1
        except Exception as error:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            known = isinstance(error, VlgenError | ValueError | TypeError)
            notice(f"error: {in_flags(described(error))}{'' if known else f' (set {TRACEBACK_VARIABLE}=1 for more)'}")
            return 1


def flush_stdout() -> None:
    """Write what is still held back. What cannot be written is thrown away: Python would try once more at its end, and
    complain in its own words."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
