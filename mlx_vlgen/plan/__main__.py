"""`python -m mlx_vlgen.plan`."""

from ..entry import plan

plan()
