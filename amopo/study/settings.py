"""The settings of the studies. They are committed before a study is run, and stay.

`TaskSettings` and `SummevalSettings` hold everything that a study can be varied by; the instances below are what
`amopo demo --seeds N` runs. What was tried before, and on what, stands beside the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What both studies have. A step is `pairs_per_batch * batches_per_step` pairs, whatever the method.

    Batches are filled in windows of 512 pairs, so `pairs_per_batch` must be a power of two for all to be full.
    """

    model: str = "scratch:tiny"
    max_prompt_length: int = 128
    max_response_length: int = 128
    eval_fraction: float = 0.0
    imitation_epochs: float = 1.3
    imitation_learning_rate: float = 3e-3
    imitation_tokens: int = 1024
    steps: int = 50
    pairs_per_batch: int = 4
    batches_per_step: int = 8
    learning_rate: float = 5e-5
    warmup_steps: int = 10
    beta: float = 2.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.pairs_per_batch < 1 or self.pairs_per_batch & (self.pairs_per_batch - 1):
            raise ValueError(f"pairs_per_batch must be a power of two, not {self.pairs_per_batch}")

    @property
    def pairs(self) -> int:
        """Pairs that a training takes."""
        return self.steps * self.pairs_per_batch * self.batches_per_step


@dataclass(frozen=True)
class TaskSettings(Settings):
    """On generated tasks, scored by program."""

    train_prompts: int = 6000
    eval_prompts: int = 400
    plain_draws: int = 4
    """Responses drawn per held-out prompt without a template; with each template, `template_draws`."""
    template_draws: int = 2
    max_new_tokens: int = 48


@dataclass(frozen=True)
class SummevalSettings(Settings):
    """On rated summaries: which of a prompt's responses does the model rank first?"""

    eval_fraction: float = 0.3
    imitation_epochs: float = 3.0
    # Nine of ten responses fit whole; of an article the beginning and the end are shown.
    max_prompt_length: int = 96
    max_response_length: int = 192
    # Fewer steps over fewer pairs than on tasks, since a pair has six times the tokens; larger ones in return.
    steps: int = 40
    learning_rate: float = 2e-4
    warmup_steps: int = 5
    # A row holds one pair under all objectives; its attention costs the square of its length.
    pairs_per_batch: int = 1
    batches_per_step: int = 12


# The same for every study, seed and method.
TRAINING: Mapping[str, Any] = {"lr_scheduler_type": "constant_with_warmup"}

# Learning rate, beta and the amount of imitation are those of the single demo, found on seed 0. No study has seed 0.
TASKS = TaskSettings()
# Sizes by what two CPU cores do in half an hour. Nothing was tuned on these data.
SUMMEVAL = SummevalSettings()
# `--quick`: a minute or two, to see that everything runs. Too small to judge a method by.
QUICK_TASKS = TaskSettings(
    train_prompts=1200, eval_prompts=40, plain_draws=1, template_draws=1, imitation_epochs=1.0, steps=6
)
QUICK_SUMMEVAL = SummevalSettings(
    model="scratch:nano", max_prompt_length=64, max_response_length=64, imitation_epochs=0.5, steps=3
)
