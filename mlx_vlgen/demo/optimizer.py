"""Muon for the matrices inside the blocks, Adam for everything else (embeddings, norms, biases, heads).

Muon (Keller Jordan, 2024) replaces the momentum of a matrix by its nearest orthogonal one; on a model and a budget as
small as these it reaches a given loss in clearly fewer steps than AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """(N, rows, columns) to nearly orthogonal ones, by the quintic Newton-Schulz iteration in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    flip = x.shape[1] > x.shape[2]
    x = x.mT if flip else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if flip else x).float()


class Muon:
    """Both optimizers behind one `step(scale)`, where `scale` is the schedule's factor on both learning rates."""

    def __init__(self, model: nn.Module, muon_rate: float = 0.02, adam_rate: float = 3e-3, decay: float = 0.01):
        matrices: dict[tuple[str, torch.Size], list[nn.Parameter]] = defaultdict(list)
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            # One group a shape and part: a batch of dense labels gives the decoder's matrices no gradient.
            marks = (".blocks.", ".layers.", "deepstack_merger", ".merger.")
            part = next((name.partition(mark)[0] + mark for mark in marks if mark in name), "")
            (matrices[part, parameter.shape] if parameter.ndim == 2 and part else others).append(parameter)
        self.groups = list(matrices.values())
        self.momenta = [torch.zeros(len(group), *group[0].shape) for group in self.groups]
        self.adam = torch.optim.Adam(others, lr=adam_rate, betas=(0.9, 0.98), foreach=True)
        self.muon_rate, self.adam_rate, self.decay = muon_rate, adam_rate, decay

    @torch.no_grad()
    def step(self, scale: float) -> None:
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            if group[0].grad is None:
                continue
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            momentum.lerp_(gradient, 0.05)
            update = orthogonal(gradient.lerp(momentum, 0.95))
            rows, columns = group[0].shape
            rate = scale * self.muon_rate
            shape_factor = max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(group, 1 - rate * self.decay)
            torch._foreach_add_(group, list(update.unbind(0)), alpha=-rate * shape_factor)
        for options in self.adam.param_groups:
            options["lr"] = scale * self.adam_rate
        self.adam.step()

    def zero_grad(self) -> None:
        for group in self.groups:
            for parameter in group:
                parameter.grad = None
        self.adam.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.momenta = state["momenta"]
        self.adam.load_state_dict(state["adam"])
