"""Specification of every operation of this package in plain PyTorch.

Written for reading and for being right, in whatever dtype it is given: tests run it in fp64 as the truth and in the
tested dtype as the yardstick ("no worse than plain PyTorch"); benchmarks use it as the baseline. Nothing here is fast,
nothing here saves memory: `linear_logprobs` builds the whole `[N, V]` tensor of logits on purpose.

Sources: AMoPO, Liu et al. 2025, Eq. 9 (loss) and Eq. 10 (weights); Philox4x32-10, Salmon et al., SC 2011.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Log-probability of each row's target token under a linear head: `log_softmax(z)[target]`.

    `z = softcap(logit_scale * (hidden @ weight.T + bias))` with `softcap(u) = cap * tanh(u / cap)`.

    Args:
        hidden: `[N, H]` rows. weight: `[V, H]`. targets: `[N]` integers in `[0, V)`. bias: `[V]`.
    Returns:
        `[N]` natural-log probabilities, in the dtype of `hidden`.
    """
    logits = F.linear(hidden, weight, bias)
    if logit_scale is not None:
        logits = logits * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.log_softmax(logits, dim=-1).gather(1, targets.long()[:, None])[:, 0]


def sequence_stats(logps: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of log-probs, token count, mean and population variance of token probabilities, per sequence.

    Sequence `s` owns `logps[offsets[s]:offsets[s + 1]]`. Only the first output carries gradients.

    Returns:
        four `[S]` tensors; an empty sequence gives zeros.
    """
    sums, lengths, means, variances = [], [], [], []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        tokens = logps[start:end]
        probs = tokens.detach().exp()
        sums.append(tokens.sum())
        lengths.append(torch.as_tensor(end - start, dtype=logps.dtype))
        means.append(probs.mean() if end > start else probs.sum())
        variances.append(probs.var(unbiased=False) if end > start else probs.sum())
    return torch.stack(sums), torch.stack(lengths), torch.stack(means), torch.stack(variances)


def path_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[tuple[int, int]], *, scaling: float, window: int | None = None
) -> Tensor:
    """Causal attention of segments against the paths that they end, one after the other.

    Of each (n, m) in `lengths`, query i of n sees keys max(0, m - n + i + 1 - window) to m - n + i of the path's m.
    Query heads share the key-value heads in order.

    Args:
        q: `[T, Hq, D]`, T the sum of all n. k, v: `[S, Hkv, D]` and `[S, Hkv, Dv]`, S the sum of all m.
    Returns:
        `[T, Hq, Dv]`, in the dtype of `q`.
    """
    shared = q.shape[1] // k.shape[1]
    outputs, first_query, first_key = [], 0, 0
    for queries, keys in lengths:
        for query in range(queries):
            last = keys - queries + query + 1
            seen = slice(first_key + (0 if window is None else max(0, last - window)), first_key + last)
            own = q[first_query + query]
            heads = []
            for head in range(q.shape[1]):
                scores = k[seen, head // shared] @ own[head] * scaling
                heads.append(scores.softmax(0) @ v[seen, head // shared])
            outputs.append(torch.stack(heads))
        first_query, first_key = first_query + queries, first_key + keys
    return torch.stack(outputs) if outputs else q.new_empty((0, q.shape[1], v.shape[2]))


def weight_distribution(
    chosen_logps: list[Tensor], rejected_logps: list[Tensor], *, pooled: str
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the Gaussian of each objective's weight, for one sample (Eq. 10).

    `pooled="union"`: over all tokens of both responses together. `pooled="sum"`: means and variances of the two added.
    Takes one `[T]` tensor of token log-probs per objective; returns two `[K]` tensors, detached.
    """
    means, variances = [], []
    for chosen, rejected in zip(chosen_logps, rejected_logps, strict=True):
        chosen, rejected = chosen.detach().exp(), rejected.detach().exp()
        if pooled == "union":
            tokens = torch.cat([chosen, rejected])
            means.append(tokens.mean())
            variances.append(tokens.var(unbiased=False))
        elif pooled == "sum":
            means.append(chosen.mean() + rejected.mean())
            variances.append(chosen.var(unbiased=False) + rejected.var(unbiased=False))
        else:
            raise ValueError(f"pooled must be 'union' or 'sum', got {pooled!r}")
    return torch.stack(means), torch.stack(variances).sqrt()


def orient(
    chosen_logps: list[Tensor], rejected_logps: list[Tensor], signs: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Responses of one sample as each objective ranks them: (the better ones, the worse ones), K of each.

    Sign +1: objective k prefers the chosen response; -1: the rejected one; 0: it prefers neither, and the order stays.
    """
    sides = [
        (rejected, chosen) if sign < 0 else (chosen, rejected)
        for chosen, rejected, sign in zip(chosen_logps, rejected_logps, signs, strict=True)
    ]
    return [better for better, _ in sides], [worse for _, worse in sides]


def present_softmax(scores: Tensor, present: list[bool]) -> Tensor:
    """Softmax over the objectives of one sample that are present; exactly 0 for the others. `[K] -> [K]`."""
    alpha = torch.zeros_like(scores)
    where = [k for k, there in enumerate(present) if there]
    alpha[where] = torch.softmax(scores[where], dim=0)
    return alpha


def amopo_sample_loss(
    chosen_logps: list[Tensor],
    rejected_logps: list[Tensor],
    alpha: Tensor,
    *,
    beta: float,
    gamma: float = 0.0,
    present: list[bool] | None = None,
) -> Tensor:
    """AMoPO's loss of one sample (Eq. 9): `sum_k alpha_k * softplus(-(beta * (A_kw - A_kl) - gamma))`.

    `A` is the mean token log-prob of a response. An objective that is not `present` adds nothing, whatever its
    log-probs are.
    """
    loss = alpha.new_zeros(())
    for k, (chosen, rejected) in enumerate(zip(chosen_logps, rejected_logps, strict=True)):
        if present is not None and not present[k]:
            continue
        margin = beta * (chosen.mean() - rejected.mean()) - gamma
        loss = loss + alpha[k].detach() * F.softplus(-margin)
    return loss


def logged_values(
    chosen_logps: list[Tensor], rejected_logps: list[Tensor], alpha: Tensor, *, beta: float, pooled: str
) -> Tensor:
    """What training logs of one sample, `[len(LOGGED), K]` in the order of `amopo_kernels.mobt.LOGGED`, detached."""
    mu, sigma = weight_distribution(chosen_logps, rejected_logps, pooled=pooled)
    total = alpha.sum()
    share = alpha / total if total > 0 else torch.zeros_like(alpha)
    entropy = -sum((p * p.log() for p in share if p > 0), share.new_zeros(()))
    columns = []
    for k, (chosen, rejected) in enumerate(zip(chosen_logps, rejected_logps, strict=True)):
        reward_chosen, reward_rejected = beta * chosen.mean(), beta * rejected.mean()
        margin = reward_chosen - reward_rejected
        sums = [chosen.sum(), rejected.sum()]
        rewards = [reward_chosen, reward_rejected, margin, (margin > 0).to(margin.dtype)]
        columns.append(torch.stack([*rewards, *sums, alpha[k], mu[k], sigma[k], entropy]))
    return torch.stack(columns, dim=1).detach()


def official_loss(
    chosen_logps: list[list[Tensor]],
    rejected_logps: list[list[Tensor]],
    noise: Tensor,
    *,
    beta: float,
    gamma: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """The released trainer's arithmetic for a micro-batch, given its noise.

    Unbiased standard deviation, one draw for the chosen and one for the rejected response, added; softmax over all
    K * B entries; mean over K * B of weight times loss.

    Args:
        chosen_logps, rejected_logps: indexed `[objective][sample]`, token log-probs `[T]`.
        noise: `[K, B, 2]` standard normal draws (chosen, rejected).
    Returns:
        the loss, and the weights `[K, B]`.
    """
    scores, losses = [], []
    for k, (chosen_row, rejected_row) in enumerate(zip(chosen_logps, rejected_logps, strict=True)):
        for b, (chosen, rejected) in enumerate(zip(chosen_row, rejected_row, strict=True)):
            draws = [p.mean() + p.std() * e for p, e in zip((chosen.exp(), rejected.exp()), noise[k, b], strict=True)]
            scores.append((draws[0] + draws[1]).detach())
            losses.append(-F.logsigmoid(beta * (chosen.mean() - rejected.mean() - gamma / beta)))
    weights = torch.softmax(torch.stack(scores), dim=0)
    loss = (weights * torch.stack(losses)).mean()
    return loss, weights.view(len(chosen_logps), -1)


_MASK32 = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int = 10) -> tuple[int, int, int, int]:
    """Philox4x32 on Python integers: four 32-bit words from a 128-bit counter and a 64-bit key (Salmon et al. 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def gaussian_noise(seed: int, step: int, sample_id: int, objective: int) -> tuple[float, float]:
    """Two independent standard normals of one (seed, step, sample, objective), by Box-Muller in double precision.

    Counter words: step, low and high half of the sample id, objective. Uniforms keep the upper 24 bits of a word, so
    that they are exact in fp32: `u1` in (0, 1], `u2` in [0, 1). The first normal comes from words 0 and 1, the second
    from words 2 and 3.
    """
    words = philox4x32(
        (step & _MASK32, sample_id & _MASK32, (sample_id >> 32) & _MASK32, objective),
        (seed & _MASK32, (seed >> 32) & _MASK32),
    )
    normals = []
    for a, b in (words[:2], words[2:]):
        u1, u2 = ((a >> 8) + 1) * 2.0**-24, (b >> 8) * 2.0**-24
        normals.append(math.sqrt(-2.0 * math.log(u1)) * math.cos(2.0 * math.pi * u2))
    return normals[0], normals[1]
