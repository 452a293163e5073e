"""LLaMA-Factory's DPO stage without logits: its own trainer and losses, on fused log-probs.

`FusedDPOTrainer` is LLaMA-Factory's `CustomDPOTrainer` with `concatenated_forward` replaced. All its losses (sigmoid,
hinge, ipo, kto_pair, orpo, simpo) and terms (pref_ftx, pref_bco_weight, dpo_label_smoothing, ld_alpha), reference
models and adapters work as before and give the same loss and gradients. There, every micro-batch holds the logits
`[2B, length, V]` in fp32, with a log-softmax of the same size beside it; here, only response tokens enter the head.

`logits/chosen` and `logits/rejected` are not logged: there are no logits.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from llamafactory.train.dpo import trainer as host
from torch import Tensor

from amopo.integrations.llamafactory.forward import label_logps, patch_logps
from amopo.trainer.engines import check_parallelism, keep_output_dtype
from amopo.trainer.micro_batches import ReducedMicroBatches
from amopo_kernels.segments import sequence_stats

# Losses of the mean log-prob per token; the others are of the sum.
AVERAGED = ("ipo", "orpo", "simpo")
# Taken before `install` puts FusedDPOTrainer in its place.
_CustomDPOTrainer = host.CustomDPOTrainer


class FusedDPOTrainer(ReducedMicroBatches, _CustomDPOTrainer):
    """`CustomDPOTrainer` whose log-probs come from the fused head."""

    def __init__(self, model: Any, ref_model: Any, *args: Any, **kwargs: Any) -> None:
        # Before accelerate, DeepSpeed or FSDP wrap what is patched.
        for one in (model, ref_model):
            if one is not None:
                patch_logps(one)
        super().__init__(model, ref_model, *args, **kwargs)
        check_parallelism(self)
        keep_output_dtype(self)

    def concatenated_forward(self, model: Any, batch: dict[str, Any], is_ref_model: bool = False) -> dict[str, Tensor]:
        """What `CustomDPOTrainer.concatenated_forward` gives, with zeros for the logits."""
        arguments = {name: value for name, value in batch.items() if name != "labels"}
        logps, offsets = label_logps(model, arguments, batch["labels"])
        if self.ld_alpha is not None and not is_ref_model:
            logps = logps * _length_desensitised(offsets, logps.shape[0], self.ld_alpha).to(logps.dtype)
        sums = sequence_stats(logps, offsets).sum_logp
        lengths = (offsets[1:] - offsets[:-1]).to(sums.dtype)
        averages = sums / lengths
        chosen, rejected = (averages if self.loss_type in AVERAGED else sums).chunk(2)
        nothing = logps.new_zeros(())
        return {
            "chosen_logps": chosen,
            "rejected_logps": rejected,
            "chosen_logits": nothing,
            "rejected_logits": nothing,
            "chosen_logps_avg": averages.chunk(2)[0],
        }

    def get_batch_loss_metrics(
        self, model: Any, batch: dict[str, Any], train_eval: Literal["train", "eval"] = "train"
    ) -> tuple[Tensor, dict[str, Any]]:
        """Loss and metrics of one micro-batch."""
        loss, metrics = super().get_batch_loss_metrics(model, batch, train_eval)
        return loss, {name: value for name, value in metrics.items() if "logits/" not in name}

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """The loss alone: there are no logits to return."""
        return super().prediction_step(model, inputs, True, ignore_keys)


@torch.no_grad()
def _length_desensitised(offsets: Tensor, count: int, ld_alpha: float) -> Tensor:
    """`[N]`: 1 for as many tokens as the shorter response of the pair has, `ld_alpha` for what is longer (LD-DPO)."""
    lengths = offsets[1:] - offsets[:-1]
    shorter = torch.minimum(*lengths.chunk(2)).repeat(2)
    place = torch.arange(count, device=offsets.device) - offsets[:-1].repeat_interleave(lengths, output_size=count)
    within = place < shorter.repeat_interleave(lengths, output_size=count)
    return torch.where(within, 1.0, ld_alpha)
