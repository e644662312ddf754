"""The registry: which class runs a checkpoint's `model_type`, imported only when it is asked for."""

import difflib
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LoadError
from .configuration import max_positions, thinker_config

if TYPE_CHECKING:
    from ..inputs.processor import Processor
    from .base import Model


@dataclass(frozen=True)
class Family:
    """Where a family's two classes are, each as "module:Class"."""

    model: str
    processor: str

    def model_class(self) -> "type[Model]":
        return _resolve(self.model)

    def processor_class(self) -> "type[Processor]":
        return _resolve(self.processor)

    def load_processor(self, folder: Path, config: Mapping[str, Any]) -> "Processor":
        """The processor of the checkpoint in `folder`, whose config.json is `config`."""
        processor = self.processor_class().from_folder(folder, config)
        processor.max_positions = max_positions(config)
        return processor


def _resolve(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


_QWEN2_VL_PROCESSOR = "mlx_vlgen.inputs.qwen2_vl:Qwen2VLProcessor"
_QWEN3_VL = Family("mlx_vlgen.models.qwen3_vl:Qwen3VL", "mlx_vlgen.inputs.qwen_vl:Qwen3VLProcessor")
_QWEN3_5 = Family("mlx_vlgen.models.qwen3_5:Qwen3_5", "mlx_vlgen.inputs.qwen_vl:Qwen3VLProcessor")
_GLM4V = Family("mlx_vlgen.models.glm4v:Glm4v", "mlx_vlgen.inputs.glm4v:Glm4vProcessor")
_INTERNVL = Family("mlx_vlgen.models.internvl:InternVL", "mlx_vlgen.inputs.internvl:InternVLProcessor")
_QWEN2_5_OMNI = Family("mlx_vlgen.models.qwen2_5_omni:Qwen2_5Omni", "mlx_vlgen.inputs.omni:Qwen2_5OmniProcessor")
_UNLIMITED_OCR = Family(
    "mlx_vlgen.models.unlimited_ocr:UnlimitedOcr", "mlx_vlgen.inputs.deepseek_ocr:UnlimitedOcrProcessor"
)
_QWEN3_OMNI = Family("mlx_vlgen.models.qwen3_omni_moe:Qwen3OmniMoe", "mlx_vlgen.inputs.omni:Qwen3OmniProcessor")
_PHI4 = Family(
    "mlx_vlgen.models.phi4_multimodal:Phi4Multimodal", "mlx_vlgen.inputs.phi4_multimodal:Phi4MultimodalProcessor"
)
_LFM2_VL = Family("mlx_vlgen.models.lfm2_vl:Lfm2VL", "mlx_vlgen.inputs.lfm2_vl:Lfm2VLProcessor")

FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family("mlx_vlgen.models.qwen2_vl:Qwen2VL", _QWEN2_VL_PROCESSOR),
    "qwen2_5_vl": Family("mlx_vlgen.models.qwen2_5_vl:Qwen2_5_VL", _QWEN2_VL_PROCESSOR),
    "qwen2_5_omni": _QWEN2_5_OMNI,
    "qwen2_5_omni_thinker": _QWEN2_5_OMNI,  # what of it writes text, saved alone
    "qwen3_omni_moe": _QWEN3_OMNI,
    "qwen3_omni_moe_thinker": _QWEN3_OMNI,
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_moe": _QWEN3_VL,
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
    "qwen4_exp": Family("mlx_vlgen.models.qwen4_exp:Qwen4Exp", "mlx_vlgen.inputs.qwen_vl:Qwen3VLProcessor"),
    "llava": Family("mlx_vlgen.models.llava:Llava", "mlx_vlgen.inputs.llava:LlavaProcessor"),
    "llava_next": Family("mlx_vlgen.models.llava_next:LlavaNext", "mlx_vlgen.inputs.llava_next:LlavaNextProcessor"),
    "granite4_vision": Family(
        "mlx_vlgen.models.granite4_vision:Granite4Vision",
        "mlx_vlgen.inputs.granite4_vision:Granite4VisionProcessor",
    ),
    "minicpmv4_6": Family("mlx_vlgen.models.minicpmv:MiniCPMV4_6", "mlx_vlgen.inputs.minicpmv:MiniCPMV4_6Processor"),
    "minicpmv4_7": Family("mlx_vlgen.models.minicpmv:MiniCPMV4_7", "mlx_vlgen.inputs.minicpmv:MiniCPMV4_7Processor"),
    "llava_onevision": Family(
        "mlx_vlgen.models.llava_onevision:LlavaOnevision",
        "mlx_vlgen.inputs.llava_onevision:LlavaOnevisionProcessor",
    ),
    "fast_vlm": Family("mlx_vlgen.models.fast_vlm:FastVLM", "mlx_vlgen.inputs.fast_vlm:FastVLMProcessor"),
    "pixtral": Family("mlx_vlgen.models.pixtral:Pixtral", "mlx_vlgen.inputs.pixtral:PixtralProcessor"),
    "mistral3": Family("mlx_vlgen.models.mistral3:Mistral3", "mlx_vlgen.inputs.pixtral:PixtralProcessor"),
    "lighton_ocr": Family(
        "mlx_vlgen.models.lighton_ocr:LightOnOcr", "mlx_vlgen.inputs.lighton_ocr:LightOnOcrProcessor"
    ),
    "unlimited_ocr": _UNLIMITED_OCR,
    "unlimited-ocr": _UNLIMITED_OCR,  # name of the first release, with remote code
    "deepseek_ocr2": Family(
        "mlx_vlgen.models.deepseek_ocr2:DeepseekOcr2", "mlx_vlgen.inputs.deepseek_ocr:DeepseekOcr2Processor"
    ),
    "idefics2": Family("mlx_vlgen.models.idefics2:Idefics2", "mlx_vlgen.inputs.idefics2:Idefics2Processor"),
    "kimi_k25": Family("mlx_vlgen.models.kimi_k25:KimiK25", "mlx_vlgen.inputs.kimi_k25:KimiK25Processor"),
    "idefics3": Family("mlx_vlgen.models.idefics3:Idefics3", "mlx_vlgen.inputs.idefics3:Idefics3Processor"),
    "smolvlm": Family("mlx_vlgen.models.idefics3:Idefics3", "mlx_vlgen.inputs.smolvlm:SmolVLMProcessor"),
    "molmo2": Family("mlx_vlgen.models.molmo2:Molmo2", "mlx_vlgen.inputs.molmo2:Molmo2Processor"),
    "ovis2": Family("mlx_vlgen.models.ovis2:Ovis2", "mlx_vlgen.inputs.ovis2:Ovis2Processor"),
    "gemma3": Family("mlx_vlgen.models.gemma3:Gemma3", "mlx_vlgen.inputs.gemma3:Gemma3Processor"),
    "gemma3n": Family("mlx_vlgen.models.gemma3n:Gemma3n", "mlx_vlgen.inputs.gemma3n:Gemma3nProcessor"),
    "gemma4": Family("mlx_vlgen.models.gemma4:Gemma4", "mlx_vlgen.inputs.gemma4:Gemma4Processor"),
    "gemma4_unified": Family(
        "mlx_vlgen.models.gemma4_unified:Gemma4Unified", "mlx_vlgen.inputs.gemma4_unified:Gemma4UnifiedProcessor"
    ),
    "paligemma": Family("mlx_vlgen.models.paligemma:PaliGemma", "mlx_vlgen.inputs.paligemma:PaliGemmaProcessor"),
    "glm4v": _GLM4V,
    "glm4v_moe": _GLM4V,
    "glm46v": _GLM4V,
    "glm5_next": Family("mlx_vlgen.models.glm5_next:Glm5Next", "mlx_vlgen.inputs.glm5_next:Glm5NextProcessor"),
    "glm_ocr": Family("mlx_vlgen.models.glm_ocr:GlmOcr", "mlx_vlgen.inputs.glm4v:Glm4vProcessor"),
    "paddleocr_vl": Family(
        "mlx_vlgen.models.paddleocr_vl:PaddleOCRVL", "mlx_vlgen.inputs.paddleocr_vl:PaddleOCRVLProcessor"
    ),
    "ernie4_5_vl_moe": Family(
        "mlx_vlgen.models.ernie4_5_vl_moe:Ernie4_5VLMoe", "mlx_vlgen.inputs.ernie4_5_vl_moe:Ernie4_5VLMoeProcessor"
    ),
    "hunyuan_vl": Family("mlx_vlgen.models.hunyuan_vl:HunyuanVL", "mlx_vlgen.inputs.hunyuan_vl:HunyuanVLProcessor"),
    "internvl": _INTERNVL,
    "internvl_chat": _INTERNVL,  # name of the first releases, with remote code
    "aya_vision": Family("mlx_vlgen.models.aya_vision:AyaVision", "mlx_vlgen.inputs.aya_vision:AyaVisionProcessor"),
    "cohere2_vision": Family(
        "mlx_vlgen.models.aya_vision:Cohere2Vision", "mlx_vlgen.inputs.aya_vision:Cohere2VisionProcessor"
    ),
    "llama4": Family("mlx_vlgen.models.llama4:Llama4", "mlx_vlgen.inputs.llama4:Llama4Processor"),
    "mllama": Family("mlx_vlgen.models.mllama:Mllama", "mlx_vlgen.inputs.mllama:MllamaProcessor"),
    "lfm2_vl": _LFM2_VL,
    "lfm2-vl": _LFM2_VL,  # name of the first release, with remote code
    "qwen2_audio": Family(
        "mlx_vlgen.models.qwen2_audio:Qwen2Audio", "mlx_vlgen.inputs.qwen2_audio:Qwen2AudioProcessor"
    ),
    "muse_glimmer": Family(
        "mlx_vlgen.models.muse_glimmer:MuseGlimmer", "mlx_vlgen.inputs.muse_glimmer:MuseGlimmerProcessor"
    ),
    "voxtral": Family("mlx_vlgen.models.voxtral:Voxtral", "mlx_vlgen.inputs.voxtral:VoxtralProcessor"),
    "phi4_multimodal": _PHI4,
    "phi4mm": _PHI4,  # name of the first release, with remote code
    "lfm3_vl": Family("mlx_vlgen.models.lfm3_vl:Lfm3VL", "mlx_vlgen.inputs.qwen_vl:Qwen3VLProcessor"),
}

