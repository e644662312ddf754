"""Tokenizers of the reference families, built with transformers."""

import codecs
import contextlib
import importlib
import io
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .recipe import TEXT_CASES, VIDEO_CASES, VISION_CASES, TokenizerKit, case_texts

CORPUS = [*VISION_CASES.values(), *VIDEO_CASES.values(), *TEXT_CASES.values()]
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_pair_model() -> Tokenizer:
    """Byte-level BPE trained on the Zen of Python and the words of the cases: the same for every Python version."""
    with contextlib.redirect_stdout(io.StringIO()):
        zen = codecs.decode(importlib.import_module("this").s, "rot13")
    corpus = [zen, *(text for case in CORPUS for text in case_texts(case))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=512, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def build_tokenizer(kit: TokenizerKit) -> Any:
    """A transformers tokenizer of the kit."""
    tokenizer = byte_pair_model()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in kit.specials])
    named: dict[str, Any] = {"eos_token": kit.eos, "pad_token": kit.pad}
    if kit.named:
        named["extra_special_tokens"] = dict(kit.named)
    if kit.bos:
        named["bos_token"] = kit.bos
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{kit.bos} $A", pair=None, special_tokens=[(kit.bos, tokenizer.token_to_id(kit.bos))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", model_max_length=4096, **named
    )
