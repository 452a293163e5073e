"""AMoPO in axolotl: a plugin with data, collator and trainer.

    plugins: [amopo.integrations.axolotl.AMoPOPlugin]
    datasets: [{path: preferences.jsonl, type: amopo}]   # grouped JSONL or HelpSteer2's own rows, see docs/data.md
    amopo_objectives: [helpfulness, correctness]

The plugin reads the data and gives the builder `AMoPOCollator` and `trainer_class(...)`: axolotl's trainer with AMoPO's
loss on log-probs that are made without logits. Model loading, adapters, optimizers, DeepSpeed and FSDP configuration,
callbacks and checkpoints are axolotl's. axolotl pins a transformers that is too old for packed rows, so batches are
padded: `micro_batch_size` samples of 2K sequences each.

The loss is the mean over a micro-batch's samples, averaged over accumulation steps and ranks. The weights' noise is
keyed by (seed, optimizer step, sample, objective); in evaluations the step is 0. Metrics have TRL's names and are exact
means over samples and ranks.

Unsupported (raises): `rl:` (its builder gives a plugin's trainer no model), several datasets, sample packing,
streaming, context parallelism. axolotl also logs `ppl`, the exponential of the loss; it means nothing here.
"""

from __future__ import annotations

from amopo.integrations.axolotl.collator import AMoPOCollator
from amopo.integrations.axolotl.data import tokenized_rows
from amopo.integrations.axolotl.plugin import AMoPOPlugin
from amopo.integrations.axolotl.settings import AMoPOArgs, Settings, settings_of
from amopo.integrations.axolotl.trainer import trainer_class

__all__ = [
    "AMoPOArgs",
    "AMoPOCollator",
    "AMoPOPlugin",
    "Settings",
    "settings_of",
    "tokenized_rows",
    "trainer_class",
]