# (model_type, that of its vision tower) -> the key of the family where the tower makes it another one.
_BY_TOWER: dict[tuple[str, str | None], str] = {
    ("llava", "pixtral"): "pixtral",
    ("deepseek_vl_v2", "deepencoderv2"): "deepseek_ocr2",
    ("deepseek_vl_v2", "deeplip_b_l"): "unlimited_ocr",  # DeepSeek-OCR, the first: the same without a window
}

_HEARING: dict[str, Family] = {
    "gemma4": Family("mlx_vlgen.models.gemma4:Gemma4", "mlx_vlgen.inputs.gemma_audio:Gemma4AudioProcessor"),
    "gemma4_unified": Family(
        "mlx_vlgen.models.gemma4_unified:Gemma4Unified", "mlx_vlgen.inputs.gemma4_unified:Gemma4UnifiedAudioProcessor"
    ),
}
"""Of families that only some checkpoints of hear: those that do, by their audio_config."""

TEXT = Family("mlx_vlgen.models.text:TextModel", "mlx_vlgen.inputs.processor:TextProcessor")
"""Every text decoder that mlx-lm has."""

_QWEN3_5_TEXT = Family("mlx_vlgen.models.qwen3_5:Qwen3_5Text", "mlx_vlgen.inputs.processor:TextProcessor")
_TEXT_ALONE = {
    "qwen3_5": _QWEN3_5_TEXT,
    "qwen3_5_moe": _QWEN3_5_TEXT,
    "qwen3_5_text": _QWEN3_5_TEXT,
    "qwen3_5_moe_text": _QWEN3_5_TEXT,
}
"""Text decoders of families that are published alone too, under the family's model_type or their own."""

