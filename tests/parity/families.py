"""Recipes of the reference families: configurations, tokenizers, processors and cases. Needs transformers and torch.

A new family is a line in `FAMILIES`; a tokenizer or processor of its own in `TOKENIZERS` or `PROCESSORS`; and in
layouts.py how its tensors and its configuration looked before transformers 5, and in conversions for MLX.
"""

import codecs
import contextlib
import copy
import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .weights import Rule

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One request: `prompt` is messages, which the chat template formats, or text as it is.

    images, videos: names in media.py, in order of appearance.
    """

    prompt: Messages | str
    images: Sequence[str] = ()
    videos: Sequence[str] = ()


@dataclass(frozen=True)
class Recipe:
    """A family: `config(ids)` gets a function from a special token to its id.

    batches: names of cases that are answered together. rules: see weights.draw. new_tokens: greedy steps at most.
    """

    config: Callable[[Callable[[str], int], int], Any]
    tokenizer: str
    cases: dict[str, Case]
    batches: dict[str, list[str]]
    processor: str | None = None
    rules: Sequence[Rule] = ()
    new_tokens: int = 12


# Tokenizers

WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class TokenizerKit:
    """Special tokens and template over the common byte-pair model; `bos` is put before every text."""

    specials: Sequence[str]
    eos: str
    pad: str
    template: str
    bos: str | None = None


def chatml_template(begin: str) -> str:
    """Turns between <|im_start|> and <|im_end|>, after `begin`."""
    return (
        begin + "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
        "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}"
    "{{ message['content'] + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
QWEN = TokenizerKit(
    specials=[
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
        "<|image_pad|>", "<|video_pad|>", "<think>", "</think>",
    ],
    eos="<|im_end|>",
    pad="<|endoftext|>",
    template="",  # the published one, which lies in the tree
)  # fmt: skip
TOKENIZERS = {
    "qwen": QWEN,
    "llama": TokenizerKit(["<unk>", "<s>", "</s>", "<pad>"], "</s>", "<pad>", LLAMA_TEMPLATE, bos="<s>"),
    "gemma": TokenizerKit(
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<eos>", "<pad>", GEMMA_TEMPLATE, bos="<bos>"
    ),
    "lfm2": TokenizerKit(
        ["<|pad|>", "<|startoftext|>", "<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
        "<|pad|>",
        chatml_template("{{ bos_token }}"),
        bos="<|startoftext|>",
    ),
}


def byte_pair_model() -> Tokenizer:
    """Byte-level BPE trained on the Zen of Python and the words of the cases: the same for every Python version."""
    with contextlib.redirect_stdout(io.StringIO()):
        zen = codecs.decode(importlib.import_module("this").s, "rot13")
    corpus = [zen, *(text for case in ALL_CASES for text in case_texts(case))]
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
    named = {"eos_token": kit.eos, "pad_token": kit.pad}
    if kit.bos:
        named["bos_token"] = kit.bos
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{kit.bos} $A", pair=None, special_tokens=[(kit.bos, tokenizer.token_to_id(kit.bos))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", model_max_length=4096, **named
    )


# Processors


def qwen3_vl_processor(tokenizer: Any) -> Any:
    """Limits so low that of the pictures and clips of media.py some are shrunk, some enlarged and some kept."""
    image = transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64 * 64, "longest_edge": 12 * 32 * 32},
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    video = transformers.Qwen3VLVideoProcessor(size={"shortest_edge": 64 * 64, "longest_edge": 40 * 32 * 32})
    return transformers.Qwen3VLProcessor(image, tokenizer, video, chat_template=tokenizer.chat_template)


PROCESSORS: dict[str, Callable[[Any], Any]] = {"qwen3_vl": qwen3_vl_processor}


# Cases


def user(*content: str) -> Messages:
    """One turn; "image" and "video" stand for media, other strings are text."""
    parts = [{"type": part} if part in ("image", "video") else {"type": "text", "text": part} for part in content]
    return [{"role": "user", "content": parts}]


def case_texts(case: Case) -> list[str]:
    """The words that a case's prompt is made of."""
    if isinstance(case.prompt, str):
        return [case.prompt]
    contents = [message["content"] for message in case.prompt]
    return [
        text
        for content in contents
        for text in ([content] if isinstance(content, str) else [part["text"] for part in content if "text" in part])
    ]


DIALOGUE = [
    {"role": "system", "content": "You are a careful assistant. Answer in français, 日本語 or emoji 🙂."},
    {"role": "user", "content": "Describe the picture, s'il te plaît: naïve café, 図書館, 12345 + 678?"},
    {"role": "assistant", "content": "A café, très naïve."},
    {"role": "user", "content": "And what else is there? 続けて。"},
]
VISION_CASES = {
    "text": Case(user("Describe the user.")),
    "dialogue": Case(DIALOGUE),
    "img1": Case(user("image", "Describe this image."), images=["plain"]),
    "upright": Case(user("image", "What is it? Tell the model more about the picture."), images=["upright"]),
    "img2": Case(user("image", " and ", "image", "What differs?"), images=["upright", "large"]),
}
VIDEO_CASES = {
    "video": Case(user("video", "Describe this video."), videos=["clip"]),
    "odd_video": Case(user("video", "What moves?"), videos=["odd_clip"]),
    "img_video": Case(user("image", "video", "Compare."), images=["small"], videos=["clip"]),
    "video_img": Case(user("video", "image", "Compare."), images=["upright"], videos=["odd_clip"]),
}
VISION_BATCHES = {"batch": ["img1", "upright", "text"]}
VIDEO_BATCHES = {"batch_video": ["video", "img2", "dialogue"]}

