"""A whole step over the operators in one graph of torch.compile: hidden states to loss, and back."""

from __future__ import annotations

import shutil

import pytest
import torch

from amopo_kernels import linear_logprobs, sequence_stats
from amopo_kernels.mobt_op import mobt

SAMPLES, OBJECTIVES, HIDDEN, VOCAB = 3, 4, 16, 211
CPP_COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
BACKEND = "inductor" if CPP_COMPILER else "aot_eager"
# The compiler may add up in another order; dW and dH are sums over rows.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}


class Step:
    """hidden -> body -> head -> objective -> loss, with a term of the sequences' mean log-probs beside it."""

    def __init__(self, dtype: torch.dtype, **options) -> None:
        lengths = torch.randint(1, 9, (SAMPLES * OBJECTIVES * 2,))
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        rows = int(self.offsets[-1])
        self.targets = torch.randint(0, VOCAB, (rows,))
        self.ids, self.step = torch.arange(SAMPLES), torch.tensor(5)
        self.options = options
        self.leaves = [
            torch.randn(rows, HIDDEN, dtype=dtype).requires_grad_(),
            torch.randn(HIDDEN, HIDDEN, dtype=dtype).requires_grad_(),
            (torch.randn(VOCAB, HIDDEN, dtype=dtype) * 0.5).requires_grad_(),
        ]

    def loss(self, hidden, body, weight):
        logps = linear_logprobs(torch.tanh(hidden @ body), weight, self.targets, **self.options)
        shape = (SAMPLES, OBJECTIVES, 2)
        result = mobt(
            logps, self.offsets[:-1].view(shape), self.offsets[1:].view(shape), weights="gaussian",
            sample_ids=self.ids, seed=7, step=self.step, beta=0.8, gamma=0.3, pooled="union",
        )  # fmt: skip
        stats = sequence_stats(logps, self.offsets)
        loss = result.losses.mean() - 0.1 * (stats.sum_logp / stats.length).mean()
        return loss, result.weights, stats.var_prob

    def run(self, function):
        loss, *others = function(*self.leaves)
        return loss.detach(), *others, *torch.autograd.grad(loss, self.leaves)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, options",
    [
        (torch.float32, {}),
        (torch.float32, {"budget": 25_000, "softcap": 5.0}),
        (torch.float64, {}),
    ],
    ids=["kept", "rebuilt, softcap", "float64"],
)
def test_a_step_compiles_whole_and_computes_the_same(dtype, options):
    torch._dynamo.reset()
    step = Step(dtype, **options)
    expected = step.run(step.loss)
    got = step.run(torch.compile(step.loss, fullgraph=True, backend=BACKEND))
    tol = TOLERANCE[dtype]
    for name, value, exact in zip(("loss", "weights", "var", "hidden", "body", "weight"), got, expected, strict=True):
        torch.testing.assert_close(value, exact, rtol=tol, atol=tol, msg=lambda text, name=name: f"{name}: {text}")


def test_a_compiled_step_follows_what_changes():
    """The second call has other rows: nothing of the first may have been baked in."""
    torch._dynamo.reset()
    compiled = torch.compile(linear_logprobs, fullgraph=True, backend="aot_eager")
    weight = torch.randn(VOCAB, HIDDEN).requires_grad_()
    for rows in (7, 12, 5):
        hidden, targets = torch.randn(rows, HIDDEN), torch.randint(0, VOCAB, (rows,))
        results = []
        for function in (compiled, linear_logprobs):
            logps = function(hidden, weight, targets)
            results.append((logps.detach(), *torch.autograd.grad(logps.sum(), weight)))
        for value, exact in zip(*results, strict=True):
            torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-6)
