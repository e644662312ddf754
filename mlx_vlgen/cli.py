"""The commands: from parsed flags to a call, to stdout and stderr, to an exit code.

Exit codes: 0; 1 failed; 2 usage; 130 Ctrl-C. The answer goes to stdout and all else to stderr.
"""

import argparse
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from . import __version__
from .errors import MediaError, UnreachableError, VlgenError, one_line
from .flags import (
    COMMANDS,
    DEFAULT_MODEL,
    MODEL_VARIABLE,
    Parser,
    batch_parser,
    chat_parser,
    convert_parser,
    generate_parser,
    keywords_to_flags,
    serve_parser,
)
from .inputs.kinds import KINDS
from .model_flags import cache_parser, models_parser, plan_parser, pull_parser, rm_parser, verify_parser
from .notices import PromptBar, notice, print_stderr, rewriting_notices
from .options import OPTIONS, group_keywords
from .screens import Screen

LoadModel = Callable[[argparse.Namespace], tuple[Any, Any]]

TRACEBACK_VARIABLE = "MLX_VLGEN_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m mlx_vlgen` and `mlx-vlgen`: list the commands, or run one."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    commands = {"generate": main_generate, "chat": main_chat, "batch": main_batch, "serve": main_serve,
                "convert": main_convert, "models": main_models, "pull": main_pull, "rm": main_rm,
                "verify": main_verify, "plan": main_plan, "cache": main_cache}  # fmt: skip
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](arguments[1:], program=f"mlx-vlgen {arguments[0]}")
    return exit_code_of(lambda: list_commands(arguments))


def list_commands(arguments: Sequence[str]) -> int:
    listing = "\n".join(f"  {name:10} {help}" for name, help in COMMANDS.items())
    parser = Parser(
        prog="mlx-vlgen",
        usage="%(prog)s COMMAND [options]",
        description="Vision-language models on Apple silicon with MLX.",
        epilog=f"commands:\n{listing}\n\nmlx-vlgen COMMAND --help lists its flags.",
    )
    parser.add_argument("command", choices=COMMANDS, nargs="?", metavar="COMMAND", help="one of those below")
    parser.add_argument("--version", action="version", version=f"mlx-vlgen {__version__}")
    parser.parse(arguments)
    parser.print_help()
    return 0


def _command(program: str, parser: Callable[[str], Parser], run: str) -> Callable[..., int]:
    """A command: its arguments, by default the process's, to its exit code. run: "module:function" of this package."""

    def main(arguments: Sequence[str] | None = None, program: str = program) -> int:
        module, _, function = run.partition(":")
        return exit_code_of(
            lambda: getattr(import_module(f"{__package__}.{module}"), function)(parser(program), arguments)
        )

    return main


main_generate = _command("python -m mlx_vlgen.generate", generate_parser, "cli:run_generate")
main_chat = _command("python -m mlx_vlgen.chat", chat_parser, "chat:run_chat")
main_batch = _command("python -m mlx_vlgen.batch", batch_parser, "cli:run_batch")
main_serve = _command("python -m mlx_vlgen.serve", serve_parser, "cli:run_serve")
main_convert = _command("python -m mlx_vlgen.convert", convert_parser, "cli:run_convert")
main_models = _command("mlx-vlgen models", models_parser, "library:run_models")
main_pull = _command("mlx-vlgen pull", pull_parser, "library:run_pull")
main_rm = _command("mlx-vlgen rm", rm_parser, "library:run_rm")
main_verify = _command("python -m mlx_vlgen.verify", verify_parser, "verify:run_verify")
main_plan = _command("python -m mlx_vlgen.plan", plan_parser, "plan.command:run_plan")
main_cache = _command("mlx-vlgen cache", cache_parser, "cli:run_cache")


def run_cache(parser: Parser, arguments: Sequence[str] | None) -> int:
    from .engine.disk import Disk, default_folder

    args = parser.parse(arguments)
    folder = Path(args.folder).expanduser() if args.folder else default_folder()
    if not folder.is_dir():
        print(f"{folder}: nothing there yet")
        return 0
    disk = Disk(folder)
    files = disk.files()
    size = f"{len(files):,} files, {sum(size for _, size, _ in files) / 1e9:.3f} GB"
    if args.clear:
        disk.clear()
        print(f"{folder}: {size} deleted")
    else:
        used = f", last used {datetime.fromtimestamp(files[-1][0] / 1e9):%Y-%m-%d %H:%M}" if files else ""
        print(f"{folder}: {size}{used}")
    return 0


def run_generate(parser: Parser, arguments: Sequence[str] | None) -> int:
    args = parser.parse(arguments)
    keywords = given_keywords(args)
    check_usage(parser, args, keywords)
    if sys.stdout is None:
        raise VlgenError("stdout is closed: there is nowhere to write the answer")
    if args.shard or args.ranks is not None:
        from .distributed.command import run_ranks

        respond = partial(answer, args, keywords)
        return run_ranks("mlx_vlgen.generate", args, arguments, respond, load_model)
    return answer(args, keywords, load_model)


