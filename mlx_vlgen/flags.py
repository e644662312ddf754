"""The commands' flags, their --help, and messages that name flags in the place of keywords."""

import argparse
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from . import __version__
from .notices import print_wrapped
from .options import GROUPS, KINDS, OPTIONS, Option, did_you_mean

DEFAULT_MODEL = "mlx-community/Qwen3-VL-2B-Instruct-4bit"
MODEL_VARIABLE = "MLX_VLGEN_MODEL"

ALIASES = {"temperature": ("--temp",), "choices": ("--choice",)}
"""Other names of flags."""

COMMANDS = {
    "generate": "answer one prompt about pictures, a video, sound or text",
    "chat": "talk about pictures, a video, sound or text",
    "batch": "answer prompts about many pictures, into a file or into files beside them",
    "serve": "answer programs that speak OpenAI's or Anthropic's interface",
    "convert": "write a checkpoint for MLX, quantized or as it is",
    "models": "list the models that are here, and whether they fit the memory",
    "pull": "download a model",
    "rm": "delete a downloaded model",
    "verify": "compare a checkpoint's answers with transformers', and with each other",
    "plan": "say what of a model fits where, and how fast, on machines that are not here",
    "cache": "list or delete what chats computed and go on from",
}

EXAMPLES = """examples:
  {prog} --image photo.jpg
  {prog} --image before.png after.png --prompt "What changed?"
  {prog} --video clip.mp4 --video-fps 1 --prompt "What happens?" --max-tokens 500
  {prog} --image receipt.jpg --prompt "Total?" --json-schema '{{"type": "number"}}'
  git diff | {prog} --prompt - --system "Summarize." --temperature 0.7 --seed 1"""


class _HelpFormatter(argparse.HelpFormatter):
    """Leaves the line breaks in text that has some."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Suggests the nearest flag for an unknown one. Takes no abbreviated flags: a new flag could make one ambiguous.
    Has --version."""

    def __init__(self, **keywords: Any):
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **keywords)
        self.add_argument("--version", action="version", version=f"mlx-vlgen {__version__}")

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(self._explain(unknown[0]))
        return parsed

    def _explain(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"{argument!r} belongs to no flag; put quotation marks around text of several words"
        flag = argument.partition("=")[0]
        return f"unknown flag {flag}{did_you_mean(flag, self._option_string_actions)}"

    def error(self, message: str) -> NoReturn:
        if message.endswith(("expected one argument", "expected at least one argument")):
            message += " (write a value that begins with - as --flag=-value)"
        print_wrapped(f"{self.prog}: error: {message}\nTry: {self.prog} --help")
        self.exit(2)


def generate_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s [--image IMAGE ...] [--video VIDEO ...] [--audio AUDIO ...] [--prompt TEXT] [options]",
        description="Answer one prompt about pictures, a video, sound or text. "
        "The answer goes to stdout, all else to stderr.",
        epilog=f"{EXAMPLES.format(prog=program)}\n\n"
        f"The model is --model, else ${MODEL_VARIABLE}, else {DEFAULT_MODEL}.\n"
        "Where that last one is neither in the cache nor reachable, a small built-in model answers,\n"
        "which knows simple shapes and short print.\n\n"
        "exit codes: 0, 1 failed, 2 usage, 130 Ctrl-C",
    )
    inputs = parser.add_argument_group("what to answer")
    add_media_flags(
        inputs,
        image="picture: path, http(s) URL, data: URI, or - for stdin",
        video="video file, GIF, or folder of frames",
        audio="sound: path, http(s) URL or data: URI",
    )
    inputs.add_argument("--prompt", "-p", metavar="TEXT",
                      help='what to answer; - reads it from stdin (default: "Describe this image.")')  # fmt: skip
    inputs.add_argument("--system", "--system-prompt", metavar="TEXT", help="system message")
    inputs.add_argument("--boxes", metavar="OUT",
                      help="draw the boxes and points that the answer names on the first picture, into a new "
                      ".png, .jpg or .webp")  # fmt: skip
    add_model_flags(parser)
    add_rank_flags(parser)
    add_option_groups(parser)
    parser.add_argument("--verbose", action="store_true", help="print the prompt and statistics on stderr")
    return parser