TEXT_CASES = {
    "short": Case([{"role": "user", "content": "Describe the user."}]),
    "plain": Case("The picture of the user is a café"),
    "long": Case(DIALOGUE[1:]),
}
TEXT_BATCHES = {"batch": ["short", "long", "plain"]}
ALL_CASES = [*VISION_CASES.values(), *VIDEO_CASES.values(), *TEXT_CASES.values()]


# Configurations

Ids = Callable[[str], int]
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}


def _rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta} | more


def _ends(bos: str, eos: str, pad: str) -> Callable[[Ids], dict[str, int]]:
    return lambda ids: {"bos_token_id": ids(bos), "eos_token_id": ids(eos), "pad_token_id": ids(pad)}


QWEN_ENDS = _ends("<|endoftext|>", "<|im_end|>", "<|endoftext|>")


def _qwen3_vl(config: Any, tied: bool, **text: Any) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        text_config = {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 32, "rms_norm_eps": 1e-6,
            "vocab_size": vocabulary, "tie_word_embeddings": tied,
            "rope_parameters": _rope(5e6, mrope_interleaved=True, mrope_section=[6, 5, 5]),
        }  # fmt: skip
        vision_config = {
            "depth": 4, "hidden_size": 48, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 80,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 144,
            "deepstack_visual_indexes": [0, 1, 2],
        }  # fmt: skip
        return config(
            text_config=text_config | HEADS | QWEN_ENDS(ids) | text,
            vision_config=vision_config,
            tie_word_embeddings=tied,
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
        )

    return build


def _decoder(config: Any, ends: Callable[[Ids], dict[str, int]], **fields: Any) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": vocabulary}
        return config(**(sizes | HEADS | ends(ids) | copy.deepcopy(fields)))

    return build


def _text_family(tokenizer: str, config: Callable[[Ids, int], Any], rules: Sequence[Rule] = ()) -> Recipe:
    return Recipe(config, tokenizer, TEXT_CASES, TEXT_BATCHES, rules=rules)


def _vision_family(tokenizer: str, processor: str, config: Callable[[Ids, int], Any]) -> Recipe:
    return Recipe(config, tokenizer, VISION_CASES | VIDEO_CASES, VISION_BATCHES | VIDEO_BATCHES, processor)


# Gemma multiplies normalised states by 1 + weight, and embeddings by the root of the hidden size.
GEMMA_RULES: Sequence[Rule] = ((r"norm\.weight$", 0.0, 0.2), (r"embed_tokens\.weight$", 0.0, 0.04))

FAMILIES: dict[str, Recipe] = {
    "qwen3_vl": _vision_family("qwen", "qwen3_vl", _qwen3_vl(transformers.Qwen3VLConfig, tied=True)),
    "qwen3_vl_moe": _vision_family(
        "qwen", "qwen3_vl", _qwen3_vl(transformers.Qwen3VLMoeConfig, tied=False, **EXPERTS)
    ),
    "llama": _text_family(
        "llama",
        _decoder(
            transformers.LlamaConfig,
            _ends("<s>", "</s>", "<pad>"),
            tie_word_embeddings=False,
            rms_norm_eps=1e-5,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        ),
    ),
    "qwen2": _text_family(
        "qwen",
        _decoder(transformers.Qwen2Config, QWEN_ENDS, tie_word_embeddings=True, rope_parameters=_rope(1e6)),
    ),
    "qwen3": _text_family(
        "qwen",
        _decoder(
            transformers.Qwen3Config, QWEN_ENDS, tie_word_embeddings=True, head_dim=32, rope_parameters=_rope(1e6)
        ),
    ),
    "qwen3_moe": _text_family(
        "qwen",
        _decoder(
            transformers.Qwen3MoeConfig,
            QWEN_ENDS,
            tie_word_embeddings=False,
            head_dim=32,
            rope_parameters=_rope(1e6),
            **EXPERTS,
        ),
    ),
    "gemma3_text": _text_family(
        "gemma",
        _decoder(
            transformers.Gemma3TextConfig,
            _ends("<bos>", "<eos>", "<pad>"),
            tie_word_embeddings=True,
            hidden_size=72,
            num_hidden_layers=4,
            head_dim=32,
            sliding_window=16,
            query_pre_attn_scalar=24,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": _rope(1e4),
            },
        ),
        GEMMA_RULES,
    ),
    "lfm2": _text_family(
        "lfm2",
        _decoder(
            transformers.Lfm2Config,
            _ends("<|startoftext|>", "<|im_end|>", "<|pad|>"),
            tie_word_embeddings=True,
            num_hidden_layers=4,
            layer_types=["conv", "full_attention", "conv", "full_attention"],
            conv_L_cache=3,
            block_auto_adjust_ff_dim=False,
            rope_parameters=_rope(1e6),
        ),
    ),
}  # fmt: skip

# The built-in model, a checkpoint of its own; its pictures are those that it is shown with.
DEMO = Recipe(
    config=lambda ids, vocabulary: None,
    tokenizer="",
    cases={
        "text": Case([{"role": "user", "content": "What can you do?"}]),
        "shapes": Case(user("image", "Describe this image."), images=["shapes.png"]),
        "print": Case(user("image", "What does it say?"), images=["hello.png"]),
        "img2": Case(
            user("image", "image", "What is the difference between the two images?"), images=["plain", "shapes.png"]
        ),
        "video": Case(user("video", "What moves in this video?"), videos=["clip"]),
    },
    batches={"batch": ["shapes", "text", "img2"]},
    processor="demo",
    new_tokens=48,
)
