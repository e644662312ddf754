"""The only import of mlx-lm. Its internals may change with any minor version, which pyproject.toml pins."""

import resource
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from . import _runtime  # before MLX: it chooses the BLAS

# Importing mlx_lm lowers how many files this process may open, the hard limit too, which only root could raise again.
# The replacement holds during that import only, also for other threads.
_setrlimit = resource.setrlimit
resource.setrlimit = lambda *_: None

from mlx_lm import models
from mlx_lm.convert import QUANT_RECIPES as MIXED_RECIPES
from mlx_lm.convert import mixed_quant_predicate_builder as mixed_recipe
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import (
    ArraysCache,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)
from mlx_lm.models.gated_delta import gated_delta_update, normalize_qk
from mlx_lm.models.lfm2 import ShortConv
from mlx_lm.models.mla import MultiLinear
from mlx_lm.models.qwen3_5 import GatedDeltaNet
from mlx_lm.models.qwen3_next import Qwen3NextAttention as GatedAttention
from mlx_lm.models.qwen3_next import Qwen3NextSparseMoeBlock as SharedExpertMoE
from mlx_lm.models.rope_utils import initialize_rope
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear
from mlx_lm.utils import MODEL_REMAPPING, _get_classes, get_total_parameters, infer_quant_config
from mlx_lm.utils import _transform_awq_weights as unpack_awq

resource.setrlimit = _setrlimit


def lora_layers() -> tuple[Any, Any, Any, Any]:
    """LoRALinear, DoRALinear, LoRASwitchLinear and LoRAEmbedding: imported when an adapter is read, since mlx-lm's
    training comes with them."""
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

    return LoRALinear, DoRALinear, LoRASwitchLinear, LoRAEmbedding


def models_folder() -> Path:
    """The folder of mlx-lm's models, one file for each model type."""
    return Path(models.__file__).parent


def text_decoder(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """mlx-lm's `Model` and `ModelArgs` for a config.json. ValueError without one, or where it needs another package."""
    try:
        return _get_classes(dict(config))
    except SystemExit:  # olmo's answer to a missing package
        raise ValueError(f"mlx-lm's {config['model_type']} needs a package that is not installed") from None


def use_functions(layer: Any, functions: Mapping[str, Callable[..., Any]]) -> None:
    """Let this layer call these functions where it calls mlx-lm's of their names, if it does. Its class becomes a
    subclass with other globals: mlx-lm's classes and modules stay as they are."""
    kind: Any = type(layer)
    call = kind.__call__
    if isinstance(call, FunctionType) and not functions.keys().isdisjoint(call.__code__.co_names):
        layer.__class__ = _with_functions(kind, tuple(functions.items()))


@cache
def _with_functions(kind: Any, functions: tuple[tuple[str, Callable[..., Any]], ...]) -> Any:
    call = kind.__call__
    namespace = call.__globals__ | dict(functions)
    ours = FunctionType(call.__code__, namespace, call.__name__, call.__defaults__, call.__closure__)
    ours.__kwdefaults__ = call.__kwdefaults__
    return type(kind.__name__, (kind,), {"__call__": ours, "__module__": kind.__module__})