def answer(args: argparse.Namespace, keywords: dict[str, Any], load_model: LoadModel) -> int:
    """Print the answer to what the flags ask."""
    text = read_prompt(args)
    check_files([*args.image, *args.video, *args.audio])
    messages = make_messages(args, text)
    picture = load_first_picture(messages) if args.boxes else None

    from .generate import statistics, stream_generate

    model, processor = load_model(args)
    if args.verbose:
        print_stderr(f"{'=' * 10}\nPrompt: {text}\n")
    screen, result = Screen(args.hide_thinking), None
    with closing(PromptBar()) as bar:
        for result in stream_generate(model, processor, messages, **keywords, prompt_progress_callback=bar.update):
            screen.show(result)
    screen.finish()
    if result is not None and result.finish_reason == "length" and not {"max_tokens", "max_time"} & set(keywords):
        notice(f"the answer was cut after {result.generation_tokens} tokens; --max-tokens allows more")
    if args.verbose and result is not None:
        print_stderr(statistics(result))
    if picture is not None:
        write_boxes(args.boxes, picture, model, processor, (result and result.answer) or "", keywords)
    return 0


def given_keywords(args: argparse.Namespace) -> dict[str, Any]:
    return {option.name: getattr(args, option.name) for option in OPTIONS if hasattr(args, option.name)}


def check_usage(parser: Parser, args: argparse.Namespace, keywords: dict[str, Any]) -> None:
    """Exit with what is wrong with the flags."""
    media = [*args.image, *args.video, *args.audio]
    if args.prompt is None and not media:
        parser.error("nothing to answer: give --image, --video or --prompt, or --audio where the model hears")
    if args.prompt == "" and not media:
        parser.error("--prompt is empty")
    if [args.prompt, *args.image].count("-") > 1:
        parser.error("stdin can be read once: give only one - for --prompt and --image")
    if args.boxes is not None:
        out = Path(args.boxes)
        if not args.image:
            parser.error("--boxes draws on a picture: give --image")
        if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp") or not out.parent.is_dir():
            parser.error(f"--boxes {out}: expected a file in .png, .jpg or .webp, in a folder that is there")
        if out.exists() and any(is_same_file(out, image) for image in args.image):
            parser.error(f"--boxes {out}: that is the picture itself; give a new file")
    try:
        check_keywords(keywords)
    except ValueError as error:
        usage_error(parser, error)


def is_same_file(out: Path, source: str) -> bool:
    from .inputs.media import is_local, local_path

    with suppress(OSError, ValueError):
        return source != "-" and is_local(source) and out.samefile(local_path(source))
    return False


