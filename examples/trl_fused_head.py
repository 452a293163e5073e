"""TRL's own fused head, our objective: python examples/trl_fused_head.py [--model NAME]

For those whose model carries `trl.trainer.utils.add_fused_lm_head` already: three lines feed its log-probs to AMoPO.
"""

import argparse
import tempfile

import tiny
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl.trainer.utils import add_fused_lm_head

from amopo.ending import entry
from amopo.integrations.hf import AMoPOMixin, PreferenceLoss
from amopo.integrations.trl import PreferenceCollator


class FusedHeadTrainer(AMoPOMixin, Trainer):
    patches_model = False

    def token_logps(self, model, inputs, labels):
        return model(**inputs, labels=labels, fused_lm_head=True).log_probs  # [rows, length - 1]


def train(model, tokenizer, output_dir):
    add_fused_lm_head(model)
    trainer = FusedHeadTrainer(
        model,
        TrainingArguments(
            output_dir,
            per_device_train_batch_size=4,
            num_train_epochs=3,
            learning_rate=1e-3,
            logging_steps=2,
            save_strategy="no",
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(tiny.preferences()),
        data_collator=PreferenceCollator(
            tokenizer, tiny.OBJECTIVES, scales=tiny.SCALES, template="brief", packed=False
        ),
        amopo=PreferenceLoss(objectives=tiny.OBJECTIVES),
    )
    trainer.train()
    return trainer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    with tempfile.TemporaryDirectory() as folder:
        trainer = train(*tiny.load(parser.parse_args().model), folder)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    trainer.accelerator.print(f"loss {logs[0]['loss']:.4f} -> {logs[-1]['loss']:.4f}")


if __name__ == "__main__":
    entry(main)  # under torchrun: how a rank ends
