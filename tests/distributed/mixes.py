"""One rank of `test_mixes`. Arguments: the sharding, a family, its checkpoint, how many mixes, and the draft model's
checkpoint.

Rank 0 plays random mixes of rows over two ranks, and each again with the whole model.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from invariants.family import STEPS, Family

import mlx_vlgen
from mlx_vlgen import PrefixCache, Request, SamplingParams, TokenIterator
from mlx_vlgen._runtime import mx
from mlx_vlgen.distributed import ranks
from mlx_vlgen.engine import batch
from mlx_vlgen.engine.drafters import DraftModel, PromptLookup
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.engine.modes import Beams


@dataclass
class Mixed:
    """joins: after so many results of all; leaves: after so many of its tokens."""

    request: Request
    joins: int
    leaves: int | None


def draw_row(family: Family, random: Random, draft: Any) -> Mixed:
    ask = random.choice(list(family.asks.values()))
    sampling = SamplingParams(max_tokens=random.randrange(1, STEPS + 4), seed=random.randrange(99))
    if random.random() < 0.4:
        sampling = replace(sampling, temperature=random.choice([0.7, 1.3]), top_p=random.choice([1.0, 0.9]))
    if random.random() < 0.3:
        sampling = replace(sampling, repetition_penalty=1.3, presence_penalty=0.5)
    request = Request(ask.text, ask.media, sampling)
    kind = random.random()
    if kind < 0.15:
        request = replace(request, kv=KVSettings(max_size=random.choice([12, 24])))
    elif kind < 0.3:
        request = replace(request, drafter=lambda: PromptLookup(3))
    elif kind < 0.45 and not ask.media.images and not ask.media.videos:
        request = replace(request, drafter=lambda: DraftModel(draft, count=2))
    elif kind < 0.5:
        request = replace(request, sampling=SamplingParams(max_tokens=STEPS), beams=Beams(2))
    leaves = random.randrange(1, 4) if random.random() < 0.25 else None
    return Mixed(request, random.randrange(12), leaves)


def play(family: Family, rows: list[Mixed], **settings: Any) -> list[tuple[list[int], list[np.ndarray]]]:
    """Tokens and log-probabilities of each row, as far as it is not cancelled."""
    heard: list[tuple[list[int], list[np.ndarray]]] = [([], []) for _ in rows]
    waiting, results = sorted(range(len(rows)), key=lambda index: rows[index].joins), 0
    places: dict[int, int] = {}
    with TokenIterator(family.model, family.processor, **settings) as iterator:
        while True:
            while waiting and rows[waiting[0]].joins <= results:
                place = waiting.pop(0)
                places[iterator.add(rows[place].request)] = place
            if (step := next(iterator, None)) is None:
                if not waiting:
                    return heard
                results = rows[waiting[0]].joins
                continue
            results += 1
            id, result = step
            assert result.error is None, result.error
            tokens, scores = heard[places[id]]
            if result.token is not None and len(tokens) != rows[places[id]].leaves:
                tokens.append(result.token)
                scores.append(np.array(result.logprobs))
                if len(tokens) == rows[places[id]].leaves:
                    iterator.cancel(id)


def main(sharding: str, name: str, folder: str, count: int, draft: str) -> None:
    group = mx.distributed.init(strict=True, backend="ring")
    model, processor = ranks.load_part(folder, group, sharding)
    if group.rank():
        ranks.follow(model, group)
        return
    whole, cut = Family.load(name, Path(folder)), Family(name, Path(folder), model, processor)
    drafter, random, prefixes = mlx_vlgen.load(draft)[0], Random(0), PrefixCache()
    for mix in range(count):
        batch.LOOKAHEAD = bool(mix % 2)
        rows = [draw_row(whole, random, drafter) for _ in range(random.randrange(1, 7))]
        settings = {"prefill_step_size": random.choice([5, 13, 2048]), "max_batch_size": random.choice([1, 2, 4])}
        reuse = random.choice([True, False, prefixes])
        ours, theirs = play(cut, rows, reuse=reuse, **settings), play(whole, rows, **settings)
        for row, one, other in zip(rows, ours, theirs, strict=True):
            assert one[0] == other[0], (mix, row)
            if not row.request.beams and one[0]:
                assert np.abs(np.stack(one[1]) - np.stack(other[1])).max() < 1e-4, (mix, row)
    ranks.dismiss(model)
    print(count)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), sys.argv[5])