def chat_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s [--model MODEL] [--image IMAGE ...] [--video VIDEO ...] [--audio AUDIO ...] [options]",
        description="Talk about pictures, a video, sound or text. /help lists what can be typed beside questions.",
        epilog="With stdin not a terminal, each line is a question, and each answer is a line on stdout, in which \\n\n"
        "stands for a line break.\n\n"
        f"The model is --model, else that of the talk that --resume goes on with, else ${MODEL_VARIABLE}, else\n"
        f"{DEFAULT_MODEL}, or the built-in one where that cannot be had.\n"
        "Answers are drawn as the model's generation_config.json says (--sampling model) and have\n"
        "at most 2048 tokens, unless flags or /set say otherwise.\n\n"
        "exit codes: 0, 1 failed (of a pipe: any question), 2 usage, 130 Ctrl-C",
    )
    inputs = parser.add_argument_group("the talk")
    add_media_flags(
        inputs,
        image="picture of the first question: path or URL",
        video="video of the first question",
        audio="sound of the first question",
    )
    inputs.add_argument("--system", "--system-prompt", metavar="TEXT", help="system message")
    inputs.add_argument("--resume", nargs="?", const="", metavar="FILE",
                        help="go on with the talk in this file; without a file, with the newest")  # fmt: skip
    inputs.add_argument("--no-reuse", action="store_true", help="compute the whole talk again at each question")
    inputs.add_argument("--json", action="store_true", help="with stdin not a terminal: each answer as a JSON object")
    add_model_flags(parser)
    add_rank_flags(parser)
    add_option_groups(parser)
    return parser


def add_media_flags(group: Any, **kinds: str) -> None:
    """kinds: the help of each kind's flag."""
    for kind, help in kinds.items():
        group.add_argument(f"--{kind}", nargs="+", action="extend", default=[], metavar=kind.upper(),
                           help=f"{help}; may be repeated")  # fmt: skip


def add_model_flags(parser: Parser, many: bool = False) -> None:
    model = parser.add_argument_group("model")
    names: dict[str, Any] = {"action": "append"} if many else {}
    repeated = "; may be repeated" if many else ""
    model.add_argument("--model", "-m", metavar="MODEL", **names,
                       help=f'folder, Hugging Face id, or a built-in "demo" or "demo-audio"{repeated}')  # fmt: skip
    model.add_argument("--adapter-path", metavar="ADAPTER", help="folder or id of a LoRA adapter, mlx-lm's or PEFT's")
    model.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the Hub")
    model.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
                       help="type of the weights (default: the checkpoint's; float32 on a CPU)")  # fmt: skip
    model.add_argument("--quantize", type=int, metavar="BITS", help="quantize a float checkpoint as it loads")
    model.add_argument("--no-fallback", action="store_true",
                       help="fail where the default model cannot be loaded; do not use the built-in one")  # fmt: skip


def at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text}: expected a number, at least {least}")
    return int(text)


def add_rank_flags(parser: Parser) -> None:
    group = parser.add_argument_group("several ranks")
    group.add_argument("--shard", choices=("tensor", "pipeline"),
                       help="each rank has a part of each text layer (tensor, the default), or some layers whole "
                       "(pipeline); without --ranks and --hosts this is one of mlx.launch's ranks")  # fmt: skip
    where = group.add_mutually_exclusive_group()
    where.add_argument("--hosts", metavar="HOSTS",
                       help="addresses by commas, or mlx.launch's hostfile (.json): start a rank on each")  # fmt: skip
    where.add_argument("--ranks", type=partial(at_least, 2), metavar="N", help="start N ranks on this machine")


