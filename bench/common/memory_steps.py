"""One optimizer step of a model by each method whose memory is compared, and what it took.

    amopo pair, none, tree   one packed row; log-probs without stored logits
    plain bf16               2K padded rows per sample; logits in the model's dtype and their log-softmax
    released                 the same rows; logits in fp32, their log-softmax, its exponential for the token statistics,
                             and the logits of chosen and rejected responses joined for a metric

The rows are written so that they keep the least that such a method can: labels are shifted instead of logits (a shifted
view would be copied by log_softmax), and nothing but what autograd saves outlives the forward. All train the same
weights with the same AdamW; `plan_method` plans each under the same name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from amopo.fused_loss import loss_from_logps
from amopo.memory import track
from amopo.memory.configs import samples_of
from amopo.memory.profile import build
from amopo.memory.settings import RunSettings, SampleShape
from amopo.packing import pack
from bench.common.measure import release_memory, synchronize
from bench.common.memory_cases import MemoryCase
from bench.common.released_step import padded_rows

METHODS = ("amopo pair", "amopo none", "amopo tree", "plain bf16", "released")
BETA = 0.8


def padded_loss(logits: Tensor, labels: Tensor, samples: int, *, released: bool) -> Tensor:
    """A margin loss over rows `[K * 2 * B, length]` (by objective, then chosen | rejected) from all of their logits.

    The weights of the objectives are uniform: they are a few numbers, and take no memory.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    wanted = targets != -100
    if released:
        logits = logits.float()
        joined = torch.cat([part for pair in logits.view(-1, 2, samples, *logits.shape[1:]) for part in pair])
    log_probs = logits.log_softmax(-1)
    if released:
        probs = log_probs.exp()
        joined.mean(), probs.detach().mean()
    token = log_probs.gather(2, targets.clamp(min=0)[..., None])[..., 0].float() * wanted
    average = (token.sum(1) / wanted.sum(1)).view(-1, 2, samples)
    return F.softplus(-BETA * (average[:, 0] - average[:, 1])).mean()


class MemorySteps:
    """A case's model on the device, its optimizer with its state made, and steps of any method.

    The model is built on the device with random weights in the dtype that it trains in, never elsewhere or larger.
    """

    def __init__(self, case: MemoryCase, settings: RunSettings, device: torch.device, card: int) -> None:
        from amopo.trainer.forward import patch_forward

        self.case, self.settings, self.device, self.card = case, settings, device, card
        self.before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        self.model = build(case.shape, settings, device)
        patch_forward(self.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        self.step("amopo pair", case.sample)  # makes the optimizer's state, and loads what kernels load
        release_memory(device)

    def _autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "mixed")

    def step(self, method: str, sample: SampleShape) -> None:
        """Forward, backward and optimizer of `sample.samples` samples."""
        loss = self._packed(method, sample) if method.startswith("amopo ") else self._padded(method, sample)
        loss.backward()
        del loss
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _packed(self, method: str, sample: SampleShape) -> Tensor:
        sample = dataclasses.replace(sample, sharing=method.removeprefix("amopo "))
        batch = pack(samples_of(sample), sharing=sample.sharing).to(self.device)
        with self._autocast():
            logps = self.model(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)
        return loss_from_logps(logps, batch.layout, sample_ids=batch.sample_ids, step=0).loss

    def _padded(self, method: str, sample: SampleShape) -> Tensor:
        ids, mask, labels = (part.to(self.device) for part in padded_rows(samples_of(sample)))
        with self._autocast():
            output = self.model(input_ids=ids, attention_mask=mask, use_cache=False)
        logits = output.logits
        del output  # it would keep them a second time, where they are made fp32
        rows = [logits]
        del logits
        return padded_loss(rows.pop(), labels, sample.samples, released=method == "released")

    def peaks(self, method: str, sample: SampleShape) -> dict[str, int]:
        """Peak bytes of each phase of one step.

        Raises:
            torch.OutOfMemoryError: the step did not fit; on a CPU, where nothing stops it, it took more than the card.
        """
        release_memory(self.device)
        with track(self.model, self.optimizer, device=self.device) as memory:
            self.step(method, sample)
        peaks = {phase: size - self.before for phase, size in memory.peaks.items()}
        if self.device.type != "cuda" and max(peaks.values()) > self.card:
            raise torch.OutOfMemoryError(f"a step of {max(peaks.values())} bytes on a card of {self.card}")
        return peaks

    def recover(self) -> None:
        """After a step that failed: no gradients, no blocks kept by the allocator."""
        self.optimizer.zero_grad(set_to_none=True)
        release_memory(self.device)

    def seconds(self, method: str, sample: SampleShape) -> float:
        """Time of one step, without a tracker."""
        synchronize(self.device)
        start = time.perf_counter()
        self.step(method, sample)
        synchronize(self.device)
        return time.perf_counter() - start

    def close(self) -> None:
        del self.model, self.optimizer
        gc.collect()
        release_memory(self.device)
