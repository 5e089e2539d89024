"""Several processes on one machine's CPU, as a user starts them there."""

import os
import subprocess
import sys
from pathlib import Path

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def launch(processes: int, *command: object) -> subprocess.CompletedProcess[str]:
    """`torchrun --standalone --nproc_per_node N` on a script; AssertionError if it failed."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *torchrun, *map(str, command)], env=ENV, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done
