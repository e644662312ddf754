"""Which experts a token goes to, in GLM's models: by sigmoids, and a bias that balances their load."""

from collections.abc import Mapping
from typing import Any

from .._runtime import mx, nn


class Router(nn.Module):
    """Which experts a token goes to, and their weights. A bias, which balanced the experts' load in training, takes
    part in the choice and not in the weights.

    Replaces mlx-lm's: all in float32, as in transformers, for half precision may choose other experts.
    """

    def __init__(self, text: Mapping[str, Any]):
        super().__init__()
        self._top_k, self._scale = text["num_experts_per_tok"], text["routed_scaling_factor"]
        self._norm_topk_prob = text["norm_topk_prob"]
        self.weight = mx.zeros((text["n_routed_experts"], text["hidden_size"]))
        self.e_score_correction_bias = mx.zeros(text["n_routed_experts"])

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """(..., d) -> experts and their weights, (..., top k) each."""
        scores = mx.sigmoid(x.astype(mx.float32) @ self.weight.T.astype(mx.float32))
        order = mx.argpartition(-(scores + self.e_score_correction_bias), kth=self._top_k - 1, axis=-1)
        experts = order[..., : self._top_k]
        weights = mx.take_along_axis(scores, experts, axis=-1)
        if self._norm_topk_prob:
            weights = weights / weights.sum(axis=-1, keepdims=True)
        return experts, weights * self._scale
