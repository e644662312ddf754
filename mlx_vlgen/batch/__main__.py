"""`python -m mlx_vlgen.batch`."""

from ..entry import batch

batch()
