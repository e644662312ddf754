"""What a text decoder's configuration may ask for and its network here would silently leave out: one function a
decoder, of its arguments as `decoders.text_arguments` gives them, which says what it is; None where it is nothing."""

from collections.abc import Mapping
from typing import Any

from .configuration import rope_type

Arguments = Mapping[str, Any]


def is_plain(scaling: Mapping[str, Any] | None) -> bool:
    """Whether rotary positions are not stretched: M-RoPE's are not, either."""
    return rope_type(scaling or {}) in ("default", "mrope")


def _stretched(args: Arguments) -> str | None:
    return None if is_plain(args.get("rope_scaling")) else "scaled rotary positions"


def llama(args: Arguments) -> list[str | None]:
    return [_other_activation(args.get("hidden_act", "silu"), "silu", "swish")]


def mistral(args: Arguments) -> list[str | None]:
    window = args.get("sliding_window")
    sliding = window is not None and window < args["max_position_embeddings"]
    computed = args.get("layer_types") == ["sliding_attention"] * args.get("num_hidden_layers", 0)
    return [*llama(args), "a sliding window" if sliding and not computed else None]


def qwen(args: Arguments) -> list[str | None]:
    first = args.get("max_window_layers", 0)
    sliding = args.get("use_sliding_window") and args.get("sliding_window")
    layer_types = args.get("layer_types")
    if not layer_types:
        layer_types = ["sliding_attention"] * (args["num_hidden_layers"] - first if sliding else 0)
    return [*llama(args), "sliding-window layers" if "sliding_attention" in layer_types else None]


def qwen3_5(args: Arguments) -> list[str | None]:
    layers, interval = args["num_hidden_layers"], args.get("full_attention_interval", 4)
    regular = ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(layers)]
    missing = {"linear_attention", "full_attention"} - set(regular)
    return [
        *llama(args),
        "an irregular order of linear and full layers" if (args.get("layer_types") or regular) != regular else None,
        f"no {missing.pop()} layer" if missing else None,
    ]


def qwen4_exp(args: Arguments) -> list[str | None]:
    kinds = {*(args["layer_types"] or ("linear_attention",))}
    unknown = kinds - {"linear_attention", "indexed_attention"}
    fields = ("n_heads", "kv_heads", "head_dim", "budget", "compress_ratio")
    lacks = [f"indexer_{field}" for field in fields if not args[f"indexer_{field}"]]
    ngrams = args["ple_layer_ids"] or ()
    linear = all(args["layer_types"][layer - 1] == "linear_attention" for layer in ngrams if args["layer_types"])
    return [
        *llama(args),
        _other_activation(args["output_gate_type"] or args["hidden_act"], "silu", "sigmoid"),
        f"{unknown.pop()} layers" if unknown else None,
        f"no {lacks[0]}" if lacks else None,
        "more than one head of keys in its indexer" if args["indexer_kv_heads"] not in (None, 1) else None,
        None if linear else "n-grams in a layer with attention",
        "n-grams and no end token" if ngrams and not args["eos_token_id"] else None,
    ]


def ministral3(args: Arguments) -> list[str | None]:
    rope = args.get("rope_parameters") or {}
    scaled = {"llama_4_scaling_beta", "original_max_position_embeddings"} <= rope.keys()
    yarn = rope.get("attention_factor") is None and rope.get("truncate", True)
    return [
        *mistral(args),
        None if scaled else "no scale of its queries",
        None if yarn else "a YaRN with attention_factor or truncate",
    ]


def llama4(args: Arguments) -> list[str | None]:
    unknown = {*(args.get("layer_types") or ())} - {"full_attention", "chunked_attention"}
    chunked = "chunked_attention" in (args.get("layer_types") or ())
    scaled = rope_type(args.get("rope_scaling") or {}) not in ("default", "llama3")
    return [
        _other_activation(args["hidden_act"], "silu"),
        f"{unknown.pop()} layers" if unknown else None,
        "chunked layers and no attention_chunk_size" if chunked and not args["attention_chunk_size"] else None,
        "scaled rotary positions" if scaled else None,
    ]


