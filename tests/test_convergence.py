"""200 steps of a tiny model through the fused path and through plain PyTorch end in the same place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import amopo
from amopo_kernels import reference

VOCAB, HIDDEN, LENGTH, SAMPLES, OBJECTIVES, STEPS = 211, 32, 12, 4, 2, 200
ROWS = 2 * SAMPLES * OBJECTIVES


class TinyModel(torch.nn.Module):
    """Embedding, one mixing layer over a causal mean, a head; optionally LoRA on the head."""

    def __init__(self, dtype: torch.dtype, mode: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def parameter(*shape, scale=0.2):
            return torch.nn.Parameter((torch.randn(*shape, generator=generator) * scale).to(dtype))

        self.embedding, self.mix, self.head = (
            parameter(VOCAB, HIDDEN),
            parameter(HIDDEN, HIDDEN),
            parameter(VOCAB, HIDDEN),
        )
        self.lora_a, self.lora_b = parameter(4, HIDDEN), torch.nn.Parameter(torch.zeros(VOCAB, 4, dtype=dtype))
        self.head.requires_grad_(mode == "full")
        self.uses_lora = mode == "lora"
        self.lora_a.requires_grad_(self.uses_lora)
        self.lora_b.requires_grad_(self.uses_lora)

    def hidden(self, tokens):
        states = F.embedding(tokens, self.embedding)
        counts = torch.arange(1, LENGTH + 1, dtype=states.dtype)[:, None]
        return torch.tanh((states.cumsum(1) / counts) @ self.mix)


def batch(step: int):
    generator = torch.Generator().manual_seed(1000 + step % 5)
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator)
    prompt = torch.randint(2, 6, (ROWS, 1), generator=generator)
    return tokens, torch.where(torch.arange(LENGTH)[None] < prompt, -100, tokens)


def response_rows(hidden, labels):
    wanted = labels[:, 1:] != -100
    return hidden[:, :-1][wanted], labels[:, 1:][wanted], wanted.sum(1)


def fused_step(model, tokens, labels, step):
    rows, targets, lengths = response_rows(model.hidden(tokens), labels)
    lora = (model.lora_a, model.lora_b, 2.0) if model.uses_lora else None
    logps = amopo.linear_logprobs(rows, model.head, targets, lora=lora, budget=60_000)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    layout = amopo.TreeLayout(
        num_samples=SAMPLES, num_objectives=OBJECTIVES, row_index=torch.arange(len(rows)), row_target=targets,
        fan_out=None, offsets=offsets, max_target=VOCAB - 1, num_tokens=len(rows),
    )  # fmt: skip
    return amopo.loss_from_logps(logps, layout, beta=2.0, step=step).loss


def plain_step(model, tokens, labels, step):
    rows, targets, lengths = response_rows(model.hidden(tokens), labels)
    weight = model.head + 2.0 * model.lora_b @ model.lora_a if model.uses_lora else model.head
    logps = torch.log_softmax((rows @ weight.T).float(), -1).gather(1, targets[:, None])[:, 0]
    sequences = logps.split(lengths.tolist())
    losses = []
    for b in range(SAMPLES):
        chosen = [sequences[(b * OBJECTIVES + k) * 2] for k in range(OBJECTIVES)]
        rejected = [sequences[(b * OBJECTIVES + k) * 2 + 1] for k in range(OBJECTIVES)]
        mu, sigma = reference.weight_distribution(chosen, rejected, pooled="union")
        noise = torch.tensor([reference.gaussian_noise(0, step, b, k)[0] for k in range(OBJECTIVES)])
        alpha = torch.softmax(mu + sigma * noise.to(mu.dtype), 0)
        losses.append(reference.amopo_sample_loss(chosen, rejected, alpha, beta=2.0))
    return torch.stack(losses).mean()


def train(run, dtype, mode):
    model = TinyModel(dtype, mode)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    curve = []
    for step in range(STEPS):
        loss = run(model, *batch(step), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.detach().double())
    return torch.stack(curve), model


# bf16 weights have 8 bits: two runs that round differently drift apart by a few of their steps.
BANDS = {torch.float32: (2e-4, 2e-3), torch.bfloat16: (3e-2, 6e-2)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(BANDS), ids=str)
@pytest.mark.parametrize("mode", ["full", "frozen", "lora"])
def test_fused_and_plain_runs_agree(dtype, mode):
    curve, model = train(fused_step, dtype, mode)
    expected, plain = train(plain_step, dtype, mode)
    curve_band, weight_band = BANDS[dtype]
    assert float(expected[-5:].mean()) < 0.7 * float(expected[:5].mean()), "the run must learn something"
    assert (curve - expected).abs().max() < curve_band
    for (name, value), truth in zip(model.named_parameters(), plain.parameters(), strict=True):
        error = (value.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-6)
        assert error < weight_band, f"{name}: {error:.1e}"
