"""Families of which tests/distributed/test_ranks.py compares several ranks with one: cut by tensors, or by layers."""

FIRST = ("llama", "qwen3_vl")
OTHERS = (
    "aya_vision", "cohere2_vision", "deepseek_ocr", "deepseek_ocr2", "ernie4_5_vl_moe", "fast_vlm", "gemma3",
    "gemma3_text", "gemma3n", "gemma4", "gemma4_audio", "gemma4_moe", "gemma4_unified", "glm46v", "glm46v_moe",
    "glm4v", "glm4v_moe", "glm_ocr", "granite4_vision", "hunyuan_vl", "idefics2", "idefics2_whole", "idefics3",
    "internvl", "internvl_internlm2", "internvl_qwen3", "lfm2", "lfm2_vl", "lfm3_vl", "lighton_ocr", "llama4",
    "llama4_maverick", "llava", "llava_next", "llava_onevision", "llava_siglip", "minicpmv4_6", "minicpmv4_7",
    "ministral3", "mistral3", "molmo2", "molmo2_o", "ovis2", "paddleocr_vl", "paligemma", "paligemma2", "pixtral",
    "qwen2", "qwen2_5_omni", "qwen2_5_vl", "qwen2_audio", "qwen2_vl", "qwen3", "qwen3_5", "qwen3_5_moe",
    "qwen3_5_text", "qwen3_moe", "qwen3_omni_moe", "qwen3_vl_moe", "smolvlm", "unlimited_ocr", "voxtral",
)  # fmt: skip
CUT = (*FIRST, *OTHERS)
"""Those of whose layers each rank can have a part."""
DIVIDED = (
    *(name for name in CUT if name not in ("gemma3n", "gemma4", "gemma4_audio")), "internvl_phi3", "kimi_k25",
    "muse_glimmer", "phi3", "phi4_multimodal",
)  # fmt: skip
"""Those whose layers ranks can have whole."""
