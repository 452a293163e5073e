"""Length-normalised log-probs of responses under given prompts.

Contract
--------
`mean_logps(model, rows, token_budget=..., pad=...)` -> fp64 tensor `[len(rows)]`: for each row (a prompt and a
response, as token lists) the mean over response tokens of log p(token | prompt, tokens before it), in the order given.
Sequences are written out one by one, nothing is shared: the plain way to compute what `amopo.packed_logps` packs.

Rows of similar length share a batch of at most `token_budget` tokens, padded on the right. No logits are kept: only
response positions reach the head, through `amopo.linear_logprobs`. The model is put into eval mode and back.
Not supported: models whose head is no plain linear layer, or that scale or cap their logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from amopo.trainer.imitation import Demonstration, collate
from amopo_kernels.linear_logprobs import linear_logprobs


@torch.no_grad()
def mean_logps(
    model: nn.Module,
    rows: Sequence[Demonstration],
    *,
    token_budget: int = 8192,
    pad: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> Tensor:
    """One mean log-prob per row. `on_batch(done, total)` follows every batch with counts of rows."""
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, not {token_budget}")
    device = next(model.parameters()).device
    head = model.get_output_embeddings()
    found = torch.zeros(len(rows), dtype=torch.float64)
    was_training = model.training
    model.eval()
    try:
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * len(rows[order[stop]]) <= token_budget:
                stop += 1
            chosen = order[start:stop]
            input_ids, labels = collate([rows[index] for index in chosen], pad=pad)
            # Causal attention: what follows on the right changes nothing, so no mask is needed.
            hidden = model.base_model(input_ids=input_ids.to(device), use_cache=False).last_hidden_state
            counts = torch.tensor([len(rows[index].response) for index in chosen])
            targets = labels[:, 1:]
            learnt = targets != -100
            logps = linear_logprobs(
                hidden[:, :-1][learnt.to(device)], head.weight, targets[learnt].to(device), bias=head.bias
            )
            owner = torch.repeat_interleave(torch.arange(len(chosen)), counts)
            sums = torch.zeros(len(chosen), dtype=torch.float64).index_add_(0, owner, logps.double().cpu())
            found[chosen] = sums / counts
            start = stop
            if on_batch is not None:
                on_batch(start, len(order))
    finally:
        model.train(was_training)
    return found
