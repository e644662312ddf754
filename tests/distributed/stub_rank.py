"""A rank without a model. Argument: for each rank what it does, by commas."""

import os
import signal
import sys
import time

from mlx_vlgen.distributed.launch import BEAT_VARIABLE, beat

beat(int(os.environ[BEAT_VARIABLE]))
match sys.argv[1].split(",")[int(os.environ["MLX_RANK"])]:
    case "end":
        print("through")
    case "fail":
        print("a reason", file=sys.stderr)
        sys.exit(3)
    case "die":
        os.kill(os.getpid(), signal.SIGKILL)
    case "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    case "wait":
        time.sleep(60)
