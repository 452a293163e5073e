"""One training run in a process of its own: `resume_worker.py OUTPUT_DIR {kill STEP | resume}`."""

import os
import signal
import sys

import tiny_runs
from transformers import TrainerCallback

from amopo.trainer import AMoPOTrainer

SAVE_STEPS = 4


class KillAt(TrainerCallback):
    """Ends the process as a power cut would, after a given optimizer step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make(output_dir, callbacks=()):
    model = tiny_runs.phi3(resid_pdrop=0.2)
    config = tiny_runs.config(
        output_dir,
        num_train_epochs=2,
        tokens_per_batch=110,
        gradient_accumulation_steps=2,
        weights="gaussian",
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        save_strategy="steps",
        save_steps=SAVE_STEPS,
    )
    return AMoPOTrainer(model, config, train_dataset=tiny_runs.samples(44), callbacks=list(callbacks))


if __name__ == "__main__":
    directory, action, *rest = sys.argv[1:]
    if action == "kill":
        make(directory, [KillAt(int(rest[0]))]).train()
        raise SystemExit("the process should have been killed")
    trainer = make(directory)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model(os.path.join(directory, "final"))
    trainer.save_state()
