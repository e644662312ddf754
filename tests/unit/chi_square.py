"""Whether counts come from given chances."""

import numpy as np


def statistic(observed: np.ndarray, mean: np.ndarray) -> float:
    return float(((observed - mean) ** 2 / mean).sum())


def limit(freedom: int) -> float:
    """What a chi-square statistic exceeds once in a thousand times (Wilson and Hilferty's approximation)."""
    return float(freedom * (1 - 2 / (9 * freedom) + 3.090 * np.sqrt(2 / (9 * freedom))) ** 3)