def add_option_groups(parser: Parser, hides_thinking: bool = True) -> None:
    """A flag for each keyword, and --hide-thinking where there is thinking to hide."""
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        add_options(group, options)
        if title == "thinking" and hides_thinking:
            group.add_argument("--hide-thinking", action="store_true",
                               help="do not print thinking on stderr (it never goes to stdout)")  # fmt: skip


def add_options(group: Any, options: Sequence[Option]) -> None:
    """Add a flag for each keyword. One that is not used leaves no attribute."""
    for option in options:
        names = [option.flag, *ALIASES.get(option.name, ())]
        if option.parse is None:
            group.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=option.help)
            continue
        metavar: Any = KINDS[option.parse].metavar
        settings: dict[str, Any] = {"type": option.parse, "default": argparse.SUPPRESS, "help": option.help}
        if option.many:
            settings |= {"nargs": "+", "action": "extend"}
        elif option.nargs > 1:
            settings["nargs"], metavar = option.nargs, ("HEIGHT", "WIDTH")
        group.add_argument(*names, metavar=metavar, **settings)


BATCH_EXAMPLES = """examples:
  {prog} photos -o captions.jsonl
  {prog} photos -o photos --caption-prefix "{{folder}}, "         # photos/a.txt beside photos/a.jpg
  {prog} products.csv -o answers.csv --prompt "Is this a {{product}}?" --choices yes no
  {prog} "scans/**/*.pdf" -o pages.parquet --prompt "Transcribe this page." --max-tokens 1000
  {prog} requests.jsonl -o results.jsonl                        # OpenAI's batch lines, too"""


def batch_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s INPUT [INPUT ...] -o OUT [--prompt TEXT ...] [--model MODEL] [options]",
        description="Answer prompts about many pictures. What is finished is in OUT.journal.jsonl at once: the same "
        "command goes on after any end.",
        epilog=f"{BATCH_EXAMPLES.format(prog=program)}\n\n"
        "exit codes: 0, 1 failed or some rows did, 2 usage, 130 Ctrl-C",
    )
    files = parser.add_argument_group("what to answer, and where to")
    files.add_argument("input", nargs="+", metavar="INPUT",
                       help="folder, picture, video, sound, PDF (a.pdf#2-5), pattern, list (.txt, - for stdin), "
                       ".csv, .tsv, .jsonl or .parquet")  # fmt: skip
    files.add_argument("--output", "-o", required=True, metavar="OUT",
                       help="file in .jsonl, .csv or .parquet, or a folder for a text file a picture")  # fmt: skip
    files.add_argument("--prompt", "-p", action="append", default=[], metavar="TEXT",
                       help="what to answer, with {column} of a table; may be repeated for several rows a picture "
                       '(default: "Describe this image.")')  # fmt: skip
    files.add_argument("--system", "--system-prompt", metavar="TEXT", help="system message")
    files.add_argument("--image-column", default="image", metavar="NAME",
                       help="column of a table that names the pictures (default: image)")  # fmt: skip
    files.add_argument("--sidecar", choices=("skip", "overwrite", "append", "prepend"),
                       help="what to do where a picture's text file is there (default: skip the picture)")  # fmt: skip
    files.add_argument("--caption", metavar="TEMPLATE",
                       help="what a text file gets, with {name}, {folder} and {text} (default: {text})")  # fmt: skip
    files.add_argument("--caption-prefix", metavar="TEMPLATE", help="what comes before it")
    again = parser.add_argument_group("going on")
    choice = again.add_mutually_exclusive_group()
    choice.add_argument("--resume", action="store_true", help="go on where the job was (the default)")
    choice.add_argument("--restart", action="store_true", help="forget what is finished, and answer all rows again")
    again.add_argument("--retry-failed", action="store_true", help="ask failed rows again")
    again.add_argument("--retry-changed", action="store_true",
                       help="ask rows again whose request or file has changed since")  # fmt: skip
    again.add_argument("--allow-errors", action="store_true", help="exit with 0 though rows failed")
    add_model_flags(parser)
    add_rank_flags(parser)
    add_option_groups(parser, hides_thinking=False)
    machines = parser.add_argument_group("many machines, each with the model")
    machines.add_argument("--ray", nargs="?", const="", metavar="ADDRESS",
                          help="answer by actors of the Ray cluster there; without ADDRESS of $RAY_ADDRESS, or of Ray "
                          "started here")  # fmt: skip
    machines.add_argument("--actors", type=partial(at_least, 1), metavar="N", help="how many (default 1)")
    machines.add_argument("--data-parallel", action="store_true",
                          help="this is one of mlx.launch's ranks: answer a part of the rows; OUT and INPUT lie in a "
                          "folder that all machines share")  # fmt: skip
    batch = parser.add_argument_group("the batch")
    batch.add_argument("--max-batch-size", type=int, default=32, metavar="N",
                       help="rows that run together (default 32)")  # fmt: skip
    batch.add_argument("--no-reuse", action="store_true", help="do not share what rows begin alike with")
    return parser


