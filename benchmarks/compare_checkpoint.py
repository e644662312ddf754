"""Checkpoints of real shapes with random weights, in the Hub's layout, for `compare.py`. No torch is needed.

What the weights are does not change how long they take. Rows of the vocabulary that no engine should draw are zero:
special tokens, which would end an answer early, and ids past the tokenizer, which nobody can spell.
"""

import copy
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shapes import shape
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlx_vlgen._runtime import mx

DEMO = Path(__file__).parents[1] / "mlx_vlgen" / "demo" / "model"
SHARD_BYTES = 4e9
SPREAD = 0.02
"""Standard deviation of the embeddings, as transformers initialises them. Others have what keeps a vector's length, so
that the layers say more than the last token and answers do not repeat it."""

Shapes = dict[str, tuple[int, ...]]
"""Shapes of the tensors, by their names on the Hub."""


def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, size: int, bias: bool = True) -> Shapes:
    out: Shapes = {f"{name}.weight": (size,)}
    return out | {f"{name}.bias": (size,)} if bias else out


def decoder(prefix: str, text: Mapping[str, Any], head_norms: bool, layer_norms: tuple[str, ...]) -> Shapes:
    """A decoder with SwiGLU and grouped queries. head_norms: of queries and keys."""
    d, inner, size = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    out = {f"{prefix}.embed_tokens.weight": (text["vocab_size"], d)} | norm(f"{prefix}.norm", d, bias=False)
    for layer in (f"{prefix}.layers.{index}" for index in range(text["num_hidden_layers"])):
        out |= linear(f"{layer}.self_attn.q_proj", heads * size, d, bias=False)
        out |= linear(f"{layer}.self_attn.k_proj", kv_heads * size, d, bias=False)
        out |= linear(f"{layer}.self_attn.v_proj", kv_heads * size, d, bias=False)
        out |= linear(f"{layer}.self_attn.o_proj", d, heads * size, bias=False)
        out |= linear(f"{layer}.mlp.gate_proj", inner, d, bias=False)
        out |= linear(f"{layer}.mlp.up_proj", inner, d, bias=False)
        out |= linear(f"{layer}.mlp.down_proj", d, inner, bias=False)
        for name in layer_norms:
            out |= norm(f"{layer}.{name}", d, bias=False)
        for name in ("q_norm", "k_norm") if head_norms else ():
            out |= norm(f"{layer}.self_attn.{name}", size, bias=False)
    return out


