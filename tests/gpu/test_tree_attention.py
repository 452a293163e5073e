"""Attention over a packed row on the device: each kernel against fp64, the same bits again, a model end to end."""

from __future__ import annotations

import pytest
import torch

from amopo.packing import TokenizedSample, attention, pack, sdpa
from amopo.packing import attention_backends as backends
from amopo_kernels.gather import GatherIndex, gather_rows
from tests.gpu.conftest import DRY_RUN

HEADS, KV_HEADS, SIZE = 4, 2, 64


class Layer(torch.nn.Module):
    """What tree_attention looks at of an attention layer."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"_attn_implementation": "amopo_tree"})()
        self.is_causal = True


def samples(count=3):
    generator = torch.Generator().manual_seed(0)

    def tokens(low, high):
        size = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, 90, (size,), generator=generator).tolist()

    made = []
    for number in range(count):
        x, begin = tokens(20, 60), tokens(2, 5)
        made.append(
            TokenizedSample([x + tokens(1, 9) for _ in range(3)], begin + tokens(5, 70), begin + tokens(1, 9), number)
        )
    return made


def exact(q, k, v, batch, window):
    """Dense attention in fp64 with a mask from subtrees and positions."""
    ends, positions = batch.layout.paths.subtree_end, batch.position_ids[0]
    index = torch.arange(len(ends), device=ends.device)
    mask = (index[None] <= index[:, None]) & (index[:, None] < ends[None])
    if window is not None:
        mask &= positions[:, None] - positions[None] < window
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (k, v))
    scores = (q @ k.transpose(-2, -1) * SIZE**-0.5).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def available(backend, dtype, device, window):
    query = torch.empty(1, HEADS, 1, SIZE, dtype=dtype, device=device)
    return backends._cannot(backend, query, query, window, None)


@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
def test_every_kernel_attends_along_the_tree(device, backend, dtype, window, sharing, monkeypatch):
    reason = available(backend, dtype, device, window)
    if reason:
        pytest.skip(f"{backend}: {reason}")
    monkeypatch.setenv("AMOPO_ATTENTION", backend)
    batch = pack(samples(), sharing=sharing).to(device)
    tokens = batch.input_ids.shape[1]
    parts = [
        torch.randn(1, heads, tokens, SIZE, device=device).to(dtype).requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    options = {"sliding_window": window, "amopo_paths": batch.layout.paths}
    got, _ = attention.tree_attention(Layer(), *parts, None, **options)
    truth = [part.detach().double().requires_grad_() for part in parts]
    right = exact(*truth, batch, window)
    upstream = torch.randn_like(right)
    grads = torch.autograd.grad(got, parts, upstream.to(dtype))
    exact_grads = torch.autograd.grad(right, truth, upstream)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for value, true in zip((got, *grads), (right, *exact_grads), strict=True):
        assert (value.double() - true).norm() < tolerance * true.norm()


@pytest.mark.cuda_only
def test_two_queries_on_five_keys_are_aligned_at_the_bottom_right(device):
    if available("varlen", torch.bfloat16, device, None):
        pytest.skip(available("varlen", torch.bfloat16, device, None))
    # one prompt of three tokens, two responses of two: the second segment is 2 x 5
    batch = pack([TokenizedSample([[1, 2, 3]], [4, 5], [6, 7], 0)], sharing="pair").to(device)
    paths = batch.layout.paths
    assert paths.lengths == ((5, 5), (2, 5))
    q, k, v = (torch.randn(n, HEADS, SIZE, device=device, dtype=torch.bfloat16) for n in (7, 10, 10))
    got = backends._run_varlen(q, k, v, paths, SIZE**-0.5, None, None)
    for queries, keys in ((slice(0, 5), slice(0, 5)), (slice(5, 7), slice(5, 10))):
        mask = sdpa.visible(queries.stop - queries.start, 5, None, device)
        scores = torch.einsum("qhd,khd->hqk", q[queries].double(), k[keys].double()) * SIZE**-0.5
        right = torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v[keys].double())
        assert (got[queries].double() - right).norm() < 1e-2 * right.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gathered_gradients_are_the_same_bits_again(device, dtype):
    if DRY_RUN and dtype == torch.bfloat16:
        pytest.skip("the interpreter truncates casts to bf16")
    index = torch.randint(0, 50, (400,))
    made = GatherIndex.of(index, 50)
    rows = GatherIndex(made.index.to(device), made.order.to(device), made.offsets.to(device))
    x = torch.randn(50, 3, 64, device=device).to(dtype).requires_grad_()
    upstream = torch.randn(400, 3, 64, device=device).to(dtype)
    first, again = (torch.autograd.grad(gather_rows(x, rows), x, upstream)[0] for _ in range(2))
    assert torch.equal(first, again)
    right = torch.zeros(50, 3, 64, dtype=torch.float64).index_add_(0, index, upstream.double().cpu())
    assert (first.double().cpu() - right).norm() < (1e-6 if dtype == torch.float32 else 4e-3) * right.norm()


@pytest.mark.cuda_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_gives_what_separate_forwards_give(device, dtype, checkpointing):
    transformers = pytest.importorskip("transformers")
    from amopo.trainer.self_check import compare_with_separate_forwards

    sizes = {
        "vocab_size": 96, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)).to(device, dtype)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for sharing in ("none", "pair", "tree"):
        found = compare_with_separate_forwards(model, samples(2), sharing=sharing)
        assert found.is_exact, str(found)
