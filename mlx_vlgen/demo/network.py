"""The training forward pass and the losses: transformers' modules over padded batches with branch masks.

transformers encodes pictures one by one and has no branches; here all pictures of a batch go through the tower
together. The modules are those of `Qwen3VLForConditionalGeneration`, which therefore loads the trained weights.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from .checkpoint import MERGE
from .drawing import LABELS
from .lessons import BINS, IGNORE, MAX_COUNT, MAX_PATCHES, patch_order

RANKS = 8
DENSE = (LABELS, RANKS, BINS, BINS, MAX_COUNT, MAX_COUNT, MAX_COUNT)  # classes of each column of the dense labels


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def position_waves(side: int, width: int) -> Tensor:
    """(side * side, width): slow waves along both axes, mixed at random. In a table that starts as noise of the usual
    size, positions are small beside the patches (white paper is a large constant), and places are learnt last."""
    steps = torch.linspace(0, 1, side)
    turns = torch.tensor([0.5, 1.0, 2.0]) * 2 * torch.pi
    wave = torch.cat([(steps[:, None] * turns).sin(), (steps[:, None] * turns).cos()], -1)  # (side, 6)
    grid = torch.cat([wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)], -1).flatten(0, 1)
    return 0.5 * grid @ torch.randn(grid.shape[-1], width)


class TrainingModel(nn.Module):
    """The model, and a head that only training uses: it predicts the dense labels from the vision features."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.hf = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)).float()
        width = config["vision_config"]["out_hidden_size"]
        self.dense_head = nn.Linear(width, MERGE**2 * sum(DENSE))
        self.visual, self.text = self.hf.model.visual, self.hf.model.language_model
        with torch.no_grad():
            self.visual.pos_embed.weight += position_waves(
                self.visual.num_grid_per_side, self.visual.pos_embed.embedding_dim
            )

    @functools.lru_cache(maxsize=512)  # noqa: B019 (one model a process)
    def _grid(self, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For one grid, padded to MAX_PATCHES: cos and sin of the tower's rotary embedding, and the indices
        and weights that interpolate its position table."""
        count = rows * columns
        positions = torch.zeros(MAX_PATCHES, 2)
        positions[:count] = torch.from_numpy(np.stack(patch_order(rows, columns), -1)).float()
        angles = (positions[:, :, None] * self.visual.rotary_pos_emb.inv_freq).flatten(1)
        angles = torch.cat((angles, angles), -1)
        indices, weights = get_vision_interpolation_indices_and_weights(
            torch.tensor([[1, rows, columns]]), num_grid_per_side=self.visual.num_grid_per_side, mode="bilinear",
            align_corners=True, spatial_merge_size=MERGE,
        )  # fmt: skip
        pad = (0, 0, 0, MAX_PATCHES - count)
        return angles.cos(), angles.sin(), F.pad(indices, pad), F.pad(weights.float(), pad)

    def encode(self, pixels: Tensor, grids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(U, MAX_PATCHES, P) uint8 pixels to features (U, MAX_PATCHES / 4, d) and deepstack features of that shape."""
        tower = self.visual
        tables = [self._grid(*grid) for grid in grids.tolist()]
        cos, sin, indices, weights = (torch.stack(column) for column in zip(*tables, strict=True))
        lengths = grids.prod(1)
        mask = (torch.arange(MAX_PATCHES) < lengths[:, None])[:, None, None]  # (U, 1, 1, MAX_PATCHES)
        x = pixels.float() / 127.5 - 1
        x = F.linear(x, tower.patch_embed.proj.weight.flatten(1), tower.patch_embed.proj.bias)
        x = x.float() + (tower.pos_embed(indices) * weights[..., None]).sum(2)
        deepstack: list[Tensor] = []
        for i, block in enumerate(tower.blocks):
            x = vision_block(block, x, cos[:, None], sin[:, None], mask)
            if i in tower.deepstack_visual_indexes:
                deepstack.append(self._merge(tower.deepstack_merger_list[len(deepstack)], x))
        return self._merge(tower.merger, x), deepstack

    @staticmethod
    def _merge(merger: nn.Module, x: Tensor) -> Tensor:
        return merger(x.reshape(-1, x.shape[-1])).reshape(x.shape[0], MAX_PATCHES // MERGE**2, -1)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, L, d), and dense logits (U, MAX_PATCHES, sum(DENSE)), or None without pictures."""
        hidden = self.text.embed_tokens(batch["tokens"])
        count, length, width = hidden.shape
        dense: Tensor | None = None
        deepstack: list[Tensor] = []
        if len(batch["pixels"]):
            features, stacks = self.encode(batch["pixels"], batch["grids"])
            dense = self.dense_head(features).reshape(len(features), MAX_PATCHES, -1)
            deepstack = [self._chosen(stack, batch) for stack in stacks]
            flat = hidden.reshape(-1, width).index_copy(0, batch["feature_positions"], self._chosen(features, batch))
            hidden = flat.reshape(count, length, width)
        branch = batch["branch"]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = causal & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
        cos, sin = self.text.rotary_emb(hidden, batch["positions"])
        for i, layer in enumerate(self.text.layers):
            hidden = text_layer(layer, hidden, cos[:, None], sin[:, None], mask[:, None])
            if i < len(deepstack):
                flat = hidden.reshape(-1, width).index_add(0, batch["feature_positions"], deepstack[i])
                hidden = flat.reshape(count, length, width)
        return self.text.norm(hidden), dense

    @staticmethod
    def _chosen(features: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """(U, MAX_PATCHES / 4, d) features to (N, d), those of the image tokens, without padding."""
        return features.reshape(-1, features.shape[-1])[batch["features"]].float()

    def dense_only(self, batch: dict[str, Tensor]) -> Tensor:
        """Dense logits alone, without the text decoder."""
        features, _ = self.encode(batch["pixels"], batch["grids"])
        return self.dense_head(features).reshape(len(features), MAX_PATCHES, -1)


def vision_block(block: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    attention = block.attn
    units, length, width = x.shape
    qkv = attention.qkv(block.norm1(x)).reshape(units, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    out = attend(q, k, v, mask)
    x = x + attention.proj(out.transpose(1, 2).reshape(units, length, width))
    return x + block.mlp(block.norm2(x))


def text_layer(layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    attention = layer.self_attn
    rows, length, _ = x.shape
    shape = (rows, length, -1, attention.head_dim)
    normed = layer.input_layernorm(x)
    q = attention.q_norm(attention.q_proj(normed).view(shape)).transpose(1, 2)
    k = attention.k_norm(attention.k_proj(normed).view(shape)).transpose(1, 2)
    v = attention.v_proj(normed).view(shape).transpose(1, 2)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    groups = attention.num_key_value_groups
    k, v = (
        t.expand(-1, t.shape[1] * groups, -1, -1) if t.shape[1] == 1 else t.repeat_interleave(groups, 1) for t in (k, v)
    )
    out = attend(q, k, v, mask).transpose(1, 2).reshape(rows, length, -1)
    x = x + attention.o_proj(out)
    return x + layer.mlp(layer.post_attention_layernorm(x))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)


def dense_loss(dense: Tensor, labels: Tensor, sizes: tuple[int, ...] = DENSE) -> Tensor:
    """Cross-entropy of the class of each patch (background weighs a fifth), and half of that of each other column.
    sizes: classes of each column."""
    weight = torch.ones(sizes[0])
    weight[0] = 0.2
    classes, *others = dense.float().split(sizes, -1)
    loss = F.cross_entropy(classes.flatten(0, 1), labels[..., 0].flatten(), weight, ignore_index=IGNORE)
    for i, values in enumerate(others, 1):
        labelled = labels[..., i] != IGNORE
        if labelled.any():
            loss = loss + 0.5 * F.cross_entropy(values[labelled], labels[..., i][labelled])
    return loss


def token_loss(head: nn.Module, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy of the n tokens in the loss; (n,) whether each is the most likely one; (n,) its row."""
    in_loss = labels != IGNORE
    logits = head(hidden[in_loss]).float()
    loss = F.cross_entropy(logits, labels[in_loss], reduction="sum") / max(1, len(logits))
    return loss, logits.argmax(-1) == labels[in_loss], in_loss.nonzero()[:, 0]
