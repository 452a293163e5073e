"""AMoPO in a transformers.Trainer of your own: python examples/hf_trainer.py [--model NAME] [--padded]"""

import argparse
import tempfile

import tiny
from transformers import Trainer, TrainingArguments

from amopo.ending import entry
from amopo.integrations.hf import AMoPOMixin, PreferenceCollator, PreferenceLoss


class MyTrainer(AMoPOMixin, Trainer):
    """Whatever you override in Trainer stays; the loss, its normalisation and the metrics come from the mixin."""


def train(model, tokenizer, output_dir, *, padded=False):
    samples = tiny.samples(tokenizer)
    collator = PreferenceCollator(pad_token_id=tokenizer.pad_token_id, packed=False) if padded else PreferenceCollator()
    trainer = MyTrainer(
        model,
        TrainingArguments(
            output_dir,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=4,
            learning_rate=1e-3,
            logging_steps=4,
            eval_strategy="epoch",
            save_strategy="no",
            use_cpu=True,
        ),
        train_dataset=samples[:12],
        eval_dataset=samples[12:],
        data_collator=collator,
        processing_class=tokenizer,
        amopo=PreferenceLoss(objectives=tiny.OBJECTIVES),
    )
    trainer.train()
    return trainer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--padded", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = tiny.load(args.model)
        trainer = train(model, tokenizer, folder, padded=args.padded)
        metrics = trainer.evaluate()
    trainer.accelerator.print({name: round(value, 4) for name, value in metrics.items() if "margins" in name})


if __name__ == "__main__":
    entry(main)  # under torchrun: how a rank ends
