"""`python -m mlx_vlgen`: the commands."""

from .entry import commands

commands()
