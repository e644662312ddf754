"""`python -m mlx_vlgen.generate`: parsed flags to an answer on stdout."""

import argparse
import io
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from .cli import LoadModel, check_files, check_keywords, given_keywords, run_with_model, usage_error
from .errors import MediaError, VlgenError
from .flags import Parser
from .inputs.kinds import KINDS
from .notices import PromptBar, notice, print_stderr
from .screens import Screen


def run_generate(parser: Parser, arguments: Sequence[str] | None) -> int:
    args = parser.parse(arguments)
    keywords = given_keywords(args)
    check_usage(parser, args, keywords)
    if sys.stdout is None:
        raise VlgenError("stdout is closed: there is nowhere to write the answer")
    return run_with_model("generate", args, arguments, partial(answer, args, keywords))


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
