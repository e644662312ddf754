"""Configurations written from the documented sizes of checkpoints whose files may not be copied: what their model cards
and papers say, under transformers' names, and nothing of what its classes assume anyway."""

from typing import Any

Config = dict[str, Any]

SIGLIP: Config = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
CLIP: Config = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip


def gemma3(**text: Any) -> Config:
    rope = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    return {
        "model_type": "gemma3", "image_token_index": 262144, "boi_token_index": 255999, "eoi_token_index": 256000,
        "mm_tokens_per_image": 256, "vision_config": SIGLIP | {"image_size": 896},
        "text_config": {"model_type": "gemma3_text", "sliding_window": 1024} | rope | text,
    }  # fmt: skip


def mllama(layers: int, **text: Any) -> Config:
    rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return {
        "model_type": "mllama", "image_token_index": 128256,
        "text_config": {
            "model_type": "mllama_text_model", "num_hidden_layers": layers, "num_key_value_heads": 8,
            "cross_attention_layers": [*range(3, layers, 5)], "max_position_embeddings": 131072, "vocab_size": 128256,
            "rms_norm_eps": 1e-5, "rope_theta": 5e5, "rope_scaling": rope,
        } | text,
        "vision_config": {
            "model_type": "mllama_vision_model", "hidden_size": 1280, "intermediate_size": 5120, "image_size": 560,
            "num_hidden_layers": 32, "num_global_layers": 8, "attention_heads": 16, "patch_size": 14,
            "intermediate_layers_indices": [3, 7, 15, 23, 30], "max_num_tiles": 4, "vision_output_dim": 7680,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        },
    }  # fmt: skip


def llama4(rope: Config | None, **text: Any) -> Config:
    return {
        "model_type": "llama4", "image_token_index": 200092, "boi_token_index": 200080, "eoi_token_index": 200081,
        "text_config": {
            "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
            "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
            "num_experts_per_tok": 1, "vocab_size": 202048, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
            "attention_chunk_size": 8192, "rope_scaling": rope,
        } | text,
        "vision_config": {
            "model_type": "llama4_vision_model", "hidden_size": 1408, "intermediate_size": 5632, "image_size": 336,
            "num_hidden_layers": 34, "num_attention_heads": 16, "patch_size": 14, "pixel_shuffle_ratio": 0.5,
            "projector_input_dim": 4096, "projector_output_dim": 4096, "vision_output_dim": 4096, "rope_theta": 10000,
        },
    }  # fmt: skip


def scout(factor: float, high: float) -> Config:
    rope = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return llama4(
        rope, num_local_experts=16, interleave_moe_layer_step=1, max_position_embeddings=10485760, use_qk_norm=True
    )


