"""The training forward pass: transformers' modules over batches of clips of one length, with branch masks.

The modules are those of `Qwen2_5OmniThinkerForConditionalGeneration`, which therefore loads the trained weights. The
convolutions are matrix products over unfolded frames, and all windows of a batch go through the tower together.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from ..network import rotate
from .checkpoint import WINDOW
from .clips import CLASSES, PHONEME_CLASSES
from .lessons import PARTS

STEPS, FOCUS = (2, 3, 4, 6, 8), 1.5  # see initialize
DENSE = (CLASSES, PARTS, PHONEME_CLASSES, PHONEME_CLASSES)  # classes of each column of the labels of a moment


class TrainingModel(nn.Module):
    """The model, and a head that only training uses: it predicts what sounds at each moment from the features."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.hf = Qwen2_5OmniThinkerForConditionalGeneration(Qwen2_5OmniThinkerConfig(**config)).float()
        self.tower, self.text = self.hf.model.audio_tower, self.hf.model.language_model
        self.dense_head = nn.Linear(config["audio_config"]["output_dim"], sum(DENSE))
        initialize(self.tower)

    def encode(self, mel: Tensor) -> Tensor:
        """(B, T, mels) -> features (B, N, d). Windows of 2 * WINDOW frames are apart, the last may be shorter."""
        count, frames, _ = mel.shape
        size = 2 * WINDOW
        whole = frames // size
        parts = []
        if whole:
            windows = mel[:, : whole * size].reshape(count * whole, size, -1)
            parts.append(self._windows(windows).reshape(count, whole * size // 2, -1))
        if frames % size:
            parts.append(self._windows(mel[:, whole * size :]))
        x = torch.cat(parts, 1)
        x = x[:, : x.shape[1] // 2 * 2].unflatten(1, (-1, 2)).mean(2)
        return self.tower.proj(self.tower.ln_post(x))

    def _windows(self, mel: Tensor) -> Tensor:
        """(W, t, mels) -> (W, (t + 1) // 2, d)"""
        x = F.gelu(convolve(self.tower.conv1, mel))
        x = F.gelu(convolve(self.tower.conv2, x))
        x = x + self.tower.positional_embedding.positional_embedding[: x.shape[1]].to(x.dtype)
        for layer in self.tower.layers:
            x = audio_layer(layer, x)
        return x

    def dense_only(self, batch: dict[str, Tensor]) -> Tensor:
        """Dense logits (B, N, sum(DENSE)), without the decoder."""
        return self.dense_head(self.encode(batch["mel"].float()))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, L, d), and dense logits (B, N, sum(DENSE)), or None without sound."""
        hidden = self.text.embed_tokens(batch["tokens"])
        count, length, width = hidden.shape
        dense: Tensor | None = None
        if len(batch["feature_positions"]):
            features = self.encode(batch["mel"].float())
            dense = self.dense_head(features)
            flat = hidden.reshape(-1, width).index_copy(
                0, batch["feature_positions"], features.reshape(-1, width).to(hidden.dtype)
            )
            hidden = flat.reshape(count, length, width)
        branch = batch["branch"]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = causal & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
        bias = torch.where(mask, 0.0, -1e4).to(torch.bfloat16)[:, None]
        cos, sin = self.text.rotary_emb(hidden, batch["positions"])
        cos, sin = cos[:, None].bfloat16(), sin[:, None].bfloat16()
        for layer in self.text.layers:
            hidden = text_layer(layer, hidden, cos, sin, bias)
        return self.text.norm(hidden), dense


@torch.no_grad()
def initialize(tower: nn.Module) -> None:
    """Random weights of the size that keeps the signal's, and heads that begin by attending to a step before, the step
    itself and a step after, further apart from layer to layer, as a time-delay network would (Cordonnier et al., 2019).
    Found out from random queries and keys, that places are relative takes most of the training."""
    for module in (tower.conv1, tower.conv2, *tower.layers.modules()):
        if isinstance(module, nn.Linear | nn.Conv1d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    width = tower.conv1.out_channels
    half = width // 2
    waves = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))  # those of the sinusoidal positions
    for layer, step in zip(tower.layers, STEPS, strict=True):
        attention = layer.self_attn
        layer.fc2.weight.mul_(0.5)
        attention.out_proj.weight.mul_(0.5)
        q, k = (p.weight.normal_(std=0.02) for p in (attention.q_proj, attention.k_proj))
        for head in range(attention.num_heads):
            offset = step * (head - (attention.num_heads - 1) / 2)
            for i in range(attention.head_dim // 2):
                row = head * attention.head_dim + 2 * i
                sine, cosine = math.sin(waves[i] * offset), math.cos(waves[i] * offset)
                q[row, i], q[row, half + i] = FOCUS * cosine, FOCUS * sine
                q[row + 1, i], q[row + 1, half + i] = -FOCUS * sine, FOCUS * cosine
                k[row, i] = k[row + 1, half + i] = FOCUS


def convolve(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution of width 3 over (W, t, channels) as one matrix product."""
    unfolded = F.pad(x, (0, 0, 1, 1)).unfold(1, 3, conv.stride[0])  # (W, t', channels, 3)
    return F.linear(unfolded.flatten(2), conv.weight.flatten(1), conv.bias)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Plain products: the CPU's fused kernel is slower in its backward pass at these sizes."""
    scores = q.to(v.dtype) @ k.to(v.dtype).mT * q.shape[-1] ** -0.5
    return (scores if bias is None else scores + bias).softmax(-1, dtype=v.dtype) @ v


def audio_layer(layer: nn.Module, x: Tensor) -> Tensor:
    attention = layer.self_attn
    windows, length, _ = x.shape
    shape = (windows, length, attention.num_heads, attention.head_dim)
    normed = layer.self_attn_layer_norm(x)
    q, k, v = (p(normed).view(shape).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    out = attend(q, k, v).transpose(1, 2).reshape(windows, length, -1)
    x = x + attention.out_proj(out)
    return x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))


def text_layer(layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
    attention = layer.self_attn
    rows, length, _ = x.shape
    shape = (rows, length, -1, attention.head_dim)
    normed = layer.input_layernorm(x)
    q, k, v = (p(normed).view(shape).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    out = attend(q, k, v, bias).transpose(1, 2).reshape(rows, length, -1)
    x = x + attention.o_proj(out)
    return x + layer.mlp(layer.post_attention_layernorm(x))
