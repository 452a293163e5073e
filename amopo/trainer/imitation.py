"""Supervised warm-up: a model learns to imitate responses.

Contract
--------
`Demonstration(prompt, response)`: two token lists; the response ends with the end-of-turn token.
`imitate(model, demonstrations, epochs=..., ...)` trains the model in place and returns an `ImitationResult`.
The loss is the mean negative log-prob over **response tokens** of a step's rows; prompt tokens carry no loss.

Rows of similar length share a batch of at most `token_budget` tokens (padding included), in a seeded order. They are
padded on the right, so that under causal attention no real token sees a pad: no attention mask is needed or passed.
AdamW with linear warm-up, then a cosine down to a tenth; gradients are clipped at norm 1.

Memory: one batch's logits at the response positions, `[response tokens, V]`. It is meant for small models.
Not supported: several processes, mixed precision; the model trains in the dtype and on the device it has.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Demonstration:
    prompt: list[int]
    response: list[int]

    def __post_init__(self) -> None:
        if not self.prompt or not self.response:
            part = "response" if self.prompt else "prompt"
            raise ValueError(f"a demonstration needs at least one token in its {part}")

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class ImitationResult:
    steps: int
    tokens: int
    first_loss: float
    last_loss: float  # mean over the last tenth of the steps


def batches(
    demonstrations: Sequence[Demonstration], *, token_budget: int, seed: int, window: int = 2048
) -> Iterator[list[Demonstration]]:
    """One epoch of batches: shuffled, then sorted by length within windows, then the batches shuffled."""
    longest = max(map(len, demonstrations))
    if longest > token_budget:
        raise ValueError(f"a demonstration of {longest} tokens does not fit token_budget={token_budget}; raise it")
    order = list(demonstrations)
    generator = random.Random(seed)
    generator.shuffle(order)
    made: list[list[Demonstration]] = []
    for start in range(0, len(order), window):
        rows: list[Demonstration] = []
        for row in sorted(order[start : start + window], key=len):
            if rows and (len(rows) + 1) * len(row) > token_budget:
                made.append(rows)
                rows = []
            rows.append(row)
        made.append(rows)
    generator.shuffle(made)
    yield from made


def collate(rows: Sequence[Demonstration], *, pad: int) -> tuple[Tensor, Tensor]:
    """`input_ids [B, L]` padded on the right, and `labels [B, L]`, -100 where nothing is to be learnt."""
    length = max(map(len, rows))
    input_ids = torch.full((len(rows), length), pad, dtype=torch.int64)
    labels = torch.full((len(rows), length), -100, dtype=torch.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row.prompt + row.response)
        labels[i, len(row.prompt) : len(row)] = torch.tensor(row.response)
    return input_ids, labels


def imitation_loss(model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-prob of the labelled tokens; only their positions go through the head."""
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    learnt = targets != -100
    logits = model.get_output_embeddings()(hidden[:, :-1][learnt])
    return nn.functional.cross_entropy(logits.float(), targets[learnt])


def learning_rate(step: int, total: int, peak: float, *, warmup: float = 0.05, floor: float = 0.1) -> float:
    """The rate at `step` of `total`: up linearly over the first part, then a cosine down to `floor * peak`."""
    rising = max(1, int(total * warmup))
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def imitate(
    model: nn.Module,
    demonstrations: Sequence[Demonstration],
    *,
    epochs: float = 1.0,
    token_budget: int = 4096,
    peak_lr: float = 2e-3,
    weight_decay: float = 0.05,
    pad: int = 0,
    seed: int = 0,
    on_step: Callable[[int, int, float | None], None] | None = None,
    report_every: int = 20,
) -> ImitationResult:
    """Trains `model` in place; `on_step(step, total, loss)` follows every step, with a loss of None between reports."""
    if not demonstrations:
        raise ValueError("imitate needs at least one demonstration")
    if not epochs > 0:
        raise ValueError(f"epochs must be positive, not {epochs}")
    schedule: list[list[Demonstration]] = []
    for epoch in range(math.ceil(epochs)):
        made = list(batches(demonstrations, token_budget=token_budget, seed=seed + epoch))
        schedule.extend(made[: max(1, round(len(made) * min(1.0, epochs - epoch)))])
    total = len(schedule)
    device = next(model.parameters()).device
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=peak_lr,
        betas=(0.9, 0.98),
    )
    was_training = model.training
    model.train()
    losses: list[Tensor] = []
    tokens = 0
    for step, rows in enumerate(schedule):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, peak_lr)
        input_ids, labels = collate(rows, pad=pad)
        loss = imitation_loss(model, input_ids.to(device), labels.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        tokens += sum(map(len, rows))
        if on_step is not None:
            reports = step % report_every == 0 or step == total - 1
            on_step(step + 1, total, float(losses[-1]) if reports else None)
    model.train(was_training)
    tail = torch.stack(losses[-max(1, total // 10) :]).mean()
    return ImitationResult(steps=total, tokens=tokens, first_loss=float(losses[0]), last_loss=float(tail))
