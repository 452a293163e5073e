"""The fp64 truth of a benchmark case, and the errors of a provider against it.

Log-probs are exact for all rows. Gradients are linear in the upstream gradient, so the truth keeps them per unit of it:
dlogp/dh of a sample of rows, and `onehot - softmax` of all rows at a sample of vocabulary entries. A provider's loss
then decides which upstream gradient they are multiplied with. Log-probs and dh come from `amopo_kernels.reference` in
fp64, row chunk by row chunk.

    dH[n]  = c_n * unit_hidden[n]            on sampled rows
    dW[v]  = sum_n c_n (1[y_n = v] - p_nv) h_n     on sampled entries (half of them targets)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amopo_kernels import reference
from bench.common.cases import HeadCase

# Beyond these a provider does not compute the same thing; it is reported all the same, with its errors.
LIMITS = {"logp_error": 0.15, "grad_hidden_error": 0.05, "grad_weight_error": 0.05}
_CHUNK_BYTES = 512 << 20


@dataclass
class Truth:
    """See the module; all fp64."""

    logps: Tensor
    rows: Tensor
    unit_hidden: Tensor
    entries: Tensor
    unit_logits: Tensor  # [N, entries]
    hidden: Tensor

    def grad_hidden(self, upstream: Tensor) -> Tensor:
        return upstream.double()[self.rows, None] * self.unit_hidden

    def grad_weight(self, upstream: Tensor) -> Tensor:
        return (self.unit_logits * upstream.double()[:, None]).t() @ self.hidden


def truth_of(case: HeadCase, *, sample_rows: int = 64, sample_entries: int = 256) -> Truth:
    """The truth of a case, computed once."""
    key = (sample_rows, sample_entries)
    if key not in case.cache:
        case.cache[key] = _truth(case, *key)
    return case.cache[key]


def _truth(case: HeadCase, sample_rows: int, sample_entries: int) -> Truth:
    count, vocab = case.shape.rows, case.shape.vocab
    hidden, weight = case.hidden.double(), case.weight.double()
    rows = torch.linspace(0, count - 1, min(sample_rows, count), device=case.device).long().unique()
    random = torch.randint(0, vocab, (sample_entries // 2,), generator=torch.Generator().manual_seed(1))
    entries = torch.cat([case.targets[: sample_entries // 2], random.to(case.device)]).unique()
    chunk = max(1, _CHUNK_BYTES // (8 * vocab))
    with torch.no_grad():
        logps = torch.cat(
            [
                reference.linear_logprobs(hidden[start : start + chunk], weight, case.targets[start : start + chunk])
                for start in range(0, count, chunk)
            ]
        )
    unit_hidden = []
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        leaf = hidden[part].requires_grad_()
        total = reference.linear_logprobs(leaf, weight, case.targets[part]).sum()
        unit_hidden.append(torch.autograd.grad(total, leaf)[0])
    log_mass = (hidden * weight[case.targets]).sum(1) - logps
    softmax = torch.exp(hidden @ weight[entries].t() - log_mass[:, None])
    onehot = (case.targets[:, None] == entries[None, :]).double()
    return Truth(logps, rows, torch.cat(unit_hidden), entries, onehot - softmax, hidden)


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Frobenius norm of the difference over that of the exact value."""
    return float((value.double() - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float64).tiny))


def gradient_errors(
    truth: Truth, upstream: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None
) -> dict[str, float]:
    """Relative errors of dH (all sampled rows; the worst of them) and dW (sampled vocabulary entries)."""
    errors = {}
    if grad_hidden is not None:
        exact = truth.grad_hidden(upstream)
        got = grad_hidden.detach()[truth.rows].double()
        errors["grad_hidden_error"] = relative_error(got, exact)
        rows = (got - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(1e-300)
        errors["grad_hidden_worst_row"] = float(rows.max())
    if grad_weight is not None:
        errors["grad_weight_error"] = relative_error(grad_weight.detach()[truth.entries], truth.grad_weight(upstream))
    return errors


def over_limit(errors: dict[str, float]) -> list[str]:
    """Names of the errors that say: this provider computes something else. NaN is over every limit."""
    return [name for name, limit in LIMITS.items() if name in errors and not errors[name] <= limit]
