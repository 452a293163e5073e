"""LoRA on body and head: python examples/peft_head.py [--model NAME] [--head lora|frozen|whole]"""

import argparse
import tempfile

import tiny
import torch
from peft import LoraConfig, get_peft_model

from amopo import AMoPOConfig, AMoPOTrainer
from amopo.ending import entry

BODY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def wrap(model, head):
    """head: "frozen" (adapters on the body alone), "lora" (one on the head too), "whole" (the head trains in full)."""
    torch.manual_seed(0)  # adapters begin at random
    targets = [*BODY, "lm_head"] if head == "lora" else BODY
    whole = ["lm_head"] if head == "whole" else None
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, modules_to_save=whole))


def train(model, tokenizer, output_dir, *, head="lora"):
    args = AMoPOConfig(
        output_dir,
        objectives=tiny.OBJECTIVES,
        tokens_per_batch=512,
        num_train_epochs=4,
        learning_rate=1e-2,
        logging_steps=4,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = AMoPOTrainer(wrap(model, head), args, train_dataset=tiny.samples(tokenizer), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(output_dir)  # the adapter; with head="whole" also the head
    return trainer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--head", choices=["lora", "frozen", "whole"], default="lora")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainer = train(*tiny.load(args.model), folder, head=args.head)
    if trainer.is_world_process_zero():
        trainer.model.print_trainable_parameters()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        print(f"loss {logs[0]['loss']:.4f} -> {logs[-1]['loss']:.4f}")


if __name__ == "__main__":
    entry(main)  # under torchrun: how a rank ends