def gemma3(args: Arguments) -> list[str | None]:
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


def gemma3n(args: Arguments) -> list[str | None]:
    count, known = args["num_hidden_layers"], {"full_attention", "sliding_attention"}
    types = args["layer_types"] or ["sliding_attention" if (i + 1) % 5 else "full_attention" for i in range(count)]
    with_keys = {*types[: count - args["num_kv_shared_layers"]]}
    irregular = len(types) != count or not known >= {*types} == with_keys
    return [
        _other_activation(args["hidden_activation"], "gelu_pytorch_tanh"),
        _stretched(args),
        "biases in its attention" if args.get("attention_bias") else None,
        "layers that attend to keys which no layer has" if irregular else None,
        None if args.get("tie_word_embeddings", True) else "an untied output layer",
    ]


def gemma4(args: Arguments) -> list[str | None]:
    full = {str(i) for i, kind in enumerate(args["layer_types"]) if kind == "full_attention"}
    layers = args.get("per_layer_config") or {}
    known = {"head_dim", "num_key_value_heads"} if args.get("attention_k_eq_v") else {"head_dim"}
    sizes = list(layers.values())
    regular = not layers or (layers.keys() == full and sizes[0].keys() <= known and sizes == sizes[:1] * len(sizes))
    ropes = {rope.get("rope_type", "default") for rope in (args.get("rope_parameters") or {}).values()}
    return [
        _other_activation(args.get("hidden_activation", "gelu_pytorch_tanh"), "gelu_pytorch_tanh"),
        "biases in its attention" if args.get("attention_bias") else None,
        "two-way attention of all tokens" if args.get("use_bidirectional_attention") == "all" else None,
        None if regular else "layers of unlike sizes",
        None if ropes <= {"default", "proportional"} else "scaled rotary positions",
    ]


def hunyuan(args: Arguments) -> list[str | None]:
    experts, shared = args.get("num_experts") or 1, args.get("use_cla")
    return [
        *llama(args),
        "experts" if experts != 1 else None,
        "layers that share keys and values" if shared else None,
    ]


def molmo2(args: Arguments) -> list[str | None]:
    norm = args.get("qk_norm_type", "qwen3")
    return [
        *llama(args),
        _stretched(args),
        None if norm in ("qwen3", "olmo") else f"norms of the type {norm!r}",
        "an output layer that is its embeddings" if args.get("tie_word_embeddings") else None,
    ]


def muse_glimmer(args: Arguments) -> list[str | None]:
    unknown = {*args["layer_types"]} - {"full_attention", "sliding_attention"}
    return [
        _other_activation(args.get("hidden_activation", "silu"), "silu"),
        _stretched(args),
        f"{unknown.pop()} layers" if unknown else None,
        "biases in its attention" if args.get("attention_bias") else None,
    ]


def phi3(args: Arguments) -> list[str | None]:
    stretched = rope_type(args.get("rope_scaling") or {}) not in ("default", "longrope", "su")
    return [*llama(args), "scaled rotary positions of another kind than LongRoPE" if stretched else None]


def phi4(args: Arguments) -> list[str | None]:
    window = args.get("sliding_window")
    slides = window is not None and window < args["max_position_embeddings"]
    return [*phi3(args), "a sliding window" if slides else None]


def lfm2(args: Arguments) -> list[str | None]:
    tied = args.get("tie_word_embeddings", args.get("tie_embedding", True))
    return [None if tied else "an untied output layer", _stretched(args)]


def ernie4_5(args: Arguments) -> list[str | None]:
    return [*llama(args), _stretched(args)]


def lfm3(args: Arguments) -> list[str | None]:
    ropes = {rope.get("rope_type", "default") for rope in (args.get("rope_parameters") or {}).values()}
    return [None if ropes <= {"default", "proportional"} else "scaled rotary positions"]


def glm4(args: Arguments) -> list[str | None]:
    tied = args.get("tie_word_embeddings")
    return [*llama(args), "an output layer that is its embeddings" if tied else None, _stretched(args)]


def glm4_moe(args: Arguments) -> list[str | None]:
    return [*glm4(args), "experts in groups" if args.get("n_group", 1) > 1 else None]


