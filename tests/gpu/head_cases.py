"""Inputs on a device, and fp64 truth that fits beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amopo_kernels import reference


@dataclass
class DeviceCase:
    """Leaves of one call of the head, with its upstream gradient per row (never 1)."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor

    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.weight) if leaf.requires_grad]

    def run(self, function, **options) -> list[Tensor]:
        """Log-probs, then the gradients of the leaves."""
        logps = function(self.hidden, self.weight, self.targets, **options)
        return [logps.detach(), *torch.autograd.grad(logps, self.leaves(), self.upstream.to(logps.dtype))]

    def converted(self, dtype: torch.dtype) -> DeviceCase:
        hidden, weight = (
            leaf.detach().to(dtype).requires_grad_(leaf.requires_grad) for leaf in (self.hidden, self.weight)
        )
        return DeviceCase(hidden, weight, self.targets, self.upstream)

    def truth(self, **options) -> list[Tensor]:
        return self.converted(torch.float64).run(reference.linear_logprobs, **options)


def make_case(device, dtype, rows=129, hidden=72, vocab=4003, *, spread=1.0) -> DeviceCase:
    """Logits with a standard deviation of about `spread`."""
    weight = torch.randn(vocab, hidden, device=device) * (spread / hidden**0.5)
    return DeviceCase(
        torch.randn(rows, hidden, device=device).to(dtype).requires_grad_(),
        weight.to(dtype).requires_grad_(),
        torch.randint(0, vocab, (rows,), device=device),
        torch.randn(rows, dtype=torch.float64, device=device) * 3.0,
    )


def plant_logps(case: DeviceCase, planted: list[float]) -> DeviceCase:
    """Give the first rows chosen log-probs, by a hidden coordinate that only their target's weight row reads."""
    dtype, count = case.hidden.dtype, len(planted)
    hidden = torch.cat([case.hidden.detach(), case.hidden.new_zeros(case.hidden.shape[0], count)], 1).detach()
    weight = torch.cat([case.weight.detach(), case.weight.new_zeros(case.weight.shape[0], count)], 1).detach()
    targets = case.targets.clone()
    targets[:count] = torch.arange(count, device=targets.device) * 3
    for row, logp in enumerate(planted):
        logits = hidden[row].double() @ weight.double().T
        target = int(targets[row])
        others = torch.cat([logits[:target], logits[target + 1 :]])
        odds = logp - torch.log(-torch.expm1(torch.tensor(logp, dtype=torch.float64, device=logits.device)))
        hidden[row, -count + row] = (torch.logsumexp(others, 0) + odds - logits[target]).to(dtype)
        weight[target, -count + row] = 1.0
    return DeviceCase(hidden.requires_grad_(), weight.requires_grad_(), targets, case.upstream)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth."""
    value, truth = value.detach().double(), truth.detach().double()
    return float((value - truth).norm() / truth.norm().clamp_min(1e-300))