def siglip(prefix: str, vision: Mapping[str, Any]) -> Shapes:
    d, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    out: Shapes = {
        f"{prefix}.embeddings.patch_embedding.weight": (d, 3, patch, patch),
        f"{prefix}.embeddings.patch_embedding.bias": (d,),
        f"{prefix}.embeddings.position_embedding.weight": ((vision["image_size"] // patch) ** 2, d),
    }
    for layer in (f"{prefix}.encoder.layers.{index}" for index in range(vision["num_hidden_layers"])):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out |= linear(f"{layer}.self_attn.{name}", d, d)
        out |= linear(f"{layer}.mlp.fc1", inner, d) | linear(f"{layer}.mlp.fc2", d, inner)
        out |= norm(f"{layer}.layer_norm1", d) | norm(f"{layer}.layer_norm2", d)
    return out | norm(f"{prefix}.post_layernorm", d)


def qwen3_vl_tensors(config: Mapping[str, Any]) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    d, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    merged = d * vision["spatial_merge_size"] ** 2
    out = decoder("model.language_model", text, True, ("input_layernorm", "post_attention_layernorm"))
    tower = "model.visual"
    out |= {
        f"{tower}.patch_embed.proj.weight": (d, 3, vision["temporal_patch_size"], patch, patch),
        f"{tower}.patch_embed.proj.bias": (d,),
        f"{tower}.pos_embed.weight": (vision["num_position_embeddings"], d),
    }
    for block in (f"{tower}.blocks.{index}" for index in range(vision["depth"])):
        out |= linear(f"{block}.attn.qkv", 3 * d, d) | linear(f"{block}.attn.proj", d, d)
        out |= linear(f"{block}.mlp.linear_fc1", inner, d) | linear(f"{block}.mlp.linear_fc2", d, inner)
        out |= norm(f"{block}.norm1", d) | norm(f"{block}.norm2", d)
    deepstack = [f"{tower}.deepstack_merger_list.{i}" for i in range(len(vision["deepstack_visual_indexes"]))]
    for merger in (f"{tower}.merger", *deepstack):
        out |= norm(f"{merger}.norm", merged if merger in deepstack else d)
        out |= linear(f"{merger}.linear_fc1", merged, merged)
        out |= linear(f"{merger}.linear_fc2", vision["out_hidden_size"], merged)
    return out if config["tie_word_embeddings"] else out | {"lm_head.weight": (text["vocab_size"], text["hidden_size"])}


def gemma3_tensors(config: Mapping[str, Any]) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    projector: Shapes = {
        "multi_modal_projector.mm_input_projection_weight": (vision["hidden_size"], text["hidden_size"]),
        "multi_modal_projector.mm_soft_emb_norm.weight": (vision["hidden_size"],),
    }
    tower = siglip("vision_tower.vision_model", vision)
    return decoder("language_model.model", text, True, norms) | projector | tower


def smolvlm_tensors(config: Mapping[str, Any]) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    out = decoder("model.text_model", text, False, ("input_layernorm", "post_attention_layernorm"))
    out |= {"lm_head.weight": (text["vocab_size"], text["hidden_size"])}
    joined = vision["hidden_size"] * config["scale_factor"] ** 2
    out |= linear("model.connector.modality_projection.proj", text["hidden_size"], joined, bias=False)
    return out | siglip("model.vision_model", vision)


def qwen3_vl(*sizes: int, tied: bool = True, **vision: Any) -> dict[str, Any]:
    config = copy.deepcopy(shape(*sizes))
    config["text_config"] |= {"tie_word_embeddings": tied, "hidden_act": "silu", "attention_bias": False}
    config["vision_config"] |= {"model_type": "qwen3_vl", "hidden_act": "gelu_pytorch_tanh", "in_channels": 3} | vision
    return config | {"architectures": ["Qwen3VLForConditionalGeneration"], "tie_word_embeddings": tied}


GEMMA3_4B = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "mm_tokens_per_image": 256,
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
        "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "image_size": 896,
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
    },
}  # fmt: skip

