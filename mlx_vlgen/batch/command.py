"""`batch`: from parsed flags to a job, its output and its exit code."""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..distributed.pool import AHEAD
from ..errors import VlgenError, printable
from ..flags import DEFAULT_MODEL, MODEL_VARIABLE
from ..notices import notice
from ..options import DRAFTS, ENGINE
from . import sinks, sources
from .job import Engine, Job, Retry, beside, is_settings, open_settings, save_settings
from .journal import Journal
from .progress import Progress
from .rows import FILE_COLUMNS, Asked, template_columns

if TYPE_CHECKING:
    from ..distributed.data_parallel import Ranks

Load = Callable[[], tuple[Any, Any]]

_SAME_ANSWER = frozenset(option.name for option in DRAFTS + ENGINE)
"""Keywords that may change while a job goes on."""


def run(args: argparse.Namespace, keywords: dict[str, Any], load: Load) -> int:
    """Run a job to its end. load: gives the model and processor, when they are needed."""
    _check_machines(args)
    if args.data_parallel:
        from ..distributed.data_parallel import Ranks

        ranks = Ranks()
        _answer_part(args, keywords, load, ranks)
        if ranks.number:
            return 0
        args.restart = args.retry_failed = False  # that is done
    out = Path(args.output)
    sidecars = _check(args, out)
    with Journal(beside(out, ".journal.jsonl")) as journal:
        settings = _open_settings(args, out, keywords, journal)
        asked = Asked(args.prompt, args.system)
        job = Job(
            journal,
            lambda: _open_engine(args, out, settings, keywords, load),
            keywords=keywords,
            seed=settings["seed"],
            capacity=args.max_batch_size if args.ray is None else AHEAD * args.max_batch_size * args.actors,
            wants=sidecars.wants if sidecars else lambda row: True,
            retry=Retry(args.retry_failed, args.retry_changed),
            progress=Progress(sources.count(args.input)),
        )
        try:
            job.run(_items(args, asked), asked)
        except KeyboardInterrupt:
            notice(f"stopped after {_rows(job.progress.finished)}; the same command goes on from there")
            raise
        if not job.order:
            raise VlgenError(f"{', '.join(args.input[:3])}: nothing to answer there")
        if sidecars:
            sidecars.write(job.entries(), journal)
        elif out.suffix.lower() == ".jsonl":
            sinks.write_jsonl(out, job.entries(), settings.get("answered_by", ""), settings["created"])
        else:
            sinks.FILES[out.suffix.lower()](out, job.entries())
    _report(job, out)
    return 1 if job.failed and not args.allow_errors else 0


def _answer_part(args: argparse.Namespace, keywords: dict[str, Any], load: Load, ranks: "Ranks") -> None:
    """Answer the rows of this rank into a part of the journal. Rank 0 returns when all ranks are through, or gone, and
    then runs the job as if it were alone: it takes the parts, and answers what is missing."""
    out = Path(args.output)
    with ExitStack() as stack:
        opened: dict[str, Any] = {}

        def begin() -> Any:
            if "-" in args.input:
                raise VlgenError("-: each rank reads the input, and there is one stdin: give a file")
            opened["sidecars"] = _check(args, out)
            if ranks.number:
                return None
            opened["journal"] = stack.enter_context(Journal(beside(out, ".journal.jsonl")))
            settings = _open_settings(args, out, keywords, opened["journal"])
            opened["journal"].share()
            return settings

        settings = ranks.agree(begin)[0]

        def open_part() -> str:
            if ranks.number:
                if not is_settings(out, settings):
                    raise VlgenError(
                        f"{out} is not what rank 0 has there: OUT lies in a folder that all machines share"
                    )
                opened["journal"] = stack.enter_context(Journal(beside(out, ".journal.jsonl"), shared=True))
            part = opened["journal"].part(ranks.number)
            opened["part"] = stack.enter_context(Journal(part))
            opened["engine"] = _open_engine(args, out, settings, keywords, load, saves=not ranks.number)
            return str(settings["config"])

        if len(set(ranks.agree(open_part))) > 1:
            raise VlgenError("the ranks have not the same model: their config.json differ")
        sidecars: sinks.Sidecars | None = opened["sidecars"]
        asked = Asked(args.prompt, args.system)
        job = Job(
            opened["journal"],
            lambda: opened["engine"],
            keywords=keywords,
            seed=settings["seed"],
            capacity=args.max_batch_size,
            wants=sidecars.wants if sidecars else lambda row: True,
            retry=Retry(args.retry_failed, args.retry_changed),
            part=opened["part"],
            mine=ranks.has,
        )
        job.run(sources.read(args.input, args.image_column), asked)
        if not ranks.number:
            opened["journal"].claim()


def _check(args: argparse.Namespace, out: Path) -> sinks.Sidecars | None:
    """The sidecars, where OUT is a folder. VlgenError for an input, or an OUT, that cannot be."""
    sources.check(args.input)
    sinks.check_out(out)
    sidecars = _sidecars(args, out)
    if sidecars:
        sidecars.folder.mkdir(parents=True, exist_ok=True)
    elif not out.parent.is_dir():
        raise VlgenError(f"{out}: there is no folder {out.parent}")
    _check_prompts(Asked(args.prompt, args.system), args.input)
    return sidecars


