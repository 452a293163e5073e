"""What a training step logs.

Contract
--------
`StepLogs` is the part of `AMoPOTrainer` that logs. With the loss of training steps go the metrics of all samples since
the last log, on all ranks (`amopo.trainer.metrics`), tokens per second as packed and as written out, how much sharing
saves, how full the batches are, and the peak of memory where the system tells it. Training reads numbers from the
device here and nowhere else.
"""

from __future__ import annotations

from transformers import Trainer

from amopo.trainer.peak_memory import peak_memory_gib


class StepLogs(Trainer):
    """transformers' Trainer, with the metrics since the last log."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; at a training step with the metrics since the last one."""
        if "loss" in logs and not self._sums.is_empty:
            totals = self._sums.reduce(self._all_reduce)
            seconds = self._clock.read()
            logs.update(totals.means)
            if seconds > 0:
                logs["tokens_per_second"] = totals.num_tokens / seconds
                logs["represented_tokens_per_second"] = totals.represented_tokens / seconds
            logs["amopo/sharing"] = totals.represented_tokens / totals.num_tokens
            logs["amopo/fill"] = totals.num_tokens / (totals.num_batches * self.args.tokens_per_batch)
            peak = peak_memory_gib(self.args.device)
            if peak is not None:
                logs["amopo/peak_memory_gib"] = peak
        for name in [name for name in logs if name.endswith("_steps_per_second") and not name.startswith("train_")]:
            # transformers derives it from a batch size that token budgets do not have
            del logs[name]
        super().log(logs, start_time)