PROVED_TEXT = ("llama", "qwen2", "qwen3", "qwen3_moe", "gemma3_text", "lfm2", "phi3")
"""The text decoders that this package's tests compare with transformers; others load with a notice."""

# Vision-language types that mlx-lm loads without the tower: answering without the picture is worse than refusing.
_MLX_LM_BLIND = {
    "kimi_k3",
    "kimi_vl",
    "minimax_m3_vl",
    "muse_spark",
    "prism_hadamard_qwen35",
}
# Keys of a vision or audio model's configuration, whatever its type.
_PARTS = ("vision_config", "vit_config", "audio_config", "thinker_config", "embd_layer")
_TOWERS = (*_PARTS, "vision_tower", "mm_vision_tower", "vision_encoder", "audio_encoder")


def find(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint with this config.json. LoadError, with the nearest name, when there is none."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise LoadError(
            "config.json names no model_type, so it does not tell what network this is. "
            "Give the folder of a whole checkpoint, as it is on the Hugging Face Hub."
        )
    if "mm_vision_tower" in config:
        raise LoadError(
            f"This {model_type} checkpoint's config.json has no vision_config and names another checkpoint for its "
            f"tower ({config['mm_vision_tower']!r:.80}): it is in the layout of LLaVA's authors. Take the one that was "
            "converted for transformers, as llava-hf/llava-1.5-7b-hf of liuhaotian/llava-v1.5-7b, or for MLX."
        )
    seen = any(isinstance(config.get(key), Mapping) for key in _PARTS)
    if not seen and model_type in _TEXT_ALONE:
        return _TEXT_ALONE[model_type]
    vision = thinker_config(config).get("vision_config") or config.get("vit_config")  # Molmo2's
    tower = vision.get("model_name", vision.get("model_type")) if isinstance(vision, Mapping) else None
    if family := FAMILIES.get(_BY_TOWER.get((model_type, tower), model_type)):
        if not seen:
            raise LoadError(
                f"This {model_type} checkpoint's config.json has no vision_config: it only reads text, or is "
                "in its authors' layout. Take the one that was saved for transformers, or converted for MLX."
            )
        return _HEARING.get(model_type, family) if config.get("audio_config") is not None else family
    if model_type in _MLX_LM_BLIND or any(config.get(key) for key in _TOWERS):
        raise LoadError(
            f"model_type {model_type!r} is a vision-language or audio model that is not supported yet. "
            f"Supported are {', '.join(FAMILIES)}, and text decoders."
        )
    text = _text_decoders()
    if model_type in text:
        return TEXT
    nearest = difflib.get_close_matches(model_type, [*FAMILIES, *text], n=1)
    raise LoadError(
        f"model_type {model_type!r} is not known{f'; the nearest known one is {nearest[0]!r}' if nearest else ''}. "
        f"Supported are {', '.join(FAMILIES)}, and text decoders: {', '.join(PROVED_TEXT)} "
        f"and {len(text - set(PROVED_TEXT))} others of mlx-lm."
    )


@functools.cache
def mlx_lm_types() -> set[str]:
    """The model types that mlx-lm knows: text decoders, and models that see, of which it runs the text decoder."""
    from .._mlx_lm import MODEL_REMAPPING, models_folder

    files = {path.stem for path in models_folder().glob("*.py") if "\nclass Model(" in path.read_text("utf-8")}
    return files | {name for name, target in MODEL_REMAPPING.items() if target in files}


def _text_decoders() -> set[str]:
    """The model types that mlx-lm has a text decoder for."""
    return mlx_lm_types() - _MLX_LM_BLIND - FAMILIES.keys()
