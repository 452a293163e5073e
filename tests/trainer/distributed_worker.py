"""Training runs on every rank of a gloo group: `distributed_worker.py OUTPUT_DIR`, started by torchrun."""

import json
import os
import sys
from pathlib import Path

import tiny_runs
import torch
import torch.distributed as dist

from amopo.packing import packed_length
from amopo.trainer import AMoPOTrainer

# Seven samples in 2 x 2 micro-batches per step; and five, one per micro-batch, so that a rank needs a filler.
CASES = {
    "unequal": {"count": 7, "gradient_accumulation_steps": 2},
    "filler": {"count": 5, "gradient_accumulation_steps": 3, "max_samples_per_batch": 1},
}


def make(output_dir, *, count, one_batch=False, **settings):
    samples = tiny_runs.samples(count)
    total = sum(map(packed_length, samples))
    if one_batch:
        settings = {"tokens_per_batch": total}
    else:
        settings.setdefault("tokens_per_batch", max(total // 3, max(map(packed_length, samples))))
    config = tiny_runs.config(
        output_dir, num_train_epochs=2, optim="sgd", learning_rate=0.1, weights="gaussian", **settings
    )
    return AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=samples, eval_dataset=samples)


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    for name, settings in CASES.items():
        trainer = make(directory / name, **settings)
        trainer.train()
        evaluated = trainer.evaluate()
        batches = [sorted(batch) for batch in trainer.get_train_dataloader().batch_sampler]
        rank = trainer.args.process_index
        (directory / f"{name}-{rank}.json").write_text(
            json.dumps({"batches": batches, "history": trainer.state.log_history, "evaluated": evaluated})
        )
        torch.save(trainer.model.state_dict(), directory / f"{name}-{rank}.pt")
    dist.barrier()
    # Threads of gloo that outlive the group may abort the process while the interpreter ends.
    os._exit(0)