CONFIGS: dict[str, Config] = {
    "gemma-3-4b-it": gemma3(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34),
    "gemma-3-12b-it": gemma3(
        hidden_size=3840, intermediate_size=15360, num_hidden_layers=48, num_attention_heads=16, num_key_value_heads=8,
        head_dim=256, query_pre_attn_scalar=256, rope_theta=1000000, rope_local_base_freq=10000, vocab_size=262208,
        sliding_window_pattern=6, max_position_embeddings=131072,
    ),
    "gemma-3-27b-it": gemma3(
        hidden_size=5376, intermediate_size=21504, num_hidden_layers=62, num_attention_heads=32, num_key_value_heads=16,
        head_dim=128, query_pre_attn_scalar=168,
    ),
    "paligemma-3b-pt-224": {
        "model_type": "paligemma", "image_token_index": 257152, "hidden_size": 2048, "projection_dim": 2048,
        "text_config": {
            "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
            "num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": 257216, "num_image_tokens": 256,
        },
        "vision_config": SIGLIP | {
            "projection_dim": 2048, "num_image_tokens": 256, "projector_hidden_act": "gelu_fast"
        },
    },
    "Llama-3.2-11B-Vision-Instruct": mllama(40, hidden_size=4096, intermediate_size=14336, num_attention_heads=32),
    "Llama-3.2-90B-Vision-Instruct": mllama(100, hidden_size=8192, intermediate_size=28672, num_attention_heads=64),
    "Llama-4-Scout-17B-16E-Instruct": scout(16.0, 1.0),
    "Llama-4-Scout-17B-16E-Instruct, first revision": scout(8.0, 4.0),
    "Llama-4-Maverick-17B-128E-Instruct": llama4(
        None, num_local_experts=128, interleave_moe_layer_step=2, max_position_embeddings=1048576, use_qk_norm=False
    ),
    "llava-1.5-7b-hf": {
        "model_type": "llava", "image_token_index": 32000, "vision_config": CLIP, "vision_feature_layer": -2,
        "text_config": {
            "model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096
        },
        "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu", "tie_word_embeddings": False,
    },
    "HunyuanOCR": {
        "model_type": "hunyuan_vl", "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "attention_head_dim": 128,
        "vocab_size": 120818, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 32768,
        "rope_scaling": {
            "type": "xdrope", "xdrope_section": [16, 16, 16, 16], "alpha": 1000.0, "factor": 1.0, "beta_fast": 32,
            "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        },
        "tie_word_embeddings": True, "use_qk_norm": True, "use_cla": False, "num_experts": 1,
        "image_start_token_id": 120118, "image_end_token_id": 120119, "image_token_id": 120120,
        "image_newline_token_id": 120121,
        "vision_config": {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "num_channels": 3, "out_hidden_size": 1024, "patch_size": 16, "spatial_merge_size": 2, "hidden_act": "gelu",
            "rms_norm_eps": 1e-5, "interpolate_mode": "bilinear", "cat_extra_token": 1, "max_image_size": 2048,
        },
    },
    "Kimi-K2.5": {
        "model_type": "kimi_k25", "media_placeholder_token_id": 163605, "tie_word_embeddings": False,
        "text_config": {
            "model_type": "kimi_k2", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
            "num_hidden_layers": 61, "num_attention_heads": 64, "num_key_value_heads": 64, "first_k_dense_replace": 1,
            "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "n_routed_experts": 384, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 1,
            "topk_group": 1, "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
            "routed_scaling_factor": 2.827, "moe_layer_freq": 1, "num_nextn_predict_layers": 0, "hidden_act": "silu",
            "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "vocab_size": 163840,
            "rope_scaling": {
                "type": "yarn", "factor": 64.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
                "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
            },
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "vt_hidden_size": 1152, "vt_intermediate_size": 4304, "vt_num_hidden_layers": 27,
            "vt_num_attention_heads": 16, "patch_size": 14, "merge_kernel_size": [2, 2], "merge_type": "sd2_tpool",
            "init_pos_emb_height": 64, "init_pos_emb_width": 64, "init_pos_emb_time": 4, "mm_hidden_size": 1152,
            "mm_projector_type": "patchmerger", "projector_hidden_act": "gelu", "projector_ln_eps": 1e-5,
            "pos_emb_type": "divided_fixed", "text_hidden_size": 7168, "video_attn_type": "spatial_temporal",
        },
    },
    "MiniCPM-V-4.6": {
        "model_type": "minicpmv4_6", "image_token_id": 248056, "video_token_id": 248057, "insert_layer_id": 6,
        "image_size": 1120, "drop_vision_last_layer": False, "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_5_text", "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24,
            "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "attn_output_gate": True,
            "full_attention_interval": 4, "layer_types": [*["linear_attention"] * 3, "full_attention"] * 6,
            "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_num_key_heads": 16, "linear_num_value_heads": 16, "max_position_embeddings": 262144,
            "mtp_num_hidden_layers": 1, "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-6, "vocab_size": 248094,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25},
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "model_type": "minicpmv4_6_vision", "hidden_size": 1152, "intermediate_size": 4304, "image_size": 980,
            "num_hidden_layers": 27, "num_attention_heads": 16, "num_channels": 3, "patch_size": 14,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        },
    },
}  # fmt: skip


def deepseek_ocr(positions: int, width: int, tower: str, encoder: Config, window: Config) -> Config:
    text = {
        "hidden_size": 1280, "intermediate_size": 6848, "moe_intermediate_size": 896, "num_hidden_layers": 12,
        "num_attention_heads": 10, "num_key_value_heads": 10, "first_k_dense_replace": 1, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
        "use_mla": False, "kv_lora_rank": None, "q_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0,
        "v_head_dim": 0, "vocab_size": 129280, "max_position_embeddings": positions, "lm_head": True,
    } | window  # fmt: skip
    sam = {
        "width": 768, "layers": 12, "heads": 12, "global_attn_indexes": [2, 5, 8, 11],
        "downsample_channels": [512, 1024],
    }  # fmt: skip
    return text | {
        "model_type": "unlimited-ocr" if window else "deepseek_vl_v2", "language_config": text, "tile_tag": "2D",
        "projector_config": {
            "model_type": "mlp_projector", "projector_type": "linear", "input_dim": width, "n_embed": 1280
        },
        "vision_config": {
            "model_type": "vision", "model_name": tower, "image_size": 1024, "mlp_ratio": 3.7362,
            "width": {"sam_vit_b": sam} | encoder,
        },
        "candidate_resolutions": [[1024, 1024]], "global_view_pos": "head",
    }  # fmt: skip


_CLIP_OCR = {"clip-l-14-224": {"width": 1024, "layers": 24, "heads": 16, "image_size": 224, "patch_size": 14}}
CONFIGS |= {
    "DeepSeek-OCR": deepseek_ocr(8192, 2048, "deeplip_b_l", _CLIP_OCR, {}),
    "DeepSeek-OCR-2": deepseek_ocr(8192, 896, "deepencoderv2", {"qwen2-0-5b": {"dim": 896}}, {}),
    "Unlimited-OCR": deepseek_ocr(
        32768, 2048, "deeplip_b_l", _CLIP_OCR, {"sliding_window_size": 128, "sliding_window": 128, "v_head_dim": 128}
    ),
}
