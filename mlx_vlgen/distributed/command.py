"""A command with `--ranks` or `--shard`: what each of its processes does."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .launch import HANDED_OVER, hand_over, join_group, launch, launched

Loaded = tuple[Any, Any]


def run_ranks(
    module: str,
    args: argparse.Namespace,
    arguments: Sequence[str] | None,
    answer: Callable[[Callable[[argparse.Namespace], Loaded]], int],
    load_model: Callable[..., Loaded],
) -> int:
    """Start the ranks, or be one of them. module: the command's; answer: what rank 0 does, with what loads its
    model."""
    if args.ranks is not None and not launched():
        return launch(module, sys.argv[1:] if arguments is None else arguments, args.ranks)
    if args.hosts is not None and HANDED_OVER not in os.environ:
        hand_over(module, sys.argv[1:] if arguments is None else arguments, args.hosts)
    group = join_group()

    from .ranks import dismiss, follow, load_part

    load = partial(load_part, group=group, sharding=args.shard or "tensor")
    if group.rank():
        if isinstance(args.model, list):  # serve's, of which ranks have one
            [args.model] = args.model
        follow(load_model(args, load)[0], group)
        return 0
    models: list[Any] = []

    def load_once(args: argparse.Namespace) -> Loaded:
        loaded = load_model(args, load)
        models.append(loaded[0])
        return loaded

    try:
        code = answer(load_once)
    finally:
        well = [dismiss(model) for model in models]
    return code if all(well) else max(code, 1)