SMOLVLM = {
    "model_type": "smolvlm", "architectures": ["SmolVLMForConditionalGeneration"], "scale_factor": 4,
    "tie_word_embeddings": False, "vocab_size": 49280,
    "text_config": {
        "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
        "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": False,
    },
    "vision_config": {
        "model_type": "smolvlm_vision", "hidden_size": 768, "intermediate_size": 3072, "image_size": 512,
        "num_attention_heads": 12, "num_hidden_layers": 12, "patch_size": 16,
    },
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": qwen3_vl(128, 256, 2, 2, 1, 64, 4, 2048),
    "cpu": qwen3_vl(512, 1536, 8, 4, 2, 256, 6, 151936),
    "qwen3_vl-2b": qwen3_vl(2048, 6144, 28, 16, 8, 1024, 24, 151936),
    "qwen3_vl-4b": qwen3_vl(2560, 9728, 36, 32, 8, 1024, 24, 151936),
    "qwen3_vl-8b": qwen3_vl(
        4096, 12288, 36, 32, 8, 1152, 27, 151936, tied=False,
        num_heads=16, intermediate_size=4304, deepstack_visual_indexes=[8, 16, 24],
    ),
    "gemma3-4b": GEMMA3_4B,
    "smolvlm-0.5b": SMOLVLM,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """tensors: from config.json. ids: its fields that hold an id, and the token. ends, bos, pad: tokens. named:
    attributes of the tokenizer that the processor reads. template: None for the built-in model's. processor: what
    preprocessor_config.json and processor_config.json hold."""

    tensors: Any
    ids: dict[str, str]
    ends: tuple[str, ...]
    pad: str
    bos: str | None
    processor: dict[str, dict[str, Any]]
    specials: tuple[str, ...] = ()
    named: dict[str, str] | None = None
    template: str | None = None


HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
QWEN_PIXELS = HALVES | {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "temporal_patch_size": 2,
    "merge_size": 2, "processor_class": "Qwen3VLProcessor",
}  # fmt: skip
TURNS = (
    "{{{{ '{bos}' }}}}{{% for m in messages %}}{{{{ '{begin}' + m['role'] + '\\n' }}}}"
    "{{% if m['content'] is string %}}{{{{ m['content'] }}}}{{% else %}}{{% for c in m['content'] %}}"
    "{{% if c['type'] == 'image' %}}{{{{ '{image}' }}}}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}"
    "{{% endif %}}{{{{ '{end}\\n' }}}}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{answer}' }}}}{{% endif %}}"
)
FAMILIES = {
    "qwen3_vl": Family(
        qwen3_vl_tensors,
        {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
         "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"},
        ("<|im_end|>", "<|endoftext|>"), "<|endoftext|>", None,
        {"preprocessor_config": QWEN_PIXELS | {"image_processor_type": "Qwen2VLImageProcessorFast"},
         "video_preprocessor_config": QWEN_PIXELS | {"video_processor_type": "Qwen3VLVideoProcessor"}},
    ),
    "gemma3": Family(
        gemma3_tensors,
        {"image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>",
         "eoi_token_index": "<end_of_image>"},
        ("<eos>", "<end_of_turn>"), "<pad>", "<bos>",
        {"preprocessor_config": HALVES | {
            "image_processor_type": "Gemma3ImageProcessor", "processor_class": "Gemma3Processor", "resample": 2,
            "image_seq_length": 256, "size": {"height": 896, "width": 896}},
         "processor_config": {"image_seq_length": 256, "processor_class": "Gemma3Processor"}},
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
         "<image_soft_token>"),
        {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        TURNS.format(bos="<bos>", begin="<start_of_turn>", image="<start_of_image>", end="<end_of_turn>",
                     answer="<start_of_turn>model\\n"),
    ),
    "smolvlm": Family(
        smolvlm_tensors,
        {"image_token_id": "<image>"},
        ("<end_of_utterance>",), "<pad>", "<|im_start|>",
        {"preprocessor_config": HALVES | {
            "image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor", "resample": 1,
            "do_image_splitting": True, "max_image_size": {"longest_edge": 512}, "size": {"longest_edge": 2048}},
         "processor_config": {"image_seq_len": 64, "processor_class": "SmolVLMProcessor"}},
        ("<unk>", "<|im_start|>", "<pad>", "<fake_token_around_image>", "<image>", "<end_of_utterance>",
         "<global-img>", "<video>", *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))),
        {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
         "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"},
        TURNS.format(bos="<|im_start|>", begin="", image="<image>", end="<end_of_utterance>", answer="Assistant:"),
    ),
}  # fmt: skip


