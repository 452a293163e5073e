"""Attention over a packed row against a dense mask made from the tree, and what is handed to other kernels."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from amopo.packing import TokenizedSample, pack, sdpa
from amopo.packing import attention_backends as backends
from amopo.packing.attention import tree_attention
from amopo_kernels.backend import cpp_available

HEADS, KV_HEADS, SIZE = 4, 2, 8
SAMPLES = [
    TokenizedSample([[1, 2, 3, 4], [1, 2, 5], [1, 6, 7, 8, 9]], [3, 4, 5], [3, 7], 0),
    TokenizedSample([[2, 3], [2, 4, 4], [2, 3, 3]], [1], [2, 2, 2, 2, 2], 1),
]


class Layer(nn.Module):
    """What tree_attention looks at of an attention layer."""

    def __init__(self, implementation="amopo_tree"):
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=implementation)
        self.is_causal = True


def dense_mask(batch, window=None):
    """bool `[T, T]` from parents found by the positions and subtrees, not from the segments."""
    ends, positions = batch.layout.paths.subtree_end, batch.position_ids[0]
    index = torch.arange(len(ends))
    mask = (index[None] <= index[:, None]) & (index[:, None] < ends[None])
    if window is not None:
        mask &= positions[:, None] - positions[None] < window
    return mask


def inputs(tokens, dtype=torch.float64, value_size=SIZE):
    shapes = ((HEADS, SIZE), (KV_HEADS, SIZE), (KV_HEADS, value_size))
    return [torch.randn(1, heads, tokens, size, dtype=dtype, requires_grad=True) for heads, size in shapes]


def exact(q, k, v, mask, scaling, softcap=None):
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (k, v))
    scores = q @ k.transpose(-2, -1) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("multiple", [None, 16])
@pytest.mark.parametrize("fewest", [2, 128], ids=lambda n: f"{n} queries at least")
def test_equals_dense_attention_in_values_and_gradients(sharing, window, softcap, multiple, fewest, monkeypatch):
    monkeypatch.setattr(sdpa, "FEWEST_QUERIES", fewest)
    check_equals_dense(pack(SAMPLES, sharing=sharing, pad_to_multiple_of=multiple), window, softcap)


@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
@pytest.mark.parametrize("window", [None, 200, 700])
def test_paths_of_hundreds_of_tokens_equal_dense_attention(sharing, window):
    x = torch.randint(10, 90, (384,)).tolist()
    long = TokenizedSample([[1, *x], [1, 2, *x], [*x, 3]], x[:257], x[-130:], 0)
    check_equals_dense(pack([long, SAMPLES[0]], sharing=sharing), window, None)


def test_queries_of_a_window_read_no_keys_before_it(monkeypatch):
    """Of 384 tokens under a window of 100, at most 128 + 99 keys at once."""
    read, before = [], sdpa._sdpa
    monkeypatch.setattr(sdpa, "_sdpa", lambda q, k, v, *rest: read.append(k.shape[2]) or before(q, k, v, *rest))
    batch = pack([TokenizedSample([list(range(383))], [1], [2], 0)], sharing="none")
    parts = inputs(batch.input_ids.shape[1])
    tree_attention(Layer(), *parts, None, sliding_window=100, amopo_paths=batch.layout.paths)
    assert read == [128, 128 + 99, 128 + 99] * 2


def check_equals_dense(batch, window, softcap, dtype=torch.float64):
    parts = inputs(batch.input_ids.shape[1], dtype)
    options = {"scaling": 0.3, "sliding_window": window, "softcap": softcap, "amopo_paths": batch.layout.paths}
    got, weights = tree_attention(Layer(), *parts, None, **options)
    truth = [part.detach().double().requires_grad_() for part in parts]
    expected = exact(*truth, dense_mask(batch, window), 0.3, softcap)
    assert weights is None and got.is_contiguous()
    upstream = torch.randn_like(got)
    gradients = torch.autograd.grad(got, parts, upstream)
    exact_gradients = torch.autograd.grad(expected, truth, upstream.double())
    rounding = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for value, right in zip((got, *gradients), (expected, *exact_gradients), strict=True):
        torch.testing.assert_close(value.double(), right, **rounding)


@pytest.mark.skipif(not cpp_available("cpu")[0], reason="the C++ operations were not built")
@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
@pytest.mark.parametrize("window", [None, 1, 3, 200])
def test_fp32_equals_dense_attention_by_the_kernel_for_cpus(sharing, window):
    x = torch.randint(10, 90, (384,)).tolist()
    batch = pack([TokenizedSample([[1, *x], [1, 2, *x], [*x, 3]], x[:257], x[-130:], 0), *SAMPLES], sharing=sharing)
    backends.RAN.clear()
    check_equals_dense(batch, window, None, dtype=torch.float32)
    assert backends.RAN == {"cpp"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_dense_attention_in_it(dtype):
    batch = pack(SAMPLES * 2, sharing="tree")
    parts = inputs(batch.input_ids.shape[1])
    half = [part.detach().to(dtype).requires_grad_() for part in parts]
    truth = [part.detach().double().requires_grad_() for part in half]
    mask = dense_mask(batch)
    right = exact(*truth, mask, 0.35)
    upstream = torch.randn_like(right)
    exact_grads = torch.autograd.grad(right, truth, upstream)
    plain = exact(*half, mask, 0.35)
    plain_grads = torch.autograd.grad(plain, half, upstream.to(dtype))
    got, _ = tree_attention(Layer(), *half, None, scaling=0.35, amopo_paths=batch.layout.paths)
    grads = torch.autograd.grad(got, half, upstream.to(dtype))
    for value, other, true in zip((got, *grads), (plain, *plain_grads), (right, *exact_grads), strict=True):
        error, allowed = ((part.double() - true).norm() / true.norm() for part in (value, other))
        assert error <= 1.5 * allowed + 1e-3


def test_values_of_another_size():
    batch = pack(SAMPLES, sharing="pair")
    parts = inputs(batch.input_ids.shape[1], value_size=5)
    got, _ = tree_attention(Layer(), *parts, None, scaling=0.3, amopo_paths=batch.layout.paths)
    torch.testing.assert_close(got, exact(*parts, dense_mask(batch), 0.3))


def test_another_path_changes_nothing_by_a_bit():
    batch = pack(SAMPLES, sharing="tree")
    q, k, v = (part.detach() for part in inputs(batch.input_ids.shape[1], torch.float32))
    paths, first = batch.layout.paths, pack(SAMPLES[:1], sharing="tree").input_ids.shape[1]
    before, _ = tree_attention(Layer(), q, k, v, None, amopo_paths=paths)
    for part in (q, k, v):
        part[:, :, first:] = torch.randn_like(part[:, :, first:])
    after, _ = tree_attention(Layer(), q, k, v, None, amopo_paths=paths)
    assert torch.equal(before[:, :first], after[:, :first])
    assert not torch.equal(before[:, first:], after[:, first:])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dropout": 0.1}, "attention dropout of 0.1 is not supported in training"),
        ({"s_aux": torch.zeros(HEADS)}, "attention sinks"),
        ({"position_bias": torch.zeros(1)}, "a position bias"),
        ({"is_causal": False}, "its attention is not causal"),
        ({"attention_mask": torch.ones(1, 7)}, "an attention mask came with it"),
        ({"output_attentions": True}, "output_attentions=True is not supported"),
    ],
)
def test_what_is_not_supported_is_named(change, message):
    batch = pack(SAMPLES, sharing="tree")
    parts = inputs(batch.input_ids.shape[1])
    options = {"attention_mask": None, "amopo_paths": batch.layout.paths, **change}
    with pytest.raises(ValueError, match=f"Layer cannot attend over a packed row: {message}"):
        tree_attention(Layer(), *parts, **options)


def test_a_layout_of_another_row_and_a_cache_are_found():
    batch = pack(SAMPLES, sharing="tree")
    q, k, v = inputs(batch.input_ids.shape[1])
    with pytest.raises(ValueError, match="its layout is of one row of"):
        tree_attention(Layer(), q[:, :, :-1], k, v, None, amopo_paths=batch.layout.paths)
    longer = torch.cat([k, k[:, :, :2]], 2)
    with pytest.raises(ValueError, match="a cache must not be used"):
        tree_attention(Layer(), q, longer, longer, None, amopo_paths=batch.layout.paths)


def test_dropout_of_an_evaluation_is_none():
    batch = pack(SAMPLES, sharing="tree")
    parts = inputs(batch.input_ids.shape[1])
    plain, _ = tree_attention(Layer(), *parts, None, amopo_paths=batch.layout.paths)
    same, _ = tree_attention(Layer().eval(), *parts, None, dropout=0.5, amopo_paths=batch.layout.paths)
    assert torch.equal(plain, same)


# Kernels that run on CUDA: what they are handed, seen by stand-ins that compute it segment by segment ----------------


def segment_by_segment(q, k, v, cu_q, cu_k, scale, window):
    outputs = []
    for a, b, c, d in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), cu_k[:-1].tolist(), cu_k[1:].tolist(), strict=True):
        mask = sdpa.visible(b - a, d - c, None if window[0] < 0 else window[0] + 1, q.device)
        one = exact(*(part.transpose(0, 1)[None] for part in (q[a:b], k[c:d], v[c:d])), mask, scale)
        outputs.append(one[0])
    return torch.cat(outputs)


def varlen_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal
    return segment_by_segment(query, key, value, cu_seq_q, cu_seq_k, SIZE**-0.5, (-1, 0))


def varlen_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert isinstance(window_size, tuple) and window_size[1] == 0
    return segment_by_segment(query, key, value, cu_seq_q, cu_seq_k, scale, window_size)


def varlen_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert enable_gqa
    return varlen_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.fixture
def anywhere(monkeypatch):
    """Backends for CUDA are allowed on the CPU."""
    cannot = backends._cannot
    monkeypatch.setattr(backends, "_capability", lambda device: (9, 0))

    def allowed(name, query, value, window, softcap):
        on_cuda = SimpleNamespace(device=SimpleNamespace(type="cuda"), dtype=torch.bfloat16, shape=query.shape)
        return cannot(name, on_cuda, value, window, softcap)

    monkeypatch.setattr(backends, "_cannot", allowed)
    backends._varlen_parameters.cache_clear()
    yield monkeypatch
    backends._varlen_parameters.cache_clear()


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("version", [varlen_2_10, varlen_2_11, varlen_2_12])
def test_varlen_attn_of_every_torch_is_called_as_it_wants(anywhere, version, window):
    if version is varlen_2_10 and window is not None:
        pytest.skip("has no window: see the next test")
    module = pytest.importorskip("torch.nn.attention.varlen")
    anywhere.setattr(module, "varlen_attn", version)
    anywhere.setenv("AMOPO_ATTENTION", "varlen")
    batch = pack(SAMPLES, sharing="tree")
    parts = inputs(batch.input_ids.shape[1])
    options = {"scaling": 0.2, "sliding_window": window, "amopo_paths": batch.layout.paths}
    got, _ = tree_attention(Layer(), *parts, None, **options)
    torch.testing.assert_close(got, exact(*parts, dense_mask(batch, window), 0.2))


def test_a_backend_that_cannot_do_it_is_passed_over_or_named(anywhere):
    module = pytest.importorskip("torch.nn.attention.varlen")
    anywhere.setattr(module, "varlen_attn", varlen_2_10)
    batch = pack(SAMPLES, sharing="tree")
    parts = inputs(batch.input_ids.shape[1])
    options = {"scaling": 0.2, "sliding_window": 3, "amopo_paths": batch.layout.paths}
    got, _ = tree_attention(Layer(), *parts, None, **options)
    torch.testing.assert_close(got, exact(*parts, dense_mask(batch, 3), 0.2))
    anywhere.setenv("AMOPO_ATTENTION", "varlen")
    with pytest.raises(ValueError, match="AMOPO_ATTENTION='varlen' cannot run Layer: .* has no sliding window"):
        tree_attention(Layer(), *parts, None, **options)
    with pytest.raises(ValueError, match="cannot run Layer: it has no softcap"):
        tree_attention(Layer(), *parts, None, softcap=3.0, amopo_paths=batch.layout.paths)
    anywhere.setenv("AMOPO_ATTENTION", "fastest")
    with pytest.raises(ValueError, match="AMOPO_ATTENTION='fastest' is not known; known: cpp, varlen, flash_attn"):
        tree_attention(Layer(), *parts, None, amopo_paths=batch.layout.paths)


@pytest.mark.parametrize("backend, module", [("flash_attn", "flash_attn"), ("flash_attn_3", "flash_attn_interface")])
@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_is_handed_segments_and_paths(anywhere, backend, module, window):
    calls = []

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False,
        window_size=(-1, -1), softcap=0.0, deterministic=False,
    ):  # fmt: skip
        calls.append((max_seqlen_q, max_seqlen_k, softcap))
        assert causal and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous()
        return segment_by_segment(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window_size)

    anywhere.setitem(sys.modules, module, SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func))
    anywhere.setattr(backends, "_is_there", lambda name: name == module)
    batch = pack(SAMPLES, sharing="tree")
    parts = inputs(batch.input_ids.shape[1])
    name = "amopo_tree_fa2" if backend == "flash_attn" else "amopo_tree_fa3"
    options = {"scaling": 0.2, "sliding_window": window, "amopo_paths": batch.layout.paths}
    got, _ = tree_attention(Layer(name), *parts, None, **options)
    torch.testing.assert_close(got, exact(*parts, dense_mask(batch, window), 0.2))
    paths = batch.layout.paths
    assert calls == [(paths.max_seqlen_q, paths.max_seqlen_k, 0.0)]


def test_on_a_cpu_fp64_is_left_to_sdpa_and_what_is_for_gpus_is_refused(monkeypatch):
    batch = pack(SAMPLES, sharing="tree")
    parts = inputs(batch.input_ids.shape[1])
    assert backends.choose_backend(Layer(), parts[0], parts[2], window=None, softcap=None) == "sdpa"
    monkeypatch.setenv("AMOPO_ATTENTION", "flash_attn")
    with pytest.raises(ValueError, match="it runs on CUDA, not on cpu"):
        tree_attention(Layer(), *parts, None, amopo_paths=batch.layout.paths)
