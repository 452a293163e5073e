"""Is a packed row exact for this model, on this device, in this precision?

Contract
--------
`compare_with_separate_forwards(model, samples, sharing=...)` packs the samples, and runs each of their 2K sequences
alone through the model's own forward and its own logits. It returns a `Comparison` of the summed log-probs and of the
gradient of every trainable parameter, for a random combination of the log-probs. Nothing of the model is changed: no
`.grad`, no random number of the global generators, dropout is off meanwhile.

`check_first_batch(trainer)` does so for the first samples of a trainer's first batch, and raises where they differ.

Cost: one packed forward and backward, 2K forwards and backwards per sample with stored logits, three copies of the
gradients. Sharded weights (FSDP, ZeRO-3) raise: the separate forwards need them whole.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amopo.packing.attention_backends import RAN
from amopo.packing.pack import PackedBatch, pack
from amopo.packing.sample import TokenizedSample
from amopo.packing.unpack import samples_of
from amopo.trainer.forward import causal_lm, is_patched, patch_forward
from amopo.trainer.logps import packed_logps
from amopo.trainer.wrapping import is_sharded

logger = logging.getLogger(__name__)
CHECKED_SAMPLES = 2

# What rounding alone can explain: nats per token, and relative error of a gradient.
ALLOWED = {
    torch.float64: (1e-6, 1e-5),  # rotary embeddings and norms run in fp32
    torch.float32: (1e-5, 1e-3),
    torch.float16: (1e-2, 5e-2),
    torch.bfloat16: (5e-2, 2e-1),
}


@dataclass(frozen=True)
class Comparison:
    """How far packed rows are from separate forwards.

    logps: largest difference of a sequence, in nats per token. gradient: largest relative error, of parameter `worst`;
    relative to its norm, or to a thousandth of what is usual in the model where it is smaller. tokens: of the packed
    row; represented: of the sequences. backend: kernels that attention ran on.
    """

    logps: float
    gradient: float
    worst: str
    allowed_logps: float
    allowed_gradient: float
    tokens: int
    represented: int
    backend: str = ""

    @property
    def is_exact(self) -> bool:
        """Both are explained by rounding."""
        return self.logps <= self.allowed_logps and self.gradient <= self.allowed_gradient

    def __str__(self) -> str:
        return (
            f"log-probs differ by {self.logps:.1e} nats per token (allowed {self.allowed_logps:.0e}), gradients by "
            f"{self.gradient:.1e} relative (allowed {self.allowed_gradient:.0e}; most in {self.worst}); "
            f"{self.tokens} tokens stand for {self.represented}, attention by {self.backend}"
        )


def compare_with_separate_forwards(
    model: nn.Module, samples: Sequence[TokenizedSample], *, sharing: str = "pair", dtype: torch.dtype | None = None
) -> Comparison:
    """Packed against separate forwards.

    Args:
        model: a transformers causal LM, bare or wrapped by PEFT. samples: of the same K. sharing: as in `amopo.pack`.
        dtype: what the model computes in (default: the dtype of its embedding; the autocast dtype under autocast).
    Raises:
        ValueError: sharded weights, or a model that cannot run packed rows at all.
    """
    owner = causal_lm(model)
    parameters = {name: p for name, p in owner.named_parameters() if p.requires_grad}
    if any(type(p.data) is not Tensor or p.numel() == 0 for p in parameters.values()):
        raise ValueError("a self-check needs whole weights; run it before the model is sharded (amopo doctor)")
    device = owner.get_input_embeddings().weight.device
    if dtype is None:
        dtype = owner.get_input_embeddings().weight.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
    modes = [(module, module.training) for module in owner.modules()]
    # Nothing is trained: under a launcher too the model stands alone.
    patch = contextlib.nullcontext() if is_patched(owner) else patch_forward(owner, allow_unwrapped=True)
    owner.eval()
    try:
        with patch:
            batch = pack(samples, sharing=sharing).to(device)
            RAN.clear()
            got = packed_logps(owner, batch)
            backend = ", ".join(sorted(RAN)) or "transformers"
            direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(0)).to(device)
            gradients = _gradients((got * direction).sum(), parameters)
            expected, exact = _separately(owner, samples, direction, parameters)
    finally:
        for module, mode in modes:
            module.training = mode
    lengths = (batch.layout.offsets[1:] - batch.layout.offsets[:-1]).view(got.shape)
    logps = ((got.detach().double() - expected) / lengths).abs().max().item()
    floor = _smallest_gradient(exact)
    errors = {name: _relative(gradients[name], exact[name], floor) for name in parameters}
    worst = max(errors, key=errors.__getitem__, default="(no parameter)")
    return Comparison(
        logps, errors.get(worst, 0.0), worst, *ALLOWED[dtype], batch.layout.num_tokens,
        batch.layout.represented_tokens, backend,
    )  # fmt: skip


def check_first_batch(trainer: Any) -> None:
    """Raise if, for the first samples of this rank's first batch, the packed row is not exact."""
    model = trainer.model
    if not all(p.numel() > 0 and not p.is_meta for p in model.parameters()) or is_sharded(model):
        raise ValueError(
            "self_check runs separate forwards of a whole model, and this one is sharded already: check it once on "
            "one process (max_steps=1), then train with self_check=False"
        )
    inputs = next(iter(trainer.get_train_dataloader()))
    batch = PackedBatch(inputs["input_ids"], inputs["position_ids"], inputs["amopo_layout"], inputs["amopo_sample_ids"])
    with trainer.accelerator.autocast():
        found = compare_with_separate_forwards(model, samples_of(batch)[:CHECKED_SAMPLES], sharing=trainer.args.sharing)
    if not found.is_exact:
        raise RuntimeError(f"self_check: a packed row is not what separate forwards give: {found}")
    logger.info("self_check: a packed row is what separate forwards give: %s", found)