def padded_tokenizer(family: Family, size: int) -> PreTrainedTokenizerFast:
    """The built-in model's tokenizer with the family's special tokens, and as many others as make `size` in all. Those
    spell something and stand in no merge, so that every engine can print them and none reads them."""
    spec = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = spec["model"]["vocab"]
    vocabulary |= {token["content"]: token["id"] for token in spec["added_tokens"]}  # so that they keep their ids
    for content in family.specials:
        if content not in vocabulary:
            vocabulary[content] = len(vocabulary)
            spec["added_tokens"].append(spec["added_tokens"][0] | {"content": content, "id": vocabulary[content]})
    vocabulary |= {f"Ġw{id}": id for id in range(len(vocabulary), size)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.json")
        file.write_text(json.dumps(spec), encoding="utf-8")
        named = {"eos_token": family.ends[0], "pad_token": family.pad, "bos_token": family.bos}
        return PreTrainedTokenizerFast(
            tokenizer_file=str(file), padding_side="left", extra_special_tokens=family.named or {}, **named
        )


def write_files(folder: Path, config: dict[str, Any], family: Family, source: Path | None) -> Any:
    """Everything but the weights; returns the tokenizer. source: a folder with a real one, and files of a processor."""
    size = config["text_config"]["vocab_size"]
    if source:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if len(tokenizer) > size:
            raise SystemExit(f"--tokenizer {source}: it has {len(tokenizer)} tokens and this shape {size} rows.")
    else:
        tokenizer = padded_tokenizer(family, size)
    tokenizer.save_pretrained(folder)
    for name, content in family.processor.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    if not source:
        template = family.template or (DEMO / "chat_template.jinja").read_text(encoding="utf-8")
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    for name in ("chat_template.jinja", "chat_template.json", *(f"{name}.json" for name in family.processor)):
        if source and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)

    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in family.ids.items()}
    ends = [tokenizer.convert_tokens_to_ids(token) for token in family.ends]
    generation = {"eos_token_id": ends, "pad_token_id": tokenizer.convert_tokens_to_ids(family.pad)}
    if family.bos:
        generation["bos_token_id"] = tokenizer.convert_tokens_to_ids(family.bos)
    config["text_config"]["eos_token_id"] = ends[0]
    (folder / "config.json").write_text(json.dumps(config | ids | {"eos_token_id": ends}, indent=1), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation | {"do_sample": False}), encoding="utf-8")
    return tokenizer


def draw(name: str, shape: tuple[int, ...], model_type: str, undrawn: list[int], key: mx.array) -> mx.array:
    """One tensor, float32. undrawn: rows of the vocabulary that are zero."""
    if name.endswith(".bias"):
        return mx.zeros(shape)
    if len(shape) == 1:  # a norm; Gemma's, but for its tower's, adds one
        return mx.zeros(shape) if model_type == "gemma3" and "vision_tower" not in name else mx.ones(shape)
    values = mx.random.normal(shape, key=key)
    if not name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return values * math.prod(shape[1:]) ** -0.5
    values[mx.array(undrawn)] = 0
    return values * SPREAD


def write_weights(folder: Path, shapes: Shapes, model_type: str, undrawn: list[int], dtype: mx.Dtype) -> None:
    """In files of some `SHARD_BYTES` with an index, one in memory at a time."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, dims in shapes.items():
        if filled > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += math.prod(dims) * dtype.size
    keys = dict(zip(shapes, mx.random.split(mx.random.key(0), len(shapes)), strict=True))
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in names:
            tensors[name] = draw(name, shapes[name], model_type, undrawn, keys[name]).astype(dtype)
            mx.eval(tensors[name])
        mx.save_safetensors(str(folder / file), tensors, metadata={"format": "pt"})
        del tensors
        mx.clear_cache()
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def make(folder: Path, shape: str, dtype: str, tokenizer: Path | None) -> Path:
    """Write the checkpoint of `SHAPES` into `folder`, where it is not there already. dtype: of its weights."""
    if (folder / "done").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(SHAPES[shape]) | {"dtype": dtype}
    family = FAMILIES[config["model_type"]]
    loaded = write_files(folder, config, family, tokenizer)
    rows = config["text_config"]["vocab_size"]
    undrawn = sorted({*loaded.added_tokens_decoder, *range(len(loaded), rows)})
    write_weights(folder, family.tensors(config), config["model_type"], undrawn, getattr(mx, dtype))
    (folder / "done").touch()
    return folder
