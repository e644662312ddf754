"""Vision-language models on Apple silicon with MLX: pictures, video and text in, text out, streamed and batched."""

import sys

if sys.argv[:1] == ["-m"] and any(argument.partition(".")[0] == "mlx_vlgen" for argument in sys.orig_argv):
    # `python -m mlx_vlgen…` imports the package before the module that it runs. Ctrl-C must work from here on.
    from .entry import handle_interrupts

    handle_interrupts()

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> its module, which is imported at the first use of the name: `import mlx_vlgen` must stay instant.
_MODULES = {
    "AutoModelForCausalLM": "hf.auto",
    "AutoModelForImageTextToText": "hf.auto",
    "AutoModelForMultimodalLM": "hf.auto",
    "AutoProcessor": "hf.auto",
    "AutoTokenizer": "hf.auto",
    "BatchResponse": "results",
    "BatchStats": "results",
    "GenerationResult": "results",
    "LogitsProcessorList": "hf.lists",
    "MediaInputs": "inputs.prompt",
    "PrefixCache": "engine.store",
    "Request": "engine.request",
    "SamplingParams": "engine.params",
    "StoppingCriteriaList": "hf.lists",
    "TokenIterator": "engine.iterator",
    "apply_chat_template": "prompt_utils",
    "batch_generate": "generate",
    "generate": "generate",
    "load": "loading",
    "load_image": "inputs.media",
    "stream_generate": "generate",
}

__all__ = [
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoProcessor",
    "AutoTokenizer",
    "BatchResponse",
    "BatchStats",
    "GenerationResult",
    "LogitsProcessorList",
    "MediaInputs",
    "PrefixCache",
    "Request",
    "SamplingParams",
    "StoppingCriteriaList",
    "TokenIterator",
    "__version__",
    "apply_chat_template",
    "batch_generate",
    "generate",
    "load",
    "load_image",
    "stream_generate",
]

if TYPE_CHECKING:
    from .engine.iterator import TokenIterator
    from .engine.params import SamplingParams
    from .engine.request import Request
    from .engine.store import PrefixCache
    from .generate import batch_generate, generate, stream_generate
    from .hf.auto import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoProcessor,
        AutoTokenizer,
    )
    from .hf.lists import LogitsProcessorList, StoppingCriteriaList
    from .inputs.media import load_image
    from .inputs.prompt import MediaInputs
    from .loading import load
    from .prompt_utils import apply_chat_template
    from .results import BatchResponse, BatchStats, GenerationResult


def __getattr__(name: str) -> Any:
    if name == "grounding":
        return import_module(".grounding", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


class _Package(ModuleType):
    """`generate` is a function and a module of this package, since `python -m mlx_vlgen.generate` runs the module.

    The import system sets the name to the module once that is imported. This class leaves it to the function.
    """

    @property
    def generate(self) -> Any:
        return __getattr__("generate")

    @generate.setter
    def generate(self, module: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package
