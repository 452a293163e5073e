"""Settings of short runs of a plain Trainer, and how two of them compare."""

import tiny_runs
from transformers import TrainingArguments


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "seed": 7,
    }
    return TrainingArguments(**{**settings, **changes})


def logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def difference(one, other):
    other = tiny_runs.weights_of(other)
    return max(float((p - other[n]).norm() / other[n].norm()) for n, p in tiny_runs.weights_of(one).items())
