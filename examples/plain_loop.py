"""A plain PyTorch loop: python examples/plain_loop.py [--model NAME]"""

import argparse
import random

import tiny
import torch

import amopo


def train(model, samples, *, epochs=4, batch=4, learning_rate=1e-3, device="cpu"):
    model.to(device).train()
    amopo.patch(model)  # the forward now returns log-probs for a layout; generate() stays as it was
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    step = 0
    for _ in range(epochs):
        random.Random(step).shuffle(samples)
        for start in range(0, len(samples), batch):
            packed = amopo.pack(samples[start : start + batch]).to(device)
            logps = model(input_ids=packed.input_ids, position_ids=packed.position_ids, amopo_layout=packed.layout)
            result = amopo.loss_from_logps(logps, packed.layout, sample_ids=packed.sample_ids, step=step)
            result.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        print(f"step {step}: loss {result.loss.item():.4f}, margins {result.metrics['rewards/margins'].tolist()}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    model, tokenizer = tiny.load(parser.parse_args().model)
    train(model, tiny.samples(tokenizer))