def make_messages(args: argparse.Namespace, text: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for image in args.image:
        content.append({"type": "image", "image": read_image_from_stdin() if image == "-" else image})
    content += [{"type": kind, kind: source} for kind in ("video", "audio") for source in getattr(args, kind)]
    messages: list[dict[str, Any]] = [{"role": "system", "content": args.system}] if args.system else []
    messages.append({"role": "user", "content": [*content, {"type": "text", "text": text}] if content else text})
    return messages


def load_first_picture(messages: list[dict[str, Any]]) -> Any:
    """The first picture, a PIL image, which takes its source's place: stdin and URLs are read once."""
    from .inputs.media import load_image

    part = messages[-1]["content"][0]
    part["image"] = load_image(part["image"])
    return part["image"]


def write_boxes(
    out: str, picture: Any, model: Any, processor: Any, answer: str, keywords: dict[str, Any]
) -> None:  # fmt: skip
    """Write the picture with what the answer names on it. Without any it is written as it is: a file that an earlier
    run left must not pass for this answer's."""
    from .grounding import draw, for_model
    from .inputs.prompt import MediaInputs

    sizes = {name: keywords[name] for name in ("resize_shape", "min_pixels", "max_pixels") if name in keywords}
    marks = for_model(model, processor, MediaInputs(**sizes))(answer, picture.size)
    draw(picture, marks).save(out)
    counts = Counter(type(mark).__name__.lower() for mark in marks)
    many = {"box": "boxes", "point": "points", "polygon": "polygons"}
    found = ", ".join(f"{count} {name if count == 1 else many[name]}" for name, count in counts.items())
    notice(
        f"{out}: {found} drawn" if found else f"{out}: the answer names no box or point; this is the picture as it is"
    )


def run_batch(parser: Parser, arguments: Sequence[str] | None) -> int:
    args = parser.parse(arguments)
    keywords = given_keywords(args)
    if args.max_batch_size < 1:
        parser.error(f"--max-batch-size {args.max_batch_size}: expected at least 1")
    if args.input.count("-") > 1:
        parser.error("stdin can be read once: give only one -")
    try:
        check_keywords(keywords)
    except ValueError as error:
        usage_error(parser, error)

    from .batch.command import run

    if args.shard or args.ranks is not None:
        from .distributed.command import run_ranks

        def respond(load_part: LoadModel) -> int:
            return run(args, keywords, lambda: load_part(args))

        return run_ranks("mlx_vlgen.batch", args, arguments, respond, load_model)
    return run(args, keywords, lambda: load_model(args))


def run_serve(parser: Parser, arguments: Sequence[str] | None) -> int:
    args = parser.parse(arguments)

    from .serve import launchd_plist, serve, settings_of

    try:
        settings = settings_of(args)
    except ValueError as error:
        usage_error(parser, error)
    if args.launchd:
        print(launchd_plist(args, sys.argv[1:] if arguments is None else arguments), end="")
        return 0
    return serve(args, settings, load_model)


def run_convert(parser: Parser, arguments: Sequence[str] | None) -> int:
    args = vars(parser.parse(arguments))
    checkpoints = [args.pop(name) for name in ("checkpoint", "hf_path") if name in args]
    if len(checkpoints) != 1:
        parser.error("name one checkpoint to convert" if checkpoints else "no checkpoint is named")
    if args.get("dry_run") and "upload_repo" not in args:
        parser.error("--dry-run lists what --upload-repo would get, which is not given")

    from .convert import Plan, convert

    destination = {name: args.pop(name) for name in ("mlx_path", "revision", "upload_repo", "dry_run") if name in args}
    try:
        Plan.of(**args)
    except ValueError as error:
        usage_error(parser, error)
    convert(checkpoints[0], **destination, **args)
    return 0


def usage_error(parser: Parser, error: ValueError) -> None:
    """Exit with what is wrong with a flag's value. The message begins with the keyword's name."""
    parser.error(keywords_to_flags(re.sub(r"^\w+", lambda name: "--" + name[0].replace("_", "-"), str(error))))


def check_keywords(keywords: dict[str, Any]) -> None:
    """ValueError for a value out of range; the message begins with the keyword's name."""
    from .engine.kv_settings import KVSettings
    from .engine.params import sampling_params

    groups = group_keywords(keywords)
    sampling_params(groups["sampling"], {})
    KVSettings.of(groups["kv"])


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt's text; "-" reads it from stdin."""
    if args.prompt is None:
        return f"Describe this {next((kind for kind in KINDS if getattr(args, kind)), 'image')}."
    if args.prompt != "-":
        return str(args.prompt)
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


def read_image_from_stdin() -> io.BytesIO:
    """The picture on stdin."""
    if sys.stdin is None:
        raise MediaError("--image -: stdin is closed")
    if sys.stdin.isatty():
        raise MediaError("--image -: stdin is the terminal; send the picture's file there: … --image - < photo.jpg")
    from .inputs.media import Limits, read_source

    picture = io.BytesIO(read_source(sys.stdin.buffer, Limits()))
    picture.name = "stdin"
    return picture


def check_files(sources: Sequence[str]) -> None:
    """MediaError for a missing file, before the model is loaded."""
    if not sources:
        return
    from .inputs.media import describe_source, is_local, local_path

    for source in sources:
        if source != "-" and is_local(source) and not os.path.exists(local_path(source)):  # noqa: PTH110  Path's raises for long names
            raise MediaError(f"{describe_source(source)}: no such file")


def load_model(args: argparse.Namespace, loader: Callable[..., tuple[Any, Any]] | None = None) -> tuple[Any, Any]:
    """The named model. Without a name the default one, or the built-in one where that cannot be loaded. args.model
    becomes the name of the one that is loaded. loader: in the place of `load`."""
    from . import load as load_whole
    from .demo import NOTICE

    load = loader or load_whole
    options = {"adapter_path": args.adapter_path, "revision": args.revision, "dtype": args.dtype,
               "quantization": args.quantize}  # fmt: skip
    name = args.model if args.model is not None else os.environ.get(MODEL_VARIABLE) or None
    if name is not None:
        args.model = name
        return load(name, **options)
    try:
        args.model = DEFAULT_MODEL
        return load(DEFAULT_MODEL, **options)
    except UnreachableError as error:
        if args.no_fallback or args.adapter_path or args.revision or args.quantize:
            raise
        notice(f"the default model cannot be had: {error}")
        notice(NOTICE)
        args.model = "demo"
        return load(args.model, dtype=args.dtype)


def exit_code_of(run: Callable[[], int]) -> int:
    """Run a command. An error becomes a line on stderr and an exit code, never a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # without it a warning says that torch is missing
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the terminal cannot show must not end the answer
    with rewriting_notices(keywords_to_flags):
        try:
            try:
                return run()
            finally:
                flush_stdout()
        except KeyboardInterrupt:
            print_stderr("")
            return 130
        except BrokenPipeError:  # as from `| head -1`
            return 1
        except Exception as error:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            expected = isinstance(error, VlgenError | ValueError | TypeError)
            more = "" if expected else f" (set {TRACEBACK_VARIABLE}=1 for more)"
            notice(f"error: {keywords_to_flags(one_line(error))}{more}")
            return 1


def flush_stdout() -> None:
    """Flush stdout. Where that fails, drop what is left: Python would try again at exit and print a message."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
