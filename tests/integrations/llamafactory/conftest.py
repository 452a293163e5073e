"""A tiny model, and batches and settings as LLaMA-Factory makes them. Run by `make test-llamafactory`."""

from __future__ import annotations

import pytest
import torch

# LLaMA-Factory and transformers are imported by fixtures only: test modules skip where LLaMA-Factory is absent.

VOCAB, LENGTH = 97, 13


@pytest.fixture
def installed():
    from amopo.integrations.llamafactory import install

    with install() as installation:
        yield installation


@pytest.fixture
def make_model():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def make(seed: int = 0, **changes):
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.5,  # log-probs and margins of a real model's size
            **changes,
        )
        return Qwen2ForCausalLM(config).float()

    return make


@pytest.fixture
def make_batch():
    """Padded rows with labels on the responses; row 0 has the shortest response, one token."""

    def make(rows: int, seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        input_ids = torch.randint(0, VOCAB, (rows, LENGTH), generator=generator)
        labels = torch.full_like(input_ids, -100)
        mask = torch.zeros_like(input_ids)
        for row in range(rows):
            prompt, response = 2 + row % 3, 1 + (5 * row) % 7
            mask[row, : prompt + response] = 1
            labels[row, prompt : prompt + response] = input_ids[row, prompt : prompt + response]
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}

    return make


@pytest.fixture
def make_trainer(tmp_path, make_model):
    """A trainer of LLaMA-Factory's DPO stage of the class given."""
    from llamafactory.hparams import TrainingArguments

    def make(trainer_class, finetuning_args, *, model=None, ref_model=None):
        return trainer_class(
            model=model if model is not None else make_model(),
            ref_model=ref_model,
            args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", seed=5),
            finetuning_args=finetuning_args,
            processor=None,
            tokenizer=None,
            data_collator=lambda features: features,
        )

    return make


@pytest.fixture
def gradients():
    def collect(model):
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    return collect
