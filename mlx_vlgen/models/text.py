"""Text-only checkpoints: any text decoder of mlx-lm behind the same contract as a vision-language family."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._mlx_lm import text_decoder
from .._runtime import mx, nn
from ..errors import LoadError, PromptError, UnsupportedError
from ..inputs.prompt import Media, Prompt
from . import PROVED_TEXT
from .backbone import decode, layer_kinds, logits, pick
from .base import Embedded, Features, LayerKind, Model
from .gemma import scaled


class TextModel(Model):
    """A text decoder of mlx-lm. Its parameters keep mlx-lm's names (`model.layers.0…`, `lm_head`)."""

    text_prefix = ""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        decoder, arguments = text_decoder(config)
        # Not one of MLX's children, which would put its name before all others: they hang on this module instead.
        object.__setattr__(self, "_decoder", decoder(arguments.from_dict(text_arguments(config))))
        self._adopt()

    def _adopt(self) -> None:
        for name in [name for name in self if not name.startswith("_") and name not in self._decoder]:
            del self[name]
        for name, child in self._decoder.items():
            self[name] = child

    def update(self, parameters: dict[str, Any], strict: bool = True) -> nn.Module:
        super().update(parameters, strict)
        return self._hand_down()

    def update_modules(self, modules: dict[str, Any], strict: bool = True) -> nn.Module:
        super().update_modules(modules, strict)
        return self._hand_down()

    def _hand_down(self) -> nn.Module:
        """What was replaced here is replaced in the decoder, lest it runs the old one, or keeps it in memory."""
        for name in self._decoder:
            self._decoder[name] = self[name]
        return self

    def text_decoder(self) -> nn.Module:
        return self._decoder

    def rename(self, key: str) -> str:
        """mlx-vlm writes a text decoder as if it were a part of a model that sees; some of mlx-lm's decoders are."""
        return key if "language_model" in self._decoder else key.removeprefix("language_model.")

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        renamed = {self.rename(key): value for key, value in weights.items()}
        if not hasattr(self._decoder, "sanitize"):
            return renamed
        renamed = self._decoder.sanitize(renamed)
        self._adopt()  # gemma3_text drops its lm_head there when the checkpoint has none
        return renamed

    def cache_layout(self) -> list[LayerKind]:
        return layer_kinds(self._decoder)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        raise UnsupportedError(
            f"This is a text-only model ({self.config['model_type']}): it takes no pictures or videos."
        )

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        if prompt.media or features:
            raise PromptError(
                f"This is a text-only model ({self.config['model_type']}): leave the picture or video out, "
                "or load a vision-language model."
            )
        return Embedded(mx.array(prompt.tokens)[None])

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        model_type = self.config["model_type"]
        if model_type not in PROVED_TEXT:
            # Its head may scale or cap the logits: run it whole.
            return pick(self._decoder(inputs.tokens, cache=cache), at)
        if model_type == "gemma3_text":
            inputs = replace(inputs, embeds=scaled(self.model.embed_tokens(inputs.tokens)))
            return logits(self, self.last_norm(pick(decode(self.model, inputs, cache), at)))
        if inputs.watch is not None:
            return logits(self, self.last_norm(pick(decode(self.model, inputs, cache), at)))
        h = pick(self.model(inputs.tokens, cache), at)
        return logits(self, h)

    def last_norm(self, h: mx.array) -> mx.array:
        if self.config["model_type"] not in PROVED_TEXT:
            return super().last_norm(h)
        return self.model.embedding_norm(h) if "embedding_norm" in self.model else self.model.norm(h)


