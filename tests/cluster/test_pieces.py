"""A sequence, or a vocabulary, in pieces on two ranks gives the loss and the gradients of the whole."""

from __future__ import annotations

import re

import pieces
import pytest
import tiny_runs
import torch
from launch import run_ranks

from amopo import fused_loss, loss_from_logps
from amopo.packing.shard import shard
from amopo.trainer import patch_forward

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pieces")
    tiny_runs.qwen2(tie_word_embeddings=False).save_pretrained(directory / "model")
    run_ranks("pieces.py", directory, timeout=800)
    return lambda name: [torch.load(directory / f"{name}-{rank}.pt") for rank in range(2)]


def check_metrics(got, expected):
    assert got.keys() == expected.keys() and "amopo/sigma" in got
    for name, values in expected.items():
        torch.testing.assert_close(got[name], values, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)


@pytest.mark.parametrize("oriented", pieces.ORIENTED)
@pytest.mark.parametrize("name", pieces.SETTINGS)
def test_sequences_in_pieces_give_loss_weights_and_gradients_of_the_whole(name, oriented, ranks):
    whole = pieces.batch(signs=oriented == "with signs")
    logps = pieces.log_probs(whole.layout).requires_grad_()
    expected = loss_from_logps(logps, whole.layout, sample_ids=whole.sample_ids, **pieces.LOSS, **pieces.SETTINGS[name])
    expected.loss.backward()
    gradient = torch.zeros_like(logps)
    for rank in ranks("sequences"):
        got = rank[name, oriented]
        torch.testing.assert_close(got["loss"], expected.loss.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got["alphas"], expected.weights, rtol=1e-5, atol=1e-6)
        check_metrics(got["metrics"], expected.metrics)
        assert got["lengths"].equal(expected.lengths)
        assert 0 < int(got["mine"].sum()) < len(logps)
        gradient[got["mine"]] = got["gradient"]
    torch.testing.assert_close(gradient, logps.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", pieces.PADDED)
def test_padded_rows_in_pieces_give_loss_and_gradients_of_the_whole(name, ranks):
    """Also where a rank has nothing but prompts: it takes part with no rows."""
    whole = pieces.padded(pieces.PADDED[name])
    expected = fused_loss(whole["hidden"], whole["head"], whole["labels"], **whole["options"], **pieces.LOSS)
    expected.loss.backward()
    results = [rank[name] for rank in ranks("padded")]
    assert (results[0]["rows"] == 0) == (name != "with signs") and results[1]["rows"] > 0
    for got in results:
        torch.testing.assert_close(got["loss"], expected.loss.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got["elsewhere"], expected.loss.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got["alphas"], expected.weights, rtol=1e-5, atol=1e-6)
        check_metrics(got["metrics"], expected.metrics)
    for kind, gradient in (("hidden", whole["hidden"].grad), ("head", whole["head"].weight.grad)):
        torch.testing.assert_close(sum(got[kind] for got in results), gradient, rtol=1e-5, atol=1e-6, msg=kind)


@pytest.mark.parametrize("name", pieces.PADDED)
def test_a_sequence_without_a_response_on_any_rank_is_refused_on_all(name, ranks):
    for rank in ranks("padded"):
        for message in rank[name]["refusals"]:
            assert message.startswith(
                "ValueError: sample 1, objective 1: the rejected sequence (row 9) has no response"
            )


def test_ranks_of_a_sequence_have_the_same_weights_to_the_bit(ranks):
    first, second = ranks("sequences")
    for name in pieces.SETTINGS:
        for oriented in pieces.ORIENTED:
            assert first[name, oriented]["alphas"].equal(second[name, oriented]["alphas"])
    assert first["drawn"].equal(second["drawn"]), "weights that every rank draws for itself"


@pytest.mark.parametrize("kind", ["by hand", "dtensor"])
def test_vocabulary_in_pieces_gives_loss_and_gradients_of_the_whole(kind, ranks):
    loss, gradients = single()
    for rank, got in enumerate(got[kind] for got in ranks("vocabulary")):
        torch.testing.assert_close(got["loss"], loss, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            found = got["gradients"][name]
            wanted = gradient.chunk(2)[rank] if found.shape != gradient.shape else gradient
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6, msg=name)


def test_tensor_parallelism_of_transformers_gives_loss_and_gradients_of_the_whole(ranks):
    loss, gradients = single()
    for got in ranks("transformers"):
        assert got["head"] == "DTensor"
        torch.testing.assert_close(got["loss"], loss, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(got["gradients"][name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def single():
    model = tiny_runs.qwen2(tie_word_embeddings=False)
    patch_forward(model)
    part = pieces.batch()
    logps = model(input_ids=part.input_ids, position_ids=part.position_ids, amopo_layout=part.layout)
    loss = loss_from_logps(logps, part.layout, sample_ids=part.sample_ids, **pieces.LOSS).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "kind, message",
    [
        ("no group", r"placements \(Shard\(0\),\).*call the model through the object that shards it.*tensor_parallel="),
        ("columns", r"placements \(Shard\(1\),\).*make the head column-parallel"),
        ("replicas", r"placements \(Replicate,\).*make the head column-parallel"),
        ("uneven", "63 does not divide into 2 shards of one size.*pad_to_multiple_of=2"),
        ("uneven by hand", "hold (unequal shards|other than 32 rows) of the vocabulary.*pad_to_multiple_of=2"),
        ("uneven bare", "hold (unequal shards|other than 32 rows) of the vocabulary.*pad_to_multiple_of=2"),
        ("adapter", "an adapter on an lm_head whose vocabulary is sharded is not supported; leave lm_head out"),
    ],
)
def test_heads_sharded_in_a_way_that_cannot_be_right_are_refused(kind, message, ranks):
    for rank in ranks("vocabulary"):
        refusal = rank["refusals"][kind]
        # The rank that has had shards of 32 rows in this group before says so by an assertion.
        assert re.match("ValueError|RuntimeError: .*other than 32 rows", refusal) and re.search(message, refusal), (
            refusal
        )


def test_training_the_module_inside_a_wrapper_is_refused(ranks):
    for rank in ranks("unwrapped"):
        for message in rank["messages"]:
            assert message.startswith("RuntimeError: Qwen2ForCausalLM runs on 2 ranks outside of any wrapper")
            assert "call the wrapper itself" in message


def test_fully_shard_on_the_layers_alone_is_refused_where_more_trains(ranks):
    for rank in ranks("unwrapped"):
        for message in rank["parts"]["all"]:
            assert message.startswith("RuntimeError: fully_shard was applied to parts of Qwen2ForCausalLM alone")
            assert "model.embed_tokens.weight and 1 more" in message and "Call fully_shard(model) too" in message
        assert rank["parts"]["layers"] == ["no error"] * 2


def test_a_head_beside_ddp_is_reduced_with_hidden_states_that_came_out_of_the_wrapper(ranks):
    """And with those of the module in it nothing is: fused_loss has the same arguments in both cases."""
    expected = pieces.beside_ddp(None)["out of the wrapper"]
    first, second = (rank["beside"] for rank in ranks("unwrapped"))
    for name, gradient in expected.items():
        for rank in (first, second):
            torch.testing.assert_close(rank["out of the wrapper"][name], gradient, rtol=1e-5, atol=1e-5, msg=name)
    past = [rank["past the wrapper"]["lm_head.weight"] for rank in (first, second)]
    assert float((past[0] - past[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("size", [2, 3, 7])
def test_pieces_of_a_row_hold_every_response_token_once(size):
    whole = pieces.batch(multiple=size)
    layout = whole.layout
    fan = torch.arange(int(layout.offsets[-1])) if layout.fan_out is None else layout.fan_out
    targets = [
        sorted(layout.row_target[fan[a:b]].tolist())
        for a, b in zip(layout.offsets[:-1].tolist(), layout.offsets[1:].tolist())
    ]
    found = [[] for _ in targets]
    tokens = 0
    for rank in range(size):
        part = shard(whole, rank, size)
        tokens += part.layout.num_tokens
        fan = torch.arange(len(part.layout.row_target)) if part.layout.fan_out is None else part.layout.fan_out
        for number, (a, b) in enumerate(zip(part.layout.offsets[:-1].tolist(), part.layout.offsets[1:].tolist())):
            found[number] += part.layout.row_target[fan[a:b]].tolist()
    assert [sorted(part) for part in found] == targets and tokens == layout.num_tokens


def test_pieces_that_cannot_be_right_are_refused():
    whole = pieces.batch(multiple=2)
    with pytest.raises(ValueError, match="does not divide over 7 ranks; pack\\(pad_to_multiple_of=7\\)"):
        shard(pieces.batch(multiple=8), 0, 7)
    with pytest.raises(ValueError, match="rank 2 does not exist"):
        shard(whole, 2, 2)
    logps = pieces.log_probs(whole.layout)
    with pytest.raises(ValueError, match="sequence_parallel needs step="):
        loss_from_logps(logps, whole.layout, sample_ids=whole.sample_ids, sequence_parallel=object())
    with pytest.raises(ValueError, match="sequence_parallel needs sample_ids"):
        loss_from_logps(logps, whole.layout, step=1, sequence_parallel=object())
    row = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="labels would be shifted inside each rank's piece.*pass shift_labels"):
        loss_from_logps(row.float(), labels=row, num_objectives=1, step=1, sequence_parallel=object())
    with pytest.raises(ValueError, match="labels would be shifted inside each rank's piece.*pass shift_labels"):
        head = torch.nn.Linear(3, 5)
        fused_loss(torch.zeros(2, 4, 3), head, row, num_objectives=1, step=1, sequence_parallel=object())
