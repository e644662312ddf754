"""`python -m mlx_vlgen`: the commands."""

import sys

from .cli import main

sys.exit(main())
