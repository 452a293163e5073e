"""A run of which rank 1 is killed at its second step; a worker of torchrun.

torchrun --nproc-per-node 2 killed_rank.py OUTPUT_DIR ENGINE
"""

import os
import signal
import sys
from pathlib import Path

import trainer_runs
from transformers import TrainerCallback


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == 1:
            print("rank 1 ends here", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    trainer = trainer_runs.make(Path(sys.argv[1]), sys.argv[2])
    trainer.add_callback(Kill())
    trainer.train()
    print("trained to the end", flush=True)
