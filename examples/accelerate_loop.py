"""The loop under accelerate: python examples/accelerate_loop.py, or on several processes

accelerate launch --multi_gpu --num_processes 2 examples/accelerate_loop.py    (or torchrun; also without any GPU)
"""

import argparse

import tiny
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

import amopo
from amopo.ending import entry
from amopo.integrations.hf import PreferenceCollator


def train(model, samples, *, pad_token_id, epochs=4, batch=4, learning_rate=1e-3, accumulate=2):
    # Without a GPU accelerate must be told so: it would leave the model unwrapped on every rank.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), gradient_accumulation_steps=accumulate)
    set_seed(0)  # of the shuffling
    amopo.patch(model)  # before prepare: the wrappers then see all that is used
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    collator = PreferenceCollator(pad_token_id=pad_token_id, packed=False)  # padded [2 * K * batch, length] rows
    loader = DataLoader(samples, batch_size=batch, shuffle=True, collate_fn=collator)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    step = 0
    for _ in range(epochs):
        for inputs in loader:
            with accelerator.accumulate(model):
                ids = inputs.pop("amopo_sample_ids")
                logps = model(**inputs)  # labels in, log-probs out
                result = amopo.loss_from_logps(
                    logps,
                    labels=inputs["labels"],
                    num_objectives=len(tiny.OBJECTIVES),
                    order="sample_major",
                    sample_ids=ids,
                    step=step,
                )
                accelerator.backward(result.loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    step += 1
                optimizer.step()
                optimizer.zero_grad()
        loss = accelerator.reduce(result.loss.detach(), reduction="mean")
        margins = accelerator.reduce(result.metrics["rewards/margins"], reduction="mean")
        accelerator.print(f"step {step}: loss {loss.item():.4f}, margins {margins.tolist()}")
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    model, tokenizer = tiny.load(parser.parse_args().model)
    train(model, tiny.samples(tokenizer), pad_token_id=tokenizer.pad_token_id)


if __name__ == "__main__":
    entry(main)  # in place of end_training(), after which ranks on CPUs may hang
