"""Inputs and the error criterion for tests of the linear head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amopo_kernels import reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@dataclass
class HeadCase:
    """Leaf tensors of one call, with its upstream gradient per row (never 1)."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor
    bias: Tensor | None = None
    logit_scale: float | None = None
    softcap: float | None = None

    @property
    def transform(self) -> dict:
        return {"bias": self.bias, "logit_scale": self.logit_scale, "softcap": self.softcap}

    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.weight, self.bias) if leaf is not None]

    def converted(self, dtype: torch.dtype) -> HeadCase:
        """The same numbers in another dtype, as fresh leaves."""
        hidden, weight = (leaf.detach().to(dtype).requires_grad_() for leaf in (self.hidden, self.weight))
        bias = None if self.bias is None else self.bias.detach().to(dtype).requires_grad_()
        return HeadCase(hidden, weight, self.targets, self.upstream, bias, self.logit_scale, self.softcap)

    def run(self, function: Callable[..., Tensor], **options) -> list[Tensor]:
        """Log-probs and the gradients of hidden, weight and bias."""
        logps = function(self.hidden, self.weight, self.targets, **self.transform, **options)
        gradients = torch.autograd.grad(logps, self.leaves(), self.upstream.to(logps.dtype))
        return [logps.detach(), *gradients]


def make_case(
    dtype: torch.dtype,
    rows: int = 37,
    hidden: int = 24,
    vocab: int = 501,
    *,
    bias: bool = False,
    logit_scale: float | None = None,
    softcap: float | None = None,
) -> HeadCase:
    return HeadCase(
        torch.randn(rows, hidden).to(dtype).requires_grad_(),
        (torch.randn(vocab, hidden) * 0.5).to(dtype).requires_grad_(),
        torch.randint(0, vocab, (rows,)),
        torch.randn(rows, dtype=torch.float64) * 3.0,
        torch.randn(vocab).to(dtype).requires_grad_() if bias else None,
        logit_scale,
        softcap,
    )


def plant_logps(case: HeadCase, planted: list[float]) -> HeadCase:
    """Give the first rows' targets chosen log-probs, by a hidden coordinate that only their weight rows read."""
    dtype, count = case.hidden.dtype, len(planted)
    hidden = torch.cat([case.hidden.detach(), torch.zeros(case.hidden.shape[0], count, dtype=dtype)], 1)
    weight = torch.cat([case.weight.detach(), torch.zeros(case.weight.shape[0], count, dtype=dtype)], 1)
    targets = case.targets.clone()
    targets[:count] = torch.arange(count) * 3
    for row, logp in enumerate(planted):
        logits = hidden[row].double() @ weight.double().T
        others = torch.cat([logits[: targets[row]], logits[targets[row] + 1 :]])
        odds = logp - torch.log(-torch.expm1(torch.tensor(logp, dtype=torch.float64)))
        hidden[row, -count + row] = (torch.logsumexp(others, 0) + odds - logits[targets[row]]).to(dtype)
        weight[targets[row], -count + row] = 1.0
    return HeadCase(hidden.requires_grad_(), weight.requires_grad_(), targets, case.upstream)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth (over 1 where the truth vanishes)."""
    norm = truth.double().norm()
    return float((value.double() - truth.double()).norm() / (norm if norm > 0 else 1.0))


def assert_no_worse(case: HeadCase, results: list[Tensor], *, factor: float, tol: float) -> None:
    """err(results, fp64) <= factor * err(plain PyTorch in the case's dtype, fp64) + tol, output by output."""
    truth = case.converted(torch.float64).run(reference.linear_logprobs)
    plain = case.converted(case.hidden.dtype).run(reference.linear_logprobs)
    for name, value, exact, yardstick in zip(("logp", "dH", "dW", "db"), results, truth, plain, strict=False):
        assert torch.isfinite(value).all(), f"{name} holds NaN or inf"
        error, allowed = relative_error(value, exact), factor * relative_error(yardstick, exact) + tol
        assert error <= allowed, f"{name}: error {error:.2e} against fp64, allowed {allowed:.2e}"
