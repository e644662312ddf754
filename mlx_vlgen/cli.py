"""What the commands share: flags, the choice of the model, messages at a person, exit codes.

Exit codes: 0; 1 failed; 2 usage; 130 Ctrl-C. The answer goes to stdout and all else to stderr.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import __version__
from .errors import UnreachableError, VlgenError
from .options import ENGINE, MEDIA, OPTIONS, SAMPLING, Option

DEFAULT_MODEL = "mlx-community/Qwen3-VL-2B-Instruct-4bit"
MODEL_VARIABLE = "MLX_VLGEN_MODEL"
TRACEBACK_VARIABLE = "MLX_VLGEN_TRACEBACK"

COMMANDS = {"generate": "answer one prompt about pictures, a video or text"}


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m mlx_vlgen` and `mlx-vlgen`: list the commands, or run one."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] == "generate":
        return main_generate(arguments[1:], program="mlx-vlgen generate")
    listing = "\n".join(f"  {name:10} {help}" for name, help in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="mlx-vlgen",
        description="Vision-language models on Apple silicon with MLX.",
        epilog=f"commands:\n{listing}\n\nmlx-vlgen COMMAND --help tells more of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, nargs="?", metavar="COMMAND")
    parser.add_argument("--version", action="version", version=f"mlx-vlgen {__version__}")
    parser.parse_args(arguments)
    parser.print_help()
    return 0


def main_generate(arguments: Sequence[str] | None = None, program: str = "python -m mlx_vlgen.generate") -> int:
    parser = generate_parser(program)
    given = parser.parse_args(arguments)
    if given.prompt is None and not given.image and not given.video:
        parser.error("nothing to answer: give --image, --video or --prompt")
    return guarded(lambda: run_generate(given))


def generate_parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Answer one prompt about pictures, a video or text. The answer goes to stdout, all else to stderr.",
        epilog=f"The model is --model, else ${MODEL_VARIABLE}, else {DEFAULT_MODEL}; where that last one is neither in "
        "the cache nor reachable, a small built-in model answers, which knows simple shapes and short print. "
        "Exit codes: 0, 1 failed, 2 usage, 130 Ctrl-C.",
    )
    what = parser.add_argument_group("what to answer")
    what.add_argument("--image", nargs="+", action="extend", default=[], metavar="IMAGE",
                      help="picture: path, http(s) URL, data: URI; may be repeated")  # fmt: skip
    what.add_argument("--video", nargs="+", action="extend", default=[], metavar="VIDEO",
                      help="video file, GIF, or folder of frames; may be repeated")  # fmt: skip
    what.add_argument("--prompt", "-p", help='text, or - to read it from stdin (default: "Describe this image.")')
    what.add_argument("--system", "--system-prompt", help="system message")
    model = parser.add_argument_group("model")
    model.add_argument("--model", "-m", metavar="PATH_OR_ID", help='folder, Hugging Face id, or "demo"')
    model.add_argument("--adapter-path", metavar="PATH_OR_ID", help="LoRA adapter, mlx-lm's or PEFT's")
    model.add_argument("--revision", help="branch, tag or commit on the Hub")
    model.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="of the weights")
    model.add_argument("--quantize", type=int, metavar="BITS", help="quantize a float checkpoint as it loads")
    settings = parser.add_argument_group("settings")
    add_options(settings, OPTIONS)
    parser.add_argument("--verbose", action="store_true", help="print the prompt and statistics on stderr")
    parser.add_argument("--version", action="version", version=f"mlx-vlgen {__version__}")
    return parser


def add_options(group: Any, options: Sequence[Option]) -> None:
    """A flag for each keyword; left out of the result where it was not given."""
    for option in options:
        names = [option.flag] + ["--temp"] * (option.name == "temperature")
        if option.parse is None:
            group.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=option.help)
            continue
        how: dict[str, Any] = {"type": option.parse, "default": argparse.SUPPRESS, "help": option.help}
        if option.many:
            how |= {"nargs": "+", "action": "extend"}
        elif option.words > 1:
            how |= {"nargs": option.words, "metavar": ("HEIGHT", "WIDTH")}
        group.add_argument(*names, **how)


def run_generate(given: argparse.Namespace) -> int:
    from .generate import statistics, stream_generate

    about = "this video" if given.video and not given.image else "this image"
    text = sys.stdin.read().strip() if given.prompt == "-" else given.prompt or f"Describe {about}."
    keywords = {option.name: getattr(given, option.name) for option in OPTIONS if hasattr(given, option.name)}
    check_keywords(keywords)  # before a model is loaded
    model, processor = choose_model(given)
    content = [{"type": "image", "image": image} for image in given.image]
    content += [{"type": "video", "video": video} for video in given.video]
    messages = [{"role": "system", "content": given.system}] if given.system else []
    messages.append({"role": "user", "content": [*content, {"type": "text", "text": text}] if content else text})
    if given.verbose:
        print(f"{'=' * 10}\nPrompt: {text}\n", file=sys.stderr, flush=True)
    result = None
    for result in stream_generate(model, processor, messages, **keywords):
        sys.stdout.write(result.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if given.verbose and result is not None:
        print(statistics(result), file=sys.stderr, flush=True)
    return 0


def check_keywords(keywords: dict[str, Any]) -> None:
    """ValueError for values out of range."""
    from .engine.request import SamplingParams

    SamplingParams(**{option.name: keywords[option.name] for option in SAMPLING if option.name in keywords})
    for option in (*MEDIA, *ENGINE):
        value = keywords.get(option.name)
        if value is not None and (min(value) if isinstance(value, list) else value) <= 0:
            raise ValueError(f"{option.flag} {value}: expected more than 0")


def choose_model(given: argparse.Namespace) -> tuple[Any, Any]:
    """The model that was named; or the default one, or in its absence the built-in one, with a notice."""
    from . import load
    from .demo import NOTICE
    from .notices import notice

    name = given.model or os.environ.get(MODEL_VARIABLE)
    options = {"adapter_path": given.adapter_path, "revision": given.revision, "dtype": given.dtype,
               "quantization": given.quantize}  # fmt: skip
    if name:
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
    try:
        return run()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, like `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        known = isinstance(error, VlgenError | ValueError | TypeError)
        text = str(error) if known else f"{type(error).__name__}: {error} (set {TRACEBACK_VARIABLE}=1 for more)"
        print(f"mlx_vlgen: error: {text}", file=sys.stderr)
        return 1

