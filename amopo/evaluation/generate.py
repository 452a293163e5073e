"""Responses that a model gives to many prompts.

Contract
--------
`generate(model, tokenizer, prompts, ...)` takes prompt **texts** as the chat template wrote them (assistant header
included) and returns one response text per prompt, in order: what came before the end-of-turn token, special tokens
removed. Prompts of similar length share a batch, padded on the left. `temperature=0` (default) is greedy and
deterministic; above 0 it samples, and `seed` decides what. torch's global generator is left as it was.

Memory: one batch's KV cache, `batch_size * (prompt + max_new_tokens)` tokens. The model is put into eval mode and back.
Not supported: models without `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def left_pad(rows: Sequence[list[int]], *, pad: int) -> tuple[Tensor, Tensor]:
    """`input_ids [B, L]` and `attention_mask [B, L]`, each row at the right edge."""
    length = max(map(len, rows))
    input_ids = torch.full((len(rows), length), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for i, row in enumerate(rows):
        input_ids[i, length - len(row) :] = torch.tensor(row)
        mask[i, length - len(row) :] = 1
    return input_ids, mask


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    end_of_turn_id: int | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[str]:
    """One response per prompt. `on_batch(done, total)` is called after every batch with counts of prompts."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, not {temperature}")
    if not prompts:
        return []
    # The chat template has written the special tokens already.
    encoded = tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"]
    if not all(encoded):
        raise ValueError(f"prompt {[bool(ids) for ids in encoded].index(False)} has no tokens; nothing to continue")
    end = tokenizer.eos_token_id if end_of_turn_id is None else end_of_turn_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    responses = [""] * len(encoded)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            input_ids, mask = left_pad([list(encoded[index]) for index in indices], pad=pad)
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                eos_token_id=end,
                pad_token_id=pad,
                **(sampling or {"do_sample": False}),
            )
            for index, row in zip(indices, output[:, input_ids.shape[1] :].tolist(), strict=True):
                kept = row[: row.index(end)] if end in row else row
                responses[index] = tokenizer.decode(kept, skip_special_tokens=True)
            if on_batch is not None:
                on_batch(start + len(indices), len(order))
    model.train(was_training)
    return responses
