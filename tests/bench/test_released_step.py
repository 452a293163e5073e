"""The baseline of the packing benchmark computes what the released trainer computes."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")

from amopo.fused_loss import fused_loss  # noqa: E402
from amopo.packing import TokenizedSample  # noqa: E402
from amopo_kernels.philox import gaussian_noise  # noqa: E402
from bench.common.released_step import padded_rows, released_loss  # noqa: E402

SAMPLES = [
    TokenizedSample([[5, 6, 7], [8, 9], [10]], [11, 12, 13], [14, 15], 3),
    TokenizedSample([[16], [17, 18, 19, 20], [21, 22]], [23, 24], [25, 26, 27, 28], 4),
]


def make_model():
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.2,
    }  # fmt: skip
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))


@pytest.mark.parametrize("samples", [SAMPLES[:1], SAMPLES], ids=["B = 1", "B = 2"])
def test_equals_the_official_preset_in_loss_and_gradients(samples):
    model = make_model()
    ids = torch.tensor([sample.id for sample in samples])
    noise = gaussian_noise(ids, 3, seed=7, step=torch.tensor(2)).float()
    loss, sums = released_loss(model, samples, noise)
    got = torch.autograd.grad(loss, list(model.parameters()))
    tokens, mask, labels = padded_rows(samples)
    hidden = model.model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    result = fused_loss(
        hidden, model.lm_head, labels, num_objectives=3, order="objective_major", preset="official", sample_ids=ids,
        seed=7, step=2,
    )  # fmt: skip
    torch.testing.assert_close(loss, result.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums, result.sum_logps, rtol=1e-5, atol=1e-5)
    for value, right in zip(got, torch.autograd.grad(result.loss, list(model.parameters())), strict=True):
        assert (value - right).norm() < 1e-4 * right.norm()