def _smallest_gradient(exact: dict[str, Tensor]) -> float:
    """Root mean square per entry below which a gradient counts as zero: a thousandth of that of all parameters.

    Some gradients are zero but for rounding, that of a key's bias without rotary embeddings for example: softmax does
    not see what is added to all scores of a query. Rounding divided by rounding says nothing.
    """
    entries = sum(gradient.numel() for gradient in exact.values())
    total = sum(gradient.double().square().sum().item() for gradient in exact.values())
    return 1e-3 * (total / entries) ** 0.5 if entries else 0.0


def _relative(got: Tensor, exact: Tensor, floor: float) -> float:
    scale = max(exact.double().norm().item(), floor * exact.numel() ** 0.5)
    error = (got.double() - exact.double()).norm().item()
    return error / scale if scale else error


def _gradients(loss: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True) if parameters else ()
    return {
        name: torch.zeros_like(p) if gradient is None else gradient.detach()
        for (name, p), gradient in zip(parameters.items(), found, strict=True)
    }


def _separately(
    owner: nn.Module, samples: Sequence[TokenizedSample], direction: Tensor, parameters: dict[str, nn.Parameter]
) -> tuple[Tensor, dict[str, Tensor]]:
    """fp64 sums `[B, K, 2]` and gradients, one sequence after the other."""
    sums = torch.zeros(direction.shape, dtype=torch.float64, device=direction.device)
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for b, sample in enumerate(samples):
        for k, prompt in enumerate(sample.prompts):
            for side, response in enumerate((sample.chosen, sample.rejected)):
                ids = torch.tensor([prompt + response], device=direction.device)
                logits = owner(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
                wide = torch.promote_types(logits.dtype, torch.float32)
                logps = logits.to(wide).log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).sum()
                sums[b, k, side] = logps.detach()
                for name, gradient in _gradients(logps * direction[b, k, side], parameters).items():
                    total[name] += gradient
    return sums, total