def serve_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s [--model MODEL ...] [--host ADDRESS] [--port PORT] [options]",
        description="Answer programs that speak OpenAI's or Anthropic's interface, on this machine only unless told "
        "otherwise.",
        epilog=f"The first model is loaded at once, others when they are asked for. The model is --model, else\n"
        f"${MODEL_VARIABLE}, else {DEFAULT_MODEL}, or the built-in one\nwhere that cannot be had.\n\n"
        "exit codes: 0 after SIGTERM, 1 failed, 2 usage, 130 Ctrl-C; both signals let running answers end",
    )
    where = parser.add_argument_group("where, and for whom")
    where.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                       help="address to listen on; one that others reach needs a key (default: 127.0.0.1)")  # fmt: skip
    where.add_argument(
        "--port", type=int, default=8080, metavar="PORT", help="0 takes any that is free (default: 8080)"
    )
    key = where.add_mutually_exclusive_group()
    key.add_argument("--api-key", metavar="KEY",
                     help="what clients must show; better in a file or in $MLX_VLGEN_API_KEY")  # fmt: skip
    key.add_argument("--api-key-file", metavar="FILE", help="file that holds the key")
    where.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN",
                       help="web pages of https://… that may ask from a browser; may be repeated")  # fmt: skip
    where.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                       help="another name that this server is reached by; may be repeated")  # fmt: skip
    where.add_argument("--media-path", metavar="DIR", help="messages may name files below this folder")
    add_model_flags(parser, many=True)
    add_rank_flags(parser)
    bounds = parser.add_argument_group("bounds")
    bounds.add_argument("--max-batch-size", type=int, default=32, metavar="N",
                        help="answers that run together (default: 32)")  # fmt: skip
    bounds.add_argument("--max-queue", type=int, default=64, metavar="N",
                        help="requests that wait; others are told to come again (default: 64)")  # fmt: skip
    bounds.add_argument("--max-tokens", type=int, metavar="N",
                        help="tokens of an answer (default: what the model has room for)")  # fmt: skip
    bounds.add_argument("--timeout", type=float, default=600, metavar="SECONDS",
                        help="that a request may take in all (default: 600)")  # fmt: skip
    bounds.add_argument("--max-body", type=int, default=64, metavar="MB", help="of one request (default: 64)")
    more = parser.add_argument_group("more")
    more.add_argument("--no-reuse", action="store_true",
                      help="compute each request anew, and leave nothing of it on disk")  # fmt: skip
    more.add_argument("--lenient", action="store_true", help="log fields that are not known, and do not refuse them")
    more.add_argument("--launchd", action="store_true",
                      help="print a property list by which macOS starts this server at login")  # fmt: skip
    more.add_argument("--log-prompts", action="store_true", help="log what is asked, too")
    return parser


