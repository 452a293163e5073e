"""What the drop-in loss refuses, and that it names the argument or the sample."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import amopo
from tests.test_fused_loss import HIDDEN, VOCAB, Batch, call, fresh_seed  # noqa: F401  (fresh_seed is a fixture)


def poison(tensor, value):
    with torch.no_grad():
        tensor[5, 7, 2] = value


BAD = [
    (lambda b: call(b, beta=0.0), ValueError, "beta must be a positive number, got 0.0"),
    (lambda b: call(b, beta=-1.0), ValueError, "beta must be a positive number"),
    (lambda b: call(b, beta=float("nan")), ValueError, "beta must be a positive number"),
    (lambda b: call(b, gamma=float("inf")), ValueError, "gamma must be a finite number"),
    (lambda b: call(b, num_objectives=0), ValueError, "num_objectives must be a positive integer, got 0"),
    (lambda b: call(b, num_objectives=None), ValueError, r"num_objectives \(K\) is needed"),
    (lambda b: call(b, num_objectives=5), ValueError, "24 rows are not divisible by 2 x 5 objectives"),
    (lambda b: call(b, order="rows"), ValueError, "order must be one of objective_major"),
    (lambda b: call(b, weights="random"), ValueError, "unknown source of weights 'random'; known: gaussian, mean"),
    (lambda b: call(b, weights=torch.ones(3)), ValueError, r"weights must be \[K=4\] or"),
    (
        lambda b: call(b, weights=torch.tensor([1.0, -1.0, 1.0, 1.0])),
        RuntimeError,
        "weights must be finite and not neg",
    ),
    (lambda b: call(b, weights=torch.zeros(4)), RuntimeError, "positive sum"),
    (lambda b: call(b, weights=torch.full((4,), float("nan"))), RuntimeError, "weights must be finite"),
    (lambda b: call(b, objective="ppo"), ValueError, "unknown objective 'ppo'; known: amopo, simpo"),
    (lambda b: call(b, pooled="both"), ValueError, "pooled must be 'union' or 'sum'"),
    (lambda b: call(b, preset="paper"), ValueError, "preset must be None or 'official'"),
    (lambda b: call(b, preset="official", normalizer=4), ValueError, "cannot take a normalizer"),
    (lambda b: call(b, preset="official", gamma=1.0), ValueError, r"fixes gamma=2.0"),
    (lambda b: call(b, preset="official", weights="mean"), ValueError, "fixes weights"),
    (lambda b: call(b, normalizer=0), ValueError, "normalizer must be a positive number"),
    (lambda b: call(b, sample_ids=torch.arange(2)), ValueError, r"sample_ids must be int64 \[B=3\]"),
    (lambda b: call(b, sample_ids=["a", "b", "c"]), TypeError, "sample_ids must be an int64 tensor"),
    (lambda b: call(b, step=1.5), TypeError, "step must be an integer"),
    (lambda b: call(b, seed=None), TypeError, "seed must be an integer"),
    (lambda b: call(b, beta="1"), TypeError, "beta must be a number, got '1'"),
    (lambda b: call(b, beta=True), TypeError, "beta must be a number, got True"),
    (lambda b: call(b, normalizer="4"), TypeError, "normalizer must be a number or a tensor"),
    (lambda b: call(b, normalizer=torch.tensor(-2.0)), RuntimeError, "normalizer must be positive"),
    (lambda b: call(b, objective=lambda s, n, w, **_: s.sum()), ValueError, r"must return losses \[B=3\]"),
    (lambda b: call(b, row_ids=torch.zeros(3, 4, 2)), TypeError, "row_ids must be an integer tensor"),
    (lambda b: call(b, shift_labels=b.labels), ValueError, "exactly one of layout, labels"),
    (lambda b: call(b, row_ids=torch.zeros(3, 4, 2, dtype=torch.int64)), ValueError, "exactly once"),
    (lambda b: call(b, budget=10), ValueError, "too small for one row"),
]


@pytest.mark.parametrize("run, error, message", BAD, ids=[m[:40] for _, _, m in BAD])
def test_bad_arguments_are_named(run, error, message):
    with pytest.raises(error, match=message):
        run(Batch())


def test_a_sequence_without_response_token_names_its_sample():
    batch = Batch()
    batch.labels[8 + 2 * 2 + 1] = -100  # sample 1, objective 2, rejected
    with pytest.raises(
        ValueError, match=r"sample 1, objective 2: the rejected sequence \(row 13\) has no response token"
    ):
        call(batch)


@pytest.mark.parametrize("label", [VOCAB, VOCAB + 1000, -1])
def test_a_label_outside_the_vocabulary_names_its_sample(label):
    batch = Batch()
    batch.labels[16 + 3, :] = 1
    batch.labels[16 + 3, 9] = label  # sample 2, objective 1, rejected
    with pytest.raises(ValueError, match=rf"sample 2, objective 1: label {label} of the rejected .*\[0, {VOCAB}\)"):
        call(batch)


def test_shape_mismatch_is_named():
    batch = Batch()
    with pytest.raises(ValueError, match=r"labels \[rows, length\], got \(24, 14, 12\) and \(24, 13\)"):
        amopo.fused_loss(batch.hidden, batch.head, batch.labels[:, 1:], num_objectives=4)
    with pytest.raises(TypeError, match="labels must be integers.*torch.bool"):
        amopo.fused_loss(batch.hidden, batch.head, batch.labels > 0, num_objectives=4)
    with pytest.raises(TypeError, match="labels must be integers"):
        amopo.fused_loss(batch.hidden, batch.head, batch.labels.float(), num_objectives=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_hidden_is_found_and_named_with_validate(value):
    batch = Batch()
    batch.labels[5, 1:] = 3
    poison(batch.hidden, value)
    with pytest.raises(RuntimeError, match="hidden holds NaN or inf"):
        call(batch)
    with pytest.raises(ValueError, match=r"sample 0, objective 2, rejected \(row 5\): hidden holds NaN or inf"):
        call(batch, validate=True)


def test_nan_in_the_head_is_found():
    batch = Batch()
    with torch.no_grad():
        batch.head.weight[3, 1] = float("nan")
    with pytest.raises(RuntimeError, match="weight or bias holds NaN or inf"):
        call(batch)


def test_a_target_of_probability_zero_is_named_with_validate():
    batch = Batch()
    batch.head = torch.nn.Linear(HIDDEN, VOCAB).to(batch.hidden.dtype)
    with torch.no_grad():
        batch.head.bias[int(batch.labels[6][batch.labels[6] >= 0][-1])] = -torch.inf
    with pytest.raises(ValueError, match=r"sample \d, objective \d, \w+ \(row \d+\): a log-prob is -inf"):
        call(batch, validate=True)


def test_labels_that_each_rank_would_shift_are_refused():
    hidden, weight, labels = torch.randn(4, 3, 8), torch.randn(11, 8), torch.ones(4, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="pass shift_labels"):
        amopo.fused_loss(hidden, weight, labels, num_objectives=2, sequence_parallel=object(), step=0)


# ---- layouts ----

SAMPLES = [
    amopo.TokenizedSample(prompts=([5, 6, 7], [5, 8, 7]), chosen=[10, 11, 2], rejected=[10, 2], id=1),
    amopo.TokenizedSample(prompts=([5, 6, 9], [5, 8, 9]), chosen=[13, 2], rejected=[13, 14, 15, 2], id=2),
]


def packed(sharing="pair", **changes):
    layout = dataclasses.replace(amopo.pack(SAMPLES, sharing=sharing).layout, **changes)
    torch.manual_seed(0)
    return torch.randn(layout.num_tokens, 8), torch.nn.Linear(8, 17), layout


def changed(tensor, place, value):
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


def token_of(layout, sample, objective, side, number):
    """The entry of `row_index` of a response token."""
    token = int(layout.offsets[(sample * 2 + objective) * 2 + side]) + number
    return token if layout.fan_out is None else int(layout.fan_out[token])


@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
def test_validate_looks_at_the_hidden_states_of_a_layout_and_names_the_sample(sharing):
    hidden, head, layout = packed(sharing)
    expected = amopo.fused_loss(hidden, head, layout=layout, step=0).loss
    assert torch.equal(amopo.fused_loss(hidden, head, layout=layout, step=0, validate=True).loss, expected)
    # the last token of this response stands for no other sequence
    bad = int(layout.row_index[token_of(layout, 1, 1, 1, 3)])
    hidden[bad, 2] = float("nan")
    with pytest.raises(ValueError, match="sample 1, objective 1, rejected .*: hidden holds NaN or inf"):
        amopo.fused_loss(hidden, head, layout=layout, step=0, validate=True)


def test_validate_looks_at_the_log_probs_of_a_layout_and_names_the_sample():
    hidden, head, layout = packed()
    with torch.no_grad():
        head.bias[11] = -torch.inf  # in the first sample's chosen response only
    with pytest.raises(ValueError, match="sample 0, objective 0, chosen .*: a log-prob is -inf"):
        amopo.fused_loss(hidden, head, layout=layout, step=0, validate=True)


@pytest.mark.parametrize("sharing", ["none", "pair"])
def test_validate_looks_at_the_indices_of_a_layout_and_names_the_sample(sharing):
    hidden, head, layout = packed(sharing)
    entry = token_of(layout, 1, 0, 0, 1)
    cases = {
        "sample 1, objective 0, chosen: layout.row_target is -3, outside": {
            "row_target": changed(layout.row_target, entry, -3)
        },
        "sample 1, objective 0, chosen: layout.row_index is 99, outside": {
            "row_index": changed(layout.row_index, entry, 99), "rows": None
        },
        "sample 0, objective 1, rejected has no response token": {
            "offsets": changed(layout.offsets, 4, layout.offsets[3])
        },
        "layout.offsets must rise from 0": {"offsets": changed(layout.offsets, -1, 5)},
    }  # fmt: skip
    if layout.fan_out is not None:
        wrong = changed(layout.fan_out, int(layout.offsets[4]), 77)
        cases["sample 1, objective 0, chosen: layout.fan_out is 77"] = {"fan_out": wrong, "fan": None}
    for message, changes in cases.items():
        with pytest.raises(ValueError, match=message):
            amopo.fused_loss(hidden, head, layout=dataclasses.replace(layout, **changes), step=0, validate=True)
    # a target that the tokenizer has and the model has not: above max_target, which is looked at in any case
    with pytest.raises(ValueError, match="sample 1, objective 0, rejected: layout.row_target is 15, outside"):
        amopo.fused_loss(hidden, torch.randn(15, 8), layout=layout, step=0, validate=True)
    logps = torch.full((layout.row_index.shape[0],), -1.0)
    empty = dataclasses.replace(layout, offsets=changed(layout.offsets, 4, layout.offsets[3]))
    with pytest.raises(ValueError, match="sample 0, objective 1, rejected has no response token"):
        amopo.loss_from_logps(logps, empty, step=0, validate=True)


def test_log_probs_above_zero_are_named_with_validate():
    logps, labels = torch.full((4, 3), -1.0), torch.ones(4, 3, dtype=torch.int64)
    logps[2, 1] = 4.0
    amopo.loss_from_logps(logps, labels=labels, num_objectives=2, step=0)
    with pytest.raises(ValueError, match=r"sample 0, objective 1, chosen .*: a log-prob is 4, above 0"):
        amopo.loss_from_logps(logps, labels=labels, num_objectives=2, step=0, validate=True)
