"""The head as custom operators: opcheck, torch.compile, LoRA on the head, a sharded vocabulary, no host syncs."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
import torch.multiprocessing as mp

from amopo_kernels import linear_logprobs, reference
from amopo_kernels.head_call import HeadOptions
from amopo_kernels.head_op import linear_logprobs_op
from tests.kernels.head_cases import make_case, relative_error
from tests.kernels.syncs import SyncWatch

PLAIN = HeadOptions(
    compute_dtype=torch.float32,
    logit_scale=None,
    softcap=None,
    lora_scale=0.0,
    logits_dtype="",
    budget=None,
    group="",
    need_hidden=True,
    need_weight=True,
    need_bias=False,
    need_lora=False,
)


def values(**changes):
    options = dataclasses.replace(PLAIN, **changes)
    return [getattr(options, field.name) for field in dataclasses.fields(options)]


@pytest.mark.parametrize(
    "changes",
    [{}, {"budget": 60_000}, {"logit_scale": 0.5, "softcap": 4.0, "need_bias": True}, {"need_weight": False}],
    ids=["kept", "spilled", "bias", "frozen head"],
)
def test_opcheck(changes):
    case = make_case(torch.float32, bias=changes.get("need_bias", False))
    if not changes.get("need_weight", True):
        case.weight.requires_grad_(False)
    arguments = (case.hidden, case.weight, case.bias, case.targets, None, None, *values(**changes))
    torch.library.opcheck(linear_logprobs_op, arguments)


@pytest.mark.parametrize("budget", [None, 60_000])
def test_a_step_compiles_whole_and_computes_the_same(budget):
    case = make_case(torch.float32)

    def step(hidden, weight):
        return (linear_logprobs(torch.tanh(hidden), weight, case.targets, budget=budget) * 2.0).sum()

    expected = torch.autograd.grad(step(case.hidden, case.weight), (case.hidden, case.weight))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(case.hidden, case.weight), (case.hidden, case.weight))
    for value, exact in zip(got, expected, strict=True):
        torch.testing.assert_close(value, exact)


def lora_logits(case, a, b, scale):
    """fp64 truth: the adapter merged into the weight."""
    return case.weight.double() + scale * b.double() @ a.double()


@pytest.mark.parametrize(
    "dtype, tol", [(torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 1.5e-2)], ids=str
)
@pytest.mark.parametrize("budget", [None, 130_000])
@pytest.mark.parametrize("train_weight", [True, False])
def test_lora_on_the_head_equals_the_merged_weight(dtype, tol, budget, train_weight):
    case = make_case(dtype, softcap=5.0, logit_scale=0.7)
    a = (torch.randn(4, 24) * 0.3).to(dtype).requires_grad_()
    b = (torch.randn(501, 4) * 0.3).to(dtype).requires_grad_()
    case.weight.requires_grad_(train_weight)
    leaves = [leaf for leaf in (case.hidden, case.weight, a, b) if leaf.requires_grad]
    logps = linear_logprobs(
        case.hidden, case.weight, case.targets, softcap=5.0, logit_scale=0.7, lora=(a, b, 0.5), budget=budget
    )
    got = torch.autograd.grad(logps, leaves, case.upstream.to(logps.dtype))
    truth_leaves = [
        leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in (case.hidden, case.weight, a, b)
    ]
    h, w, a64, b64 = truth_leaves
    exact = reference.linear_logprobs(h, w + 0.5 * b64 @ a64, case.targets, softcap=5.0, logit_scale=0.7)
    truth = torch.autograd.grad(exact, [leaf for leaf in truth_leaves if leaf.requires_grad], case.upstream)
    assert relative_error(logps, exact) < tol
    for value, right in zip(got, truth, strict=True):
        assert relative_error(value, right) < tol


@pytest.mark.parametrize("budget", [None, 60_000])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_no_host_sync_in_forward_or_backward(budget, softcap):
    case = make_case(torch.float32)
    with SyncWatch():
        logps = linear_logprobs(case.hidden, case.weight, case.targets, budget=budget, softcap=softcap)
        torch.autograd.grad(logps, case.leaves(), torch.ones(37))


def _sharded(rank, world, path, dtype, budget, softcap, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    torch.manual_seed(0)
    hidden = torch.randn(9, 8, dtype=torch.float64).to(dtype).requires_grad_()
    weight, bias = torch.randn(20, 8, dtype=torch.float64).to(dtype), torch.randn(20, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        hidden[3] *= 40.0  # rows far from their target, so that the clamp is agreed on over ranks
    targets, upstream = torch.randint(0, 20, (9,)), torch.randn(9, dtype=torch.float64)
    part = slice(rank * 10, rank * 10 + 10)
    shard, shard_bias = (t[part].clone().requires_grad_() for t in (weight, bias))
    logps = linear_logprobs(
        hidden,
        shard,
        targets,
        bias=shard_bias,
        softcap=softcap,
        budget=budget,
        process_group=torch.distributed.group.WORLD,
    )
    grads = torch.autograd.grad(logps, (hidden, shard, shard_bias), upstream.to(logps.dtype))
    results[rank] = [t.detach() for t in (logps, *grads)]
    if rank == 0:
        leaves = [t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
        exact = reference.linear_logprobs(leaves[0], leaves[1], targets, bias=leaves[2], softcap=softcap)
        results["truth"] = [t.detach() for t in (exact, *torch.autograd.grad(exact, leaves, upstream))]
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-12), (torch.float32, 3e-6)], ids=str)
@pytest.mark.parametrize("budget, softcap", [(None, None), (1_600, None), (None, 3.0)])
def test_vocabulary_sharded_over_two_ranks(tmp_path, dtype, tol, budget, softcap):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_sharded, (2, tmp_path / "store", dtype, budget, softcap, results), nprocs=2)
        truth = results["truth"]
        for rank in range(2):
            logps, dh, dw, db = results[rank]
            part = slice(rank * 10, rank * 10 + 10)
            for value, exact in zip(
                (logps, dh, dw, db), (truth[0], truth[1], truth[2][part], truth[3][part]), strict=True
            ):
                assert relative_error(value, exact) < tol


def _unequal(rank, world, path, results):
    """A vocabulary of 21 in shards of 11 and 10 rows; in equal ones of 10; and in unequal ones again."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(5, 8), torch.randn(21, 8), torch.tensor([0, 9, 10, 15, 20])
    group = torch.distributed.group.WORLD
    unequal = weight[:11] if rank == 0 else weight[11:]

    def message_of(dtype):
        try:
            linear_logprobs(hidden.to(dtype), unequal.to(dtype), targets, process_group=group)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "no error"

    first = [message_of(torch.float32), message_of(torch.bfloat16)]
    equal = weight[rank * 10 : rank * 10 + 10].requires_grad_()
    for watch in (contextlib.nullcontext(), SyncWatch()):
        with watch:
            logps = linear_logprobs(hidden, equal, targets.clamp(max=19), process_group=group)
            torch.autograd.grad(logps, equal, torch.ones(5))
    results[rank] = {"first": first, "later": message_of(torch.float32)}
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_shards_of_unequal_size_are_refused_on_every_rank(tmp_path):
    """Also by a rank that has met its own size before, which compares without a host sync."""
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_unequal, (2, tmp_path / "store", results), nprocs=2)
        for rank, rows in enumerate((11, 10)):
            for message in results[rank]["first"]:
                assert message.startswith("ValueError") and "multiple of 2" in message, message
                assert f"from 10 to 11 rows (this one {rows})" in message
        assert results[0]["later"].startswith("ValueError") and "from 10 to 11 rows" in results[0]["later"]
        assert "hold other than 10 rows of the vocabulary" in results[1]["later"]
        assert "multiple of 2" in results[1]["later"]


def test_shards_are_not_compared_while_tracing():
    if torch.__version__ < (2, 11):
        pytest.skip("torch 2.10 has no all-reduce of fake tensors")
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with FakeTensorMode(), SyncWatch():
            logps = linear_logprobs(
                torch.randn(5, 8),
                torch.randn(10, 8),
                torch.zeros(5, dtype=torch.int64),
                process_group=torch.distributed.group.WORLD,
            )
        assert logps.shape == (5,)
    finally:
        torch.distributed.destroy_process_group()