# What transformers assumes where config.json is silent and mlx-lm assumes something else or nothing.
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_GEMMA = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA | {"intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": _LLAMA
    | {
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": _LLAMA
    | {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "rope_theta": 1e4,
    },
    "qwen3": {"tie_word_embeddings": False},
    "qwen3_moe": {
        "tie_word_embeddings": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": False,
    },
    "ministral3": {"head_dim": 128, "max_position_embeddings": 262144, "tie_word_embeddings": False},
    "lfm2": {
        "vocab_size": 65536,
        "max_position_embeddings": 128000,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
    "gemma": _GEMMA
    | {
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA | {"vocab_size": 262208},
    "gemma4_text": _GEMMA
    | {
        "vocab_size": 262144,
        "num_hidden_layers": 30,
        "sliding_window": 512,
        "final_logit_softcapping": None,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
    },
}


def text_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """A text decoder's config.json under the names of transformers 4.x, which mlx-lm reads, whichever version wrote it.

    LoadError where the configuration asks for what mlx-lm's decoder would silently leave out.
    """
    model_type = config["model_type"]
    args = _DEFAULTS.get(model_type, {}) | config
    rope = args.get("rope_parameters") or {}
    by_layer = {"full_attention", "sliding_attention"} & rope.keys()
    if rope and not by_layer:
        args |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        if rope.get("rope_type", "default") != "default":
            args["rope_scaling"] = rope
    scaling = args.get("rope_scaling") or {}
    if model_type in _LEFT_OUT and "dynamic" in (scaling.get("rope_type"), scaling.get("type")):
        # It changes nothing within max_position_embeddings, and mlx-lm's takes no batch.
        args["rope_scaling"] = None
    if "num_local_experts" in args:
        args.setdefault("num_experts", args["num_local_experts"])
    if model_type == "qwen3_moe":
        args.setdefault("head_dim", args["hidden_size"] // args["num_attention_heads"])
    if model_type == "lfm2":
        args.setdefault("block_dim", args["hidden_size"])
    if model_type in ("qwen3_5", "qwen3_5_moe") and "full_attention" in (kinds := args.get("layer_types") or ()):
        args["full_attention_interval"] = kinds.index("full_attention") + 1
    if model_type == "gemma3_text":
        _gemma3_arguments(args, rope)
    if model_type == "gemma4_text":
        _gemma4_arguments(args)
    if reason := next((reason for reason in _LEFT_OUT.get(model_type, _nothing)(args) if reason), None):
        raise LoadError(f"This {model_type} checkpoint has {reason}, which its decoder here does not compute.")
    return args


def _gemma3_arguments(args: dict[str, Any], rope: Mapping[str, Any]) -> None:
    if full := rope.get("full_attention"):
        args["rope_theta"] = full["rope_theta"]
        if full.get("rope_type", "default") != "default":
            args["rope_scaling"] = full
    if sliding := rope.get("sliding_attention"):
        args["rope_local_base_freq"] = sliding["rope_theta"]
    kinds = args.get("layer_types")
    if kinds and "full_attention" in kinds:
        args["sliding_window_pattern"] = kinds.index("full_attention") + 1
    elif "_sliding_window_pattern" in args:
        args.setdefault("sliding_window_pattern", args["_sliding_window_pattern"])


def _gemma4_arguments(args: dict[str, Any]) -> None:
    count = args["num_hidden_layers"]
    kinds = args.get("layer_types") or ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(count)]
    args["layer_types"] = kinds = [*kinds[:-1], "full_attention"]
    if layers := args.get("per_layer_config"):
        full = layers.get(str(count - 1), {})
        args["global_head_dim"] = full.get("head_dim", args["head_dim"])
        args["num_global_key_value_heads"] = full.get("num_key_value_heads")


def _nothing(args: Mapping[str, Any]) -> list[str | None]:
    return []


def _left_out_of_llama(args: Mapping[str, Any]) -> list[str | None]:
    return [_other_activation(args.get("hidden_act", "silu"), "silu", "swish")]


def _left_out_of_mistral(args: Mapping[str, Any]) -> list[str | None]:
    window = args.get("sliding_window")
    sliding = window is not None and window < args["max_position_embeddings"]
    return [*_left_out_of_llama(args), "a sliding window" if sliding else None]


def _left_out_of_qwen(args: Mapping[str, Any]) -> list[str | None]:
    first = args.get("max_window_layers", 0)
    sliding = args.get("use_sliding_window") and args.get("sliding_window")
    kinds = args.get("layer_types") or ["sliding_attention"] * (args["num_hidden_layers"] - first if sliding else 0)
    return [*_left_out_of_llama(args), "sliding-window layers" if "sliding_attention" in kinds else None]


def _left_out_of_qwen3_5(args: Mapping[str, Any]) -> list[str | None]:
    layers, interval = args["num_hidden_layers"], args.get("full_attention_interval", 4)
    regular = ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(layers)]
    missing = {"linear_attention", "full_attention"} - set(regular)
    return [
        *_left_out_of_llama(args),
        "an irregular order of linear and full layers" if (args.get("layer_types") or regular) != regular else None,
        f"no {missing.pop()} layer" if missing else None,
    ]


def _left_out_of_ministral3(args: Mapping[str, Any]) -> list[str | None]:
    rope = args.get("rope_parameters") or {}
    scaled = {"llama_4_scaling_beta", "original_max_position_embeddings"} <= rope.keys()
    yarn = rope.get("attention_factor") is None and rope.get("truncate", True)
    return [
        *_left_out_of_mistral(args),
        None if scaled else "no scale of its queries",
        None if yarn else "a YaRN with attention_factor or truncate",
    ]


def _left_out_of_gemma3(args: Mapping[str, Any]) -> list[str | None]:
    layers, pattern = args.get("num_hidden_layers", 26), args.get("sliding_window_pattern", 6)
    regular = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]
    capped = args.get("final_logit_softcapping") or args.get("attn_logit_softcapping")
    return [
        _other_activation(args.get("hidden_activation", "gelu_pytorch_tanh"), "gelu_pytorch_tanh"),
        "an irregular order of sliding and full layers" if args.get("layer_types", regular) != regular else None,
        "no full-attention layer" if layers < pattern else None,
        "soft-capped logits" if capped else None,
        "two-way attention" if args.get("use_bidirectional_attention") else None,
    ]


def _left_out_of_gemma4(args: Mapping[str, Any]) -> list[str | None]:
    full = {str(i) for i, kind in enumerate(args["layer_types"]) if kind == "full_attention"}
    layers = args.get("per_layer_config") or {}
    known = {"head_dim", "num_key_value_heads"} if args.get("attention_k_eq_v") else {"head_dim"}
    own = list(layers.values())
    regular = not layers or (layers.keys() == full and own[0].keys() <= known and own == own[:1] * len(own))
    ropes = {rope.get("rope_type", "default") for rope in (args.get("rope_parameters") or {}).values()}
    return [
        _other_activation(args.get("hidden_activation", "gelu_pytorch_tanh"), "gelu_pytorch_tanh"),
        "biases in its attention" if args.get("attention_bias") else None,
        "two-way attention of all tokens" if args.get("use_bidirectional_attention") == "all" else None,
        None if regular else "layers of sizes of their own",
        None if ropes <= {"default", "proportional"} else "scaled rotary positions",
    ]


def _left_out_of_lfm2(args: Mapping[str, Any]) -> list[str | None]:
    tied = args.get("tie_word_embeddings", args.get("tie_embedding", True))
    return [None if tied else "an output layer of its own"]


def _left_out_of_glm4(args: Mapping[str, Any]) -> list[str | None]:
    tied = args.get("tie_word_embeddings")
    return [*_left_out_of_llama(args), "an output layer that is its embeddings" if tied else None]


def _left_out_of_glm4_moe(args: Mapping[str, Any]) -> list[str | None]:
    return [*_left_out_of_glm4(args), "experts in groups" if args.get("n_group", 1) > 1 else None]


def _other_activation(name: str, *known: str) -> str | None:
    return None if name in known else f"the activation {name!r}"


_LEFT_OUT: dict[str, Callable[[Mapping[str, Any]], list[str | None]]] = {
    "llama": _left_out_of_llama,
    "mistral": _left_out_of_mistral,
    "qwen2": _left_out_of_qwen,
    "qwen3": _left_out_of_qwen,
    "qwen3_moe": _left_out_of_qwen,
    "qwen3_5": _left_out_of_qwen3_5,
    "qwen3_5_moe": _left_out_of_qwen3_5,
    "ministral3": _left_out_of_ministral3,
    "gemma3_text": _left_out_of_gemma3,
    "gemma4_text": _left_out_of_gemma4,
    "lfm2": _left_out_of_lfm2,
    "glm4": _left_out_of_glm4,
    "glm4_moe": _left_out_of_glm4_moe,
}
