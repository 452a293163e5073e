"""The released AMoPO step, written again from its arithmetic: 2K padded rows per sample, fp32 logits of every position.

    released_loss(model, samples, noise[B, K, 2]) -> (loss, sum_logps[B, K, 2])

One forward of `[2 * K * B, longest]` with an attention mask; log_softmax over all positions, prompt and padding
included; mean log-prob per response, margins with gamma = 2, weights from unbiased token statistics and a draw per
response, softmax over the K * B entries of the batch, mean over them. Token probabilities are the exponentials of the
log-probs that are there anyway, which is the cheapest way to write it. Equal to `fused_loss(preset="official")`, given
the noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amopo.packing import TokenizedSample

GAMMA = 2.0


def padded_rows(samples: Sequence[TokenizedSample]) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, attention_mask, labels, each `[K * 2 * B, longest]`; rows by objective, then chosen | rejected."""
    sequences = [
        (sample.prompts[k], response(sample))
        for k in range(samples[0].num_objectives)
        for response in (lambda s: s.chosen, lambda s: s.rejected)
        for sample in samples
    ]
    longest = max(len(prompt) + len(response) for prompt, response in sequences)
    ids, mask = torch.zeros(len(sequences), longest, dtype=torch.int64), torch.zeros(len(sequences), longest).long()
    labels = torch.full_like(ids, -100)
    for row, (prompt, response) in enumerate(sequences):
        length = len(prompt) + len(response)
        ids[row, :length], mask[row, :length] = torch.tensor(prompt + response), 1
        labels[row, len(prompt) : length] = torch.tensor(response)
    return ids, mask, labels


def released_loss(
    model: nn.Module, samples: Sequence[TokenizedSample], noise: Tensor, *, beta: float = 0.8
) -> tuple[Tensor, Tensor]:
    """Loss and summed log-probs of one micro-batch of B samples."""
    batch, objectives = len(samples), samples[0].num_objectives
    device = model.get_input_embeddings().weight.device
    ids, mask, labels = (part.to(device) for part in padded_rows(samples))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()[:, :-1]
    labels = labels[:, 1:]
    wanted = labels != -100
    logps = F.log_softmax(logits, dim=-1).gather(2, labels.clamp(min=0)[..., None])[..., 0] * wanted
    lengths = wanted.sum(1)
    sums = logps.sum(1)
    probs = logps.detach().exp() * wanted
    mean = probs.sum(1) / lengths
    deviation = ((probs - mean[:, None]).square() * wanted).sum(1) / (lengths - 1).clamp(min=1)

    def by_sample(values: Tensor) -> Tensor:  # [K, 2, B] -> [B, K, 2]
        return values.view(objectives, 2, batch).permute(2, 0, 1)

    average = by_sample(sums / lengths)
    draws = by_sample(mean) + by_sample(deviation.sqrt()) * noise.to(device)
    alpha = draws.sum(-1).flatten().softmax(0).view(batch, objectives)
    margin = beta * (average[..., 0] - average[..., 1]) - GAMMA
    return (alpha * F.softplus(-margin)).mean(), by_sample(sums)
