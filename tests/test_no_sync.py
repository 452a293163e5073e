"""Between hidden states and loss, and back, nothing waits for a value when a layout says where everything is.

On a CPU there is nothing to wait for; the operations that would wait on CUDA are forbidden by name. What the device
itself says (`torch.cuda.set_sync_debug_mode`) is asked in tests/gpu.
"""

from __future__ import annotations

import random

import pytest
import torch

import amopo
from amopo.fused_loss import loss_from_logps
from amopo.packing import TokenizedSample, pack
from amopo_kernels import cpp
from tests.kernels.syncs import SyncWatch

BUILT, REASON = cpp.available()
BACKENDS = ["eager", pytest.param("cpp", marks=pytest.mark.skipif(not BUILT, reason=REASON))]
VOCAB, HIDDEN, OBJECTIVES, SAMPLES = 61, 16, 3, 4


def make_batch(shared: bool, signs=None):
    """A real packed row; `shared`: branch tokens predict several tokens, rows serve several sequences."""
    rng = random.Random(0)

    def tokens(longest):
        return [rng.randrange(VOCAB) for _ in range(rng.randint(1, longest))]

    samples = []
    for number in range(SAMPLES):
        begin, chosen = tokens(3), tokens(6)
        rejected = [(chosen[0] + 1) % VOCAB, *tokens(6)]
        samples.append(
            TokenizedSample([tokens(5) for _ in range(OBJECTIVES)], begin + chosen, begin + rejected, number, signs)
        )
    batch = pack(samples, sharing="pair" if shared else "none")
    layout = batch.layout
    assert shared == (layout.fan_out is not None) == (len(layout.row_index.unique()) < len(layout.row_index))
    return batch


def make_layout(shared: bool, signs=None):
    return make_batch(shared, signs).layout


SETTINGS = {
    "default": {},
    "weights mean, pooled sum": {"weights": "mean", "pooled": "sum"},
    "uniform": {"weights": "uniform"},
    "fixed weights": {"weights": torch.tensor([0.2, 0.5, 0.3])},
    "own weights": {"weights": lambda stats: stats.mean},
    "simpo": {"objective": "simpo"},
    "official": {"preset": "official"},
    "small budget": {"budget": 3_000},
    "softcap and scale": {"softcap": 4.0, "logit_scale": 0.5},
    "drawn step": {"step": None},
    "normalizer on the device": {"normalizer": torch.tensor(7.0)},
}


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("shared", [False, True], ids=["rows of their own", "shared rows"])
@pytest.mark.parametrize("head", ["module", "weight", "frozen"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_with_a_layout_never_waits(monkeypatch, kind, shared, head, setting):
    monkeypatch.setenv("AMOPO_BACKEND", kind)
    layout = make_layout(shared)
    hidden = torch.randn(layout.num_tokens, HIDDEN, requires_grad=True)
    module = torch.nn.Linear(HIDDEN, VOCAB, bias=head == "module")
    module.weight.requires_grad_(head != "frozen")
    lm_head = module.weight if head == "weight" else module
    options = {"step": 3, "sample_ids": torch.arange(SAMPLES), **SETTINGS[setting]}
    with SyncWatch() as watch:
        result = amopo.fused_loss(hidden, lm_head, layout=layout, **options)
        result.loss.backward()
    assert watch.seen["linear_logprobs"] == 1 and watch.seen["linear_logprobs_backward"] == 1
    assert torch.isfinite(hidden.grad).all() and hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "official"])
def test_nor_does_one_with_signs(monkeypatch, kind, setting):
    monkeypatch.setenv("AMOPO_BACKEND", kind)
    layout = make_layout(shared=True, signs=(1, -1, 0))
    hidden, head = torch.randn(layout.num_tokens, HIDDEN, requires_grad=True), torch.nn.Linear(HIDDEN, VOCAB)
    with SyncWatch():
        amopo.fused_loss(hidden, head, layout=layout, **{"step": 3, **SETTINGS[setting]}).loss.backward()
    assert torch.isfinite(hidden.grad).all() and hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", BACKENDS)
def test_nor_does_the_loss_of_given_logps(monkeypatch, kind):
    monkeypatch.setenv("AMOPO_BACKEND", kind)
    layout = make_layout(shared=True)
    logps = (-torch.rand(layout.row_index.shape[0])).requires_grad_()
    with SyncWatch():
        loss_from_logps(logps, layout, step=3).loss.backward()
    assert torch.isfinite(logps.grad).all()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(torch.tensor([1, 2, 3])),
        lambda x: bool((x > 0).all()),
    ],
    ids=["item", "nonzero", "boolean index", "masked_select", "unique", "repeat_interleave", "bool"],
)
def test_the_watch_itself_works(wait):
    with pytest.raises(AssertionError, match="makes the host wait"), SyncWatch():
        wait(torch.ones(3))


@pytest.mark.parametrize("shared", [False, True], ids=["rows of their own", "shared rows"])
def test_nor_does_a_whole_packed_step_of_a_model(shared):
    transformers = pytest.importorskip("transformers")
    from amopo.trainer import patch_forward

    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, **heads))
    batch = make_batch(shared)
    with patch_forward(model), SyncWatch() as watch:
        logps = model(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)
        loss_from_logps(logps, batch.layout, step=3, sample_ids=batch.sample_ids).loss.backward()
    assert watch.seen["linear_logprobs"] == 1
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