def convert_parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage="%(prog)s MODEL [--mlx-path FOLDER] [-q] [options]",
        description="Write a Hugging Face checkpoint as one for MLX. The new folder appears when it is whole.",
        epilog="exit codes: 0, 1 failed, 2 usage, 130 Ctrl-C",
        argument_default=argparse.SUPPRESS,
    )
    inputs = parser.add_argument_group("what to convert, and where to")
    inputs.add_argument("checkpoint", nargs="?", metavar="MODEL", help="folder or Hugging Face id")
    inputs.add_argument("--hf-path", "--model", metavar="MODEL", help="the same as a flag")
    inputs.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the Hub")
    inputs.add_argument("--mlx-path", metavar="FOLDER", help="new folder for the result (default: mlx_model)")
    weights = parser.add_argument_group("what is done to the weights")
    weights.add_argument("--quantize", "-q", action="store_true", help="quantize the text decoder")
    weights.add_argument("--q-bits", type=int, metavar="BITS", help="bits per weight (default: 4; mxfp8: 8)")
    weights.add_argument("--q-group-size", type=int, metavar="N",
                         help="weights that share a scale (default: 64; mxfp4, mxfp8: 32; nvfp4: 16)")  # fmt: skip
    weights.add_argument("--q-mode", choices=("affine", "mxfp4", "mxfp8", "nvfp4"),
                         help="format of quantized weights (default: affine)")  # fmt: skip
    weights.add_argument("--q-recipe", "--quant-predicate", metavar="RECIPE",
                         help="mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6: more bits where they matter")  # fmt: skip
    weights.add_argument("--quantize-vision", action="store_true", help="quantize the vision tower and projector, too")
    weights.add_argument("--dequantize", "-d", action="store_true", help="make floats of a quantized checkpoint")
    weights.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                         help="type of floating-point weights (default: the checkpoint's)")  # fmt: skip
    hub = parser.add_argument_group("the Hugging Face Hub")
    hub.add_argument("--upload-repo", metavar="ID", help="upload the result to this repository")
    hub.add_argument("--dry-run", action="store_true", help="list on stdout what would be uploaded, and do not upload")
    return parser


# In messages

_FLAGS = {option.name: option.flag for option in OPTIONS}
_FLAGS |= {"images": "--image", "videos": "--video", "audios": "--audio", "quantization": "--quantize"}
_OF_GENERATE = "image video audio prompt adapter_path revision dtype"
_OF_CONVERT = "hf_path mlx_path upload_repo q_bits q_group_size q_mode q_recipe quantize_vision"
_FLAGS |= {name: "--" + name.replace("_", "-") for name in f"{_OF_GENERATE} {_OF_CONVERT}".split()}
_PYTHON_ONLY = (
    (r" or (pass|raise) Limits[.(]\w+(=\w+\))?|,? or None( for [\w ]+)?| \((Limits|PIL)\.[\w.]+\)", ""),
    (r', or in a list for a video of one frame|, or {"bits"[^}]*}', ""),
    (r" \((on the command line )?--[\w -]+\)", ""),  # what is said for both
    (r"=\(height, width\)", " HEIGHT WIDTH"),
    (r'=\{"bits": (\d)\}', r"=\1"),
)
"""Parts of messages that only a Python caller can use, and what the command line says there."""

_ANY, _SETTING, _LONG = (
    "|".join(sorted(names, key=len, reverse=True))
    for names in (_FLAGS, (option.name for option in OPTIONS), (name for name in _FLAGS if "_" in name))
)
_KEYWORD = re.compile(
    r"(?<![\w./?&\"'`-])"  # never inside a path, a URL, a quotation or another name
    rf"(?:({_LONG})(?![\w/-]|\.\w)|({_ANY})(?==)|^({_SETTING})(?=:))"
    r"(?:=…|=(?=[\s,.;:)]|$))?"  # without its =, where no value follows
)


def keywords_to_flags(message: str) -> str:
    """A message that was written for Python callers, for the command line: with flags, and without names of code."""
    for pattern, replacement in _PYTHON_ONLY:
        message = re.sub(pattern, replacement, message)
    return _KEYWORD.sub(lambda match: _FLAGS[match[1] or match[2] or match[3]], message)
