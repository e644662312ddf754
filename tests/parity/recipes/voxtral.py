"""Voxtral. Its processor needs mistral-common for prompts with sound: they are laid out here, and features are made as
it makes them, in chunks of two seconds."""

from typing import Any

import numpy as np

from mlx_vlgen.inputs.voxtral import TEMPLATE

from ..recipe import (
    AUDIO_BATCHES,
    AUDIO_CASES,
    DIALOGUE,
    VISION_CASES,
    Case,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    ends,
    whisper_extractor,
)
from ..weights import Rule
from .llava import text_config
from .qwen2_audio import mlx

AUDIO = "[AUDIO]"
SPECIALS = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TRANSCRIBE]",
    AUDIO, "[BEGIN_AUDIO]",
]  # fmt: skip
TOKENIZER = TokenizerKit("voxtral", SPECIALS, "</s>", "<pad>", TEMPLATE, "<s>", {"audio_token": AUDIO})
ENDS = ends("<s>", "</s>", "<pad>")
SECONDS = 2
RULES: tuple[Rule, ...] = ((r"embed_positions\.weight$", 0.0, 0.5),)
CASES = {
    "text": VISION_CASES["text"],
    "dialogue": Case(DIALOGUE),
    **AUDIO_CASES,
    "transcript": Case("<s>[INST][BEGIN_AUDIO][AUDIO][/INST]lang:en[TRANSCRIBE]", audios=["short_sound"]),
}


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    return transformers.VoxtralConfig(
        audio_config={
            "model_type": "voxtral_encoder", "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_mel_bins": 32, "max_source_positions": SECONDS * 50,
        },
        text_config=text_config(ids, vocabulary, head_dim=32) | ENDS(ids), audio_token_id=ids(AUDIO), **ENDS(ids),
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    import transformers

    extractor = whisper_extractor(feature_size=32, chunk_length=SECONDS)

    class Voxtral(transformers.VoxtralProcessor):  # type: ignore[misc]
        def apply_chat_template(self, messages: Any, **keywords: Any) -> Any:
            return self.tokenizer.apply_chat_template(messages, **keywords)

        def __call__(self, text: list[str], audio: Any = (), **keywords: Any) -> Any:
            clips = [features(self, samples) for samples in audio]
            counts = iter(len(clip) * SECONDS * 25 // 2 for clip in clips)
            pieces = (prompt.split(AUDIO) for prompt in text)
            texts = [first + "".join(AUDIO * next(counts) + piece for piece in others) for first, *others in pieces]
            made = self.tokenizer(texts, **keywords, return_token_type_ids=False)
            if clips:
                import torch

                made["input_features"] = torch.tensor(np.concatenate(clips))
            return made

    return Voxtral(extractor, tokenizer)


def features(processor: Any, samples: np.ndarray) -> np.ndarray:
    """(chunks, mels, frames)"""
    made = processor.feature_extractor(
        samples, sampling_rate=16_000, padding=True, truncation=False, pad_to_multiple_of=SECONDS * 16_000,
        return_tensors="np",
    )["input_features"]  # fmt: skip
    return made.reshape(32, -1, SECONDS * 100).swapaxes(0, 1).astype(np.float32)


def audio_features(processor: Any, samples: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    rows = features(processor, samples).swapaxes(1, 2).reshape(-1, 32)
    return rows, (len(rows),)


RECIPES = {
    "voxtral": Recipe(
        config, TOKENIZER, CASES, AUDIO_BATCHES, ProcessorKit("voxtral", processor, audio=audio_features), RULES,
        mlx=mlx,
    ),
}  # fmt: skip