def glm5_next(args: Arguments) -> list[str | None]:
    layers = range(args["num_hidden_layers"])
    kinds = args["layer_types"] or [None if layer % 4 == 3 else "linear_attention" for layer in layers]
    shared = [kind == "shared" for kind in args["indexer_types"] or ()]
    alone = (
        shared[layer] and kinds[layer] != "linear_attention"
        and (layer == 0 or kinds[layer - 1] == "linear_attention" or shared[layer - 1])
        for layer in layers
        if shared
    )  # fmt: skip
    unknown = {*kinds} - {"linear_attention", "indexed_attention", None}
    few = args["num_key_value_heads"] not in (None, args["num_attention_heads"])
    return [
        *llama(args),
        f"{unknown.pop()} layers" if unknown else None,
        "rotary positions" if args["qk_rope_head_dim"] else None,
        "heads that share keys" if few else None,
        "experts in groups" if args["n_group"] > 1 else None,
        None if args["index_kpool_always_select_tail"] else "an indexer that leaves a token's block out",
        "a budget of its indexer that is no whole number of blocks"
        if args["index_topk"] % args["index_kpool"]
        else None,
        "an indexer to share, and none directly before it" if any(alone) else None,
    ]


def _other_activation(name: str, *known: str) -> str | None:
    return None if name in known else f"the activation {name!r}"


def granite(args: Arguments) -> list[str | None]:
    head = args.get("head_dim") or args["hidden_size"] // args["num_attention_heads"]
    regular = head * args["num_attention_heads"] == args["hidden_size"]
    return [*llama(args), None if regular else "heads of another size"]


def cohere2(args: Arguments) -> list[str | None]:
    layers, pattern = args["num_hidden_layers"], args.get("sliding_window_pattern", 4)
    regular = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)]
    return [
        *llama(args),
        "an irregular order of sliding and full layers" if (args.get("layer_types") or regular) != regular else None,
        "no full-attention layer" if layers < pattern else None,
        "no sliding window" if args.get("sliding_window") is None else None,
        _stretched(args),
        None if args.get("tie_word_embeddings", True) else "an untied output layer",
    ]


def gemma(args: Arguments) -> list[str | None]:
    return [
        _stretched(args),
        "two-way attention" if args.get("use_bidirectional_attention") else None,
    ]


def deepseek(args: Arguments) -> list[str | None]:
    grouped = args.get("topk_method", "greedy") != "greedy" and (args.get("n_group") or 1) > 1
    return [
        *llama(args),
        _stretched(args),
        "latent keys and values" if args.get("use_mla") else None,
        _irregular_experts(args),
        "experts in groups" if grouped else None,
        "a scale of its experts" if args.get("routed_scaling_factor", 1.0) != 1.0 else None,
        "weights of experts that sum to one" if args.get("norm_topk_prob") else None,
        "scores of experts by sigmoid" if args.get("scoring_func", "softmax") != "softmax" else None,
        "an output layer that is its embeddings" if args.get("tie_word_embeddings") else None,
    ]


def kimi_k2(args: Arguments) -> list[str | None]:
    stretched = rope_type(args.get("rope_scaling") or {}) not in ("default", "yarn")
    return [
        *llama(args),
        "scaled rotary positions" if stretched else None,
        None if args.get("rope_interleave", True) else "rotary positions of two halves",
        "experts in groups" if (args.get("n_group") or 1) > 1 else None,
        "scores of experts that are no sigmoid" if args.get("scoring_func", "sigmoid") != "sigmoid" else None,
        "experts chosen in another way" if args.get("topk_method", "noaux_tc") != "noaux_tc" else None,
        _irregular_experts(args),
        "an output layer that is its embeddings" if args.get("tie_word_embeddings") else None,
    ]


def _irregular_experts(args: Arguments) -> str | None:
    layers, dense = args["num_hidden_layers"], args["first_k_dense_replace"]
    regular = ["dense"] * dense + ["sparse"] * (layers - dense)
    return None if args.get("mlp_layer_types", regular) == regular else "an irregular order of dense and sparse layers"