def _open_settings(args: argparse.Namespace, out: Path, keywords: dict[str, Any], journal: Journal) -> dict[str, Any]:
    journal.take_parts()
    return open_settings(out, _settings(args, keywords), journal, args.restart)


def _check_machines(args: argparse.Namespace) -> None:
    """VlgenError for flags that exclude each other."""
    if args.ray is None and args.actors is not None:
        raise VlgenError("--actors are Ray's: give --ray too")
    if args.ray is not None and (args.shard or args.ranks is not None):
        raise VlgenError("--ray has the whole model on each actor: leave --shard and --ranks out")
    if args.data_parallel and (args.ray is not None or args.shard or args.ranks is not None):
        raise VlgenError("--data-parallel has the whole model on each rank: leave --ray, --shard and --ranks out")
    args.actors = args.actors or 1


def _sidecars(args: argparse.Namespace, out: Path) -> sinks.Sidecars | None:
    """None where OUT is a file."""
    if not out.is_dir() and out.suffix:
        for name in ("sidecar", "caption", "caption_prefix"):
            if getattr(args, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise VlgenError(f"{flag} is for text files beside pictures, and {out} is one file: give -o FOLDER")
        return None
    unknown = template_columns(args.caption, args.caption_prefix) - sinks.CAPTION_FIELDS
    if unknown:
        raise VlgenError(f"--caption: {{{min(unknown)}}} is not known; a caption has {{name}}, {{folder}} and {{text}}")
    return sinks.Sidecars(out, args.sidecar or "skip", args.caption or "{text}", args.caption_prefix or "")


def _settings(args: argparse.Namespace, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """What the answers depend on. Several inputs are usually names that a shell found, of which there may be more the
    next time."""
    names = ("revision", "adapter_path", "dtype", "quantize", "system", "image_column")
    of_job = {name: value for name, value in keywords.items() if name not in _SAME_ANSWER}
    inputs = os.path.normpath(args.input[0]) if len(args.input) == 1 else None
    return {"model": _model_name(args), "input": inputs, "prompt": args.prompt,
            **{name: getattr(args, name) for name in names}, **of_job}  # fmt: skip


def _model_name(args: argparse.Namespace) -> str:
    return str(args.model if args.model is not None else os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL)


def _open_engine(
    args: argparse.Namespace,
    out: Path,
    settings: dict[str, Any],
    keywords: dict[str, Any],
    load: Load,
    saves: bool = True,
) -> Engine:
    if args.ray is not None:
        from ..distributed.ray import open_pool

        engine: Engine
        engine, loaded = open_pool(args, keywords)
        config, args.model = loaded.config, loaded.model
    else:
        from .engine import ModelEngine, config_digest

        model, processor = load()
        engine, config = (
            ModelEngine(model, processor, keywords, args.max_batch_size, not args.no_reuse),
            config_digest(model),
        )
    if settings.get("config", config) != config:
        engine.close()
        raise VlgenError(
            f"{settings['settings']['model']}: this is not the model that this job began with: its config.json is "
            "another one, or the built-in model answers in its place. Take another OUT, or answer all rows again with "
            "--restart"
        )
    if "config" not in settings:
        settings |= {"config": config, "answered_by": _model_name(args)}
        if saves:
            save_settings(out, settings)
    return engine


def _check_prompts(asked: Asked, inputs: Sequence[str]) -> None:
    """VlgenError for a column in a template where no input has columns."""
    if (unknown := asked.columns - FILE_COLUMNS) and not any(map(sources.has_columns, inputs)):
        raise VlgenError(
            f"--prompt: {{{min(unknown)}}} stands for a column, and this input has none but {{name}} and {{folder}}. "
            "Write { and } with a blank where they are meant"
        )


def _items(args: argparse.Namespace, asked: Asked) -> Iterator[sources.Item]:
    said = named = False
    for item in sources.read(args.input, args.image_column):
        yield item
        if asked.unread and not said:
            said = True
            notice(f"columns that are not read: {', '.join(sorted(asked.unread))}")
        if asked.models - {_model_name(args)} and not named:
            named = True
            notice(f"rows name the model {printable(min(asked.models))}; the model of this job answers all of them")


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _report(job: Job, out: Path) -> None:
    parts = [_rows(len(job.order) - job.skipped)]
    if job.failed:
        parts.append(f"{job.failed:,} failed (first: {job.first_failed})")
    if job.skipped:
        parts.append(f"{job.skipped:,} skipped, whose text file was there")
    notice(f"{out}: {', '.join(parts)}{job.progress.summary()}")
    if before := job.failed - job.progress.failed:
        notice(f"not asked again, since they failed before: {_rows(before)}; --retry-failed asks them")
    if job.changed:
        notice(
            f"{job.changed:,} finished rows are other ones now, or their files have changed since (first: "
            f"{job.first_changed}); --retry-changed answers them again"
        )
