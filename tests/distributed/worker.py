"""One rank of `test_ranks.py`. Arguments: shardings by commas, "all" rows or a "few", then names of families, each with
the folder of its checkpoint, which may have an adapter inside.

Rank 0 compares its answers with those of the whole model, which it loads too. MLX finds the group by MLX_RANK and
MLX_HOSTFILE.
"""

import math
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from invariants.family import STEPS, Family
from invariants.play import Row, play

import mlx_vlgen
from mlx_vlgen import PrefixCache, Request, SamplingParams, TokenIterator
from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.distributed import ranks
from mlx_vlgen.engine import batch
from mlx_vlgen.engine.cache import can_roll_back, check
from mlx_vlgen.engine.drafters import PromptLookup
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.engine.modes import Beams
from mlx_vlgen.errors import UnsupportedError
from mlx_vlgen.inputs.prompt import MediaInputs, Prompt
from mlx_vlgen.models.text import unwrapped

ADAPTER = "adapter"


def rows_of(family: Family, few: bool) -> list[Row]:
    """Pictures and words that come and go; one is cancelled, one draws, one has a bound."""
    if few:
        return [Row(family.asks["words5"], leaves=3), Row(family.asks.get("img1", family.asks["words11"]), joins=2)]
    heard = [ask for ask in family.asks.values() if ask.audios][:1]
    asks = [ask for name, ask in family.asks.items() if name in ("img1", "img_video", "words5", "words11")] + heard
    rows = [Row(ask, joins=2 * place) for place, ask in enumerate(asks)]
    rows[0] = replace(rows[0], leaves=3)
    drawn = SamplingParams(max_tokens=STEPS, temperature=1.0, top_p=0.9, seed=5)
    rows.append(replace(rows[-1], sampling=drawn))
    with suppress(UnsupportedError):
        check(family.model, bound := KVSettings(max_size=24))
        rows.append(replace(rows[-2], kv=bound))
    return rows


def search_and_guess(family: Family) -> list[list[int]]:
    """Tokens of a beam search, and of rows with guesses where the model can take them back."""
    ask = family.asks["words11"]
    plain = Request(ask.text, sampling=SamplingParams(max_tokens=STEPS))
    requests = [replace(plain, beams=Beams(3))]
    if can_roll_back(family.model.cache_layout(), KVSettings()):
        requests += [replace(plain, drafter=lambda: PromptLookup(3)) for _ in range(2)]
    tokens: dict[int, list[int]] = {}
    with TokenIterator(family.model, family.processor) as iterator:
        ids = [iterator.add(request) for request in requests]
        for id, result in iterator:
            assert result.error is None, result.error
            if result.token is not None:
                tokens.setdefault(id, []).append(result.token)
    return [tokens[id] for id in ids]


def talk(family: Family, prefixes: PrefixCache | None) -> list[list[int]]:
    """Tokens of three answers: to a question, to one that goes on after its answer, and to one that begins like it.
    With prefixes the second at least is not computed whole."""
    first = family.processor.prepare(family.asks["words11"].text, MediaInputs()).text_tokens
    question = (first * 60)[:60]
    # A placeholder that a row draws is read as any token, and in a prompt it may stand for media.
    added = family.processor.tokenizer.get_added_vocab().values()
    bias = dict.fromkeys((token for token in added if token < family.model.vocab_size), -math.inf)
    answers: list[list[int]] = []
    with TokenIterator(family.model, family.processor, reuse=prefixes or False) as iterator:
        for build in (lambda: question, lambda: question + answers[0] + first, lambda: question[:45] + first[:3]):
            prompt = Prompt(np.array(build(), dtype=np.int32))
            iterator.add(Request(prompt, sampling=SamplingParams(max_tokens=STEPS, logit_bias=bias)))
            results = [result for _, result in iterator]
            assert results[-1].error is None, results[-1].error
            answers.append([result.token for result in results if result.token is not None])
            if prefixes and len(answers) == 2:
                assert results[-1].cached_tokens >= 60, results[-1].cached_tokens
    return answers


def layer_bytes(model: Any) -> int:
    """Of the weights of its decoder's layers."""
    layers = unwrapped(model.text_decoder()).model.layers
    return sum(tensor.nbytes for layer in layers for _, tensor in tree_flatten(layer.parameters()))


def compare(whole: Family, cut: Family, lookahead: bool, few: bool) -> None:
    batch.LOOKAHEAD = lookahead
    rows, settings = rows_of(whole, few), {"prefill_step_size": 13, "max_batch_size": 4}
    for row, ours, theirs in zip(rows, play(cut, rows, **settings), play(whole, rows, **settings), strict=True):
        assert ours.results[-1].error is None, ours.results[-1].error
        assert ours.tokens == theirs.tokens, row
        difference = np.abs(np.stack(ours.scores) - np.stack(theirs.scores)).max()
        assert difference < 1e-4, (row, difference)
    prefixes = PrefixCache()
    assert talk(cut, prefixes) == talk(whole, None)
    assert prefixes.nbytes
    if lookahead:
        assert search_and_guess(cut) == search_and_guess(whole)


def main(arguments: list[str]) -> None:
    """Every other family is run as on a GPU, each step before the last one is read."""
    group = mx.distributed.init(strict=True, backend="ring")
    shardings, rows, *arguments = arguments
    families = zip(arguments[::2], arguments[1::2], strict=True)
    for place, ((name, folder), sharding) in enumerate(product(families, shardings.split(","))):
        adapter = path if (path := Path(folder) / ADAPTER).is_dir() else None
        model, processor = ranks.load_part(folder, group, sharding, adapter_path=adapter)
        if group.rank():
            ranks.follow(model, group)
        else:
            loaded = mlx_vlgen.load(folder, dtype="float32", adapter_path=adapter)
            whole = Family(name, Path(folder), *loaded)
            share = layer_bytes(model) / layer_bytes(whole.model)
            # Cut layers have their norms whole. Three ranks divide no heads, and nothing of Qwen3.5's experts; Molmo 2
            # O normalises all heads together, and some of Gemma 3n's MLPs take the mean of their values.
            if sharding == "pipeline":
                assert share < 1, share
            elif group.size() != 3 and name not in ("molmo2_o", "gemma3n"):
                assert share < 0.6, share
            compare(whole, Family(name, Path(folder), model, processor), place % 2 == 0, rows == "few")
            ranks.dismiss(model)
            print(name, sharding)


if __name__ == "__main__":
    main(sys.argv[1:])
