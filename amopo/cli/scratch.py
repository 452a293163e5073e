"""What a run with a model from scratch begins with, in the run and in its plan.

Contract: `from_scratch(job, size) -> (model, tokenizer, note)` makes both from `scratch_records(job)`: the training
records, or as many as `SCRATCH_PROMPTS` of them, drawn by the seed. A run that is resumed begins with what the first
one kept after imitation. `note` says which of these it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amopo.cli.errors import UsageError
from amopo.cli.models import fresh, load
from amopo.data import PreferenceRecord
from amopo.data.stream import sample_of

if TYPE_CHECKING:
    from amopo.cli.job import Job

IMITATION_FOLDER = "imitation"
SCRATCH_PROMPTS = 10_000  # enough for a vocabulary of 4096 tokens; their demonstrations are lists in memory


def scratch_records(job: Job) -> list[PreferenceRecord]:
    """The training records that a model from scratch gets its tokenizer from, and imitates."""
    return sample_of(job.inputs.train.records, SCRATCH_PROMPTS, seed=job.args.seed)


def from_scratch(job: Job, size: str) -> tuple[Any, Any, str]:
    if job.lora_r is not None:
        raise UsageError("--lora-r needs a trained model; a model from scratch is trained as a whole")
    if job.resume:
        folder = job.folder / IMITATION_FOLDER
        if not folder.is_dir():
            raise UsageError(f"--resume: {folder} is missing, so the model that this run began with is not known")
        return *load(str(folder.absolute())), f"the model that this run began with is in {folder}"
    records, count = scratch_records(job), len(job.inputs.train.records)
    model, tokenizer = fresh(
        size,
        records,
        objectives=job.args.objectives,
        scales=job.inputs.scales,
        template=job.template,
        seed=job.args.seed,
        max_length=job.max_prompt_length + job.max_response_length,
    )
    prompts = f"{count} training prompts"
    if len(records) < count:
        prompts = f"{len(records)} of {prompts}, drawn by the seed"
    return model, tokenizer, f"the tokenizer and the imitation are made from {prompts}"
