"""What the commands share: flags, the choice of the model, messages at a person, exit codes.

Exit codes: 0; 1 failed; 2 usage; 130 Ctrl-C. The answer goes to stdout and all else to stderr.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from . import __version__
from .errors import MediaError, UnreachableError, VlgenError
from .options import LATER, OPTIONS, Option, checkpoint, content, did_you_mean, divide, schema

DEFAULT_MODEL = "mlx-community/Qwen3-VL-2B-Instruct-4bit"
MODEL_VARIABLE = "MLX_VLGEN_MODEL"
TRACEBACK_VARIABLE = "MLX_VLGEN_TRACEBACK"

SHORT = {"temperature": ("--temp",), "choices": ("--choice",)}
"""Other names of flags."""

COMMANDS = {
    "generate": "answer one prompt about pictures, a video or text",
    "convert": "write a checkpoint for MLX, quantized or as it is",
}


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


class Parser(argparse.ArgumentParser):
    """Tells the nearest flag for an unknown one. Takes no abbreviated flags, which a new flag could make ambiguous."""

    def __init__(self, **keywords: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **keywords)

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(self._explain(unknown[0]))
        return given

    def _explain(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} belongs to no flag; put quotation marks around text of several words"
        flag = word.partition("=")[0]
        if flag.removeprefix("--").replace("-", "_") in LATER:
            return f"this version does not have {flag} yet"
        return f"unknown flag {flag}{did_you_mean(flag, self._option_string_actions)}"

    def error(self, message: str) -> NoReturn:
        if message.endswith(("expected one argument", "expected at least one argument")):
            message += " (write a value that begins with - as --flag=-value)"
        self.exit(2, f"{self.prog}: error: {message}\nTry: {self.prog} --help\n")


def generate_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s [--image IMAGE ...] [--video VIDEO ...] [--prompt TEXT] [--model MODEL] [options]",
        description="Answer one prompt about pictures, a video or text. The answer goes to stdout, all else to stderr.",
        epilog=f"The model is --model, else ${MODEL_VARIABLE}, else {DEFAULT_MODEL}.\n"
        "Where that last one is neither in the cache nor reachable, a small built-in model answers,\n"
        "which knows simple shapes and short print.\n\n"
        "exit codes: 0, 1 failed, 2 usage, 130 Ctrl-C",
    )
    what = parser.add_argument_group("what to answer")
    what.add_argument("--image", nargs="+", action="extend", default=[], metavar="IMAGE",
                      help="picture: path, http(s) URL, data: URI; may be repeated")  # fmt: skip
    what.add_argument("--video", nargs="+", action="extend", default=[], metavar="VIDEO",
                      help="video file, GIF, or folder of frames; may be repeated")  # fmt: skip
    what.add_argument("--prompt", "-p", metavar="TEXT",
                      help='what to answer; - reads it from stdin (default: "Describe this image.")')  # fmt: skip
    what.add_argument("--system", "--system-prompt", metavar="TEXT", help="system message")
    model = parser.add_argument_group("model")
    model.add_argument("--model", "-m", metavar="MODEL", help='folder, Hugging Face id, or "demo", which is built in')
    model.add_argument("--adapter-path", metavar="ADAPTER", help="folder or id of a LoRA adapter, mlx-lm's or PEFT's")
    model.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the Hub")
    model.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
                       help="of the weights (default: the checkpoint's; float32 on a CPU)")  # fmt: skip
    model.add_argument("--quantize", type=int, metavar="BITS", help="quantize a float checkpoint as it loads")
    add_options(parser.add_argument_group("settings"), OPTIONS)
    parser.add_argument("--verbose", action="store_true", help="print the prompt and statistics on stderr")
    parser.add_argument("--version", action="version", version=f"mlx-vlgen {__version__}")
    return parser


def add_options(group: Any, options: Sequence[Option]) -> None:
    """A flag for each keyword; left out of the result where it was not given."""
    for option in options:
        names = [option.flag, *SHORT.get(option.name, ())]
        if option.parse is None:
            group.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=option.help)
            continue
        words: Any = {int: "N", float: "X", str: "TEXT", schema: "FILE", content: "FILE", checkpoint: "MODEL"}
        metavar: Any = words.get(option.parse, "TOKEN")
        how: dict[str, Any] = {"type": option.parse, "default": argparse.SUPPRESS, "help": option.help}
        if option.many:
            how |= {"nargs": "+", "action": "extend"}
        elif option.words > 1:
            how["nargs"], metavar = option.words, ("HEIGHT", "WIDTH")
        group.add_argument(*names, metavar=metavar, **how)


def run_generate(parser: Parser, arguments: Sequence[str] | None) -> int:
    given = parser.parse(arguments)
    if given.prompt is None and not given.image and not given.video:
        parser.error("nothing to answer: give --image, --video or --prompt")
    if given.prompt == "" and not given.image and not given.video:
        parser.error("--prompt is empty")
    keywords = {option.name: getattr(given, option.name) for option in OPTIONS if hasattr(given, option.name)}
    try:
        check_keywords(keywords)
    except ValueError as error:
        parser.error(re.sub(r"^\w+", lambda name: "--" + name[0].replace("_", "-"), str(error)))
    text = read_prompt(given)
    check_files([*given.image, *given.video])  # all this before a model is loaded

    from .generate import statistics, stream_generate
    from .notices import notice

    model, processor = choose_model(given)
    content = [{"type": "image", "image": image} for image in given.image]
    content += [{"type": "video", "video": video} for video in given.video]
    messages = [{"role": "system", "content": given.system}] if given.system else []
    messages.append({"role": "user", "content": [*content, {"type": "text", "text": text}] if content else text})
    if given.verbose:
        print(f"{'=' * 10}\nPrompt: {text}\n", file=sys.stderr, flush=True)
    result = None
    if bar := progress_bar():
        keywords["prompt_progress_callback"] = bar
    for result in stream_generate(model, processor, messages, **keywords):
        print(result.text, end="", flush=True)
    print(flush=True)
    if result is not None and result.finish_reason == "length" and not {"max_tokens", "max_time"} & set(keywords):
        notice(f"the answer was cut after {result.generation_tokens} tokens; --max-tokens allows more")
    if given.verbose and result is not None:
        print(statistics(result), file=sys.stderr, flush=True)
    return 0


def convert_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s MODEL [--mlx-path FOLDER] [-q] [options]",
        description="Write a Hugging Face checkpoint as one for MLX. The new folder appears when it is whole.",
        epilog="exit codes: 0, 1 failed, 2 usage, 130 Ctrl-C",
        argument_default=argparse.SUPPRESS,
    )
    what = parser.add_argument_group("what to convert, and where to")
    what.add_argument("given", nargs="?", metavar="MODEL", help="folder or Hugging Face id")
    what.add_argument("--hf-path", "--model", metavar="MODEL", help="the same as a flag")
    what.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the Hub")
    what.add_argument("--mlx-path", metavar="FOLDER", help="new folder for the result (default: mlx_model)")
    weights = parser.add_argument_group("what is done to the weights")
    weights.add_argument("--quantize", "-q", action="store_true", help="quantize the text decoder")
    weights.add_argument("--q-bits", type=int, metavar="BITS", help="bits per weight (default: 4; mxfp8: 8)")
    weights.add_argument("--q-group-size", type=int, metavar="N",
                         help="weights that share a scale (default: 64; mxfp4, mxfp8: 32; nvfp4: 16)")  # fmt: skip
    weights.add_argument("--q-mode", choices=("affine", "mxfp4", "mxfp8", "nvfp4"), help="default: affine")
    weights.add_argument("--q-recipe", "--quant-predicate", metavar="RECIPE",
                         help="mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6: more bits where they matter")  # fmt: skip
    weights.add_argument("--quantize-vision", action="store_true", help="quantize what sees, too")
    weights.add_argument("--dequantize", "-d", action="store_true", help="make floats of a quantized checkpoint")
    weights.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                         help="of the floating-point weights (default: their own)")  # fmt: skip
    hub = parser.add_argument_group("the Hugging Face Hub")
    hub.add_argument("--upload-repo", metavar="ID", help="upload the result to this repository")
    hub.add_argument("--dry-run", action="store_true", help="list on stdout what would be uploaded, and do not upload")
    parser.add_argument("--version", action="version", version=f"mlx-vlgen {__version__}")
    return parser


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
        parser.error(re.sub(r"^\w+", lambda name: "--" + name[0].replace("_", "-"), str(error)))
    convert(named[0], **where, **given)
    return 0


def progress_bar() -> Callable[[int, int], None] | None:
    """How far the prompt is read, where a person waits for it at a terminal for more than a second."""
    if not sys.stderr.isatty():
        return None
    from huggingface_hub.utils import tqdm

    bar: Any = tqdm(desc="reading the prompt", unit=" tokens", leave=False, delay=1.0)

    def tell(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return tell


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
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are refused with the prompt
    text = sys.stdin.read().rstrip("\n")
    if not text:
        raise ValueError("--prompt -: nothing came from stdin")
    return text


def check_files(sources: Sequence[str]) -> None:
    """MediaError for a file that is not there."""
    if not sources:
        return
    from .inputs.media import describe_source, is_local, local_path

    for source in sources:
        if is_local(source) and not os.path.exists(local_path(source)):  # noqa: PTH110  Path's raises for long names
            raise MediaError(f"{describe_source(source)}: no such file")


def choose_model(given: argparse.Namespace) -> tuple[Any, Any]:
    """The model that was named; or the default one, or in its absence the built-in one, with a notice."""
    from . import load
    from .demo import NOTICE
    from .notices import notice

    name = given.model if given.model is not None else os.environ.get(MODEL_VARIABLE)
    options = {"adapter_path": given.adapter_path, "revision": given.revision, "dtype": given.dtype,
               "quantization": given.quantize}  # fmt: skip
    if name is not None and (name or given.model is not None):
        return load(name, **options)
    try:
        return load(DEFAULT_MODEL, **options)
    except UnreachableError:
        if given.adapter_path or given.revision or given.quantize:
            raise
        notice(NOTICE)
        return load("demo", dtype=given.dtype)


def guarded(run: Callable[[], int]) -> int:
    """Run a command; what goes wrong becomes a line on stderr and an exit code, never a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it tells that torch is missing
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the terminal cannot show must not end the answer
    try:
        try:
            return run()
        finally:
            flush_stdout()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        exec("")  # CPython notes an interrupt that it met in an exec, as in making a dataclass, and would die of it
        return 130
    except BrokenPipeError:  # the reader of our output has left, like `| head -1`
        return 1
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        known = isinstance(error, VlgenError | ValueError | TypeError)
        text = str(error) if known else f"{type(error).__name__}: {error} (set {TRACEBACK_VARIABLE}=1 for more)"
        print(f"mlx_vlgen: error: {text}", file=sys.stderr)
        return 1


def flush_stdout() -> None:
    """Write what is still held back. What cannot be written is thrown away: Python would try once more at its end, and
    complain in its own words."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
