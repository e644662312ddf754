"""The commands: from parsed flags to a call, to stdout and stderr, to an exit code.

Exit codes: 0; 1 failed; 2 usage; 130 Ctrl-C. The answer goes to stdout and all else to stderr.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

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
from .model_flags import cache_parser, models_parser, plan_parser, pull_parser, rm_parser, verify_parser
from .notices import notice, print_stderr, rewriting_notices
from .options import OPTIONS, group_keywords

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


main_generate = _command("python -m mlx_vlgen.generate", generate_parser, "generate_command:run_generate")
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


def run_with_model(
    module: str, args: argparse.Namespace, arguments: Sequence[str] | None, answer: Callable[[LoadModel], int]
) -> int:
    """`answer`, with what loads the model: by several ranks, each a process of the command `module`, where that is
    asked for. The exit code."""
    if not on_ranks(args):
        return answer(load_model)
    from .distributed.command import run_ranks

    return run_ranks(f"{__package__}.{module}", args, arguments, answer, load_model)


def on_ranks(args: argparse.Namespace) -> bool:
    return any(flag is not None for flag in (args.shard, args.ranks, args.hosts))


def given_keywords(args: argparse.Namespace) -> dict[str, Any]:
    return {option.name: getattr(args, option.name) for option in OPTIONS if hasattr(args, option.name)}


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

    return run_with_model("batch", args, arguments, lambda load: run(args, keywords, lambda: load(args)))


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
    return run_with_model("serve", args, arguments, lambda load: serve(args, settings, load))


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


def check_files(sources: Sequence[str]) -> None:
    """MediaError for a missing file, before the model is loaded."""
    if not sources:
        return
    from .inputs.media import describe_source, is_local, local_path

    for source in sources:
        if source != "-" and is_local(source) and not os.path.exists(local_path(source)):  # noqa: PTH110  Path's raises for long names
            words = " " in source and not os.path.splitext(source)[1].strip(". ")  # noqa: PTH122  of what need be no path
            hint = "; if this is the prompt, write --prompt before it" if words else ""
            raise MediaError(f"{describe_source(source)}: no such file{hint}")


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
