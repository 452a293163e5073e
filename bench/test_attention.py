"""Attention over a packed tree, alone: what does gathering keys cost, and what do shared tokens save?

Forward and backward of one layer's attention over 8 samples of K = 4 objectives, heads of a 0.5B and a 7B model:

    ours                gathered keys of every path, one call of the kernel that this device takes
    sdpa                the same by torch's SDPA, path by path
    unshared            the same kernel over the same sequences written out, without sharing
    flex                FlexAttention (compiled) over the row, with the same mask as a block mask; on CPUs, where it
                        has no backward, only its output is compared
    gather              only the gather of keys and values, and its backward
    layer               a whole decoder layer over the row, with ours inside

All must give the same outputs and the same gradient of the keys before they are timed. Beside the times: tokens of the
row, keys of all paths, and what share of a layer the gather takes.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import nn

from amopo.packing import attention_backends, pack
from amopo.packing.attention import tree_attention
from amopo.packing.sdpa import run_sdpa
from amopo_kernels.gather import gather_rows
from bench.common.measure import REPLAY, Entrant, race, run_for_memory
from bench.common.replay import replay
from bench.common.step_models import StepShape
from bench.common.synthetic import make_samples
from bench.common.truth import relative_error

pytestmark = pytest.mark.benchmark(timer=REPLAY)
QUESTION = "attention"
PROVIDERS = ("ours", "sdpa", "unshared", "flex", "gather", "layer")
SHARING = ("pair", "tree")
SAMPLES = {"small": 1, "full": 8}


class Case:
    """Queries, keys and values `[1, heads, T, D]` of a packed row, and its paths."""

    def __init__(self, shape: StepShape, sharing: str, device, dtype, samples: int, shrink: int) -> None:
        torch.manual_seed(0)
        texts = make_samples(samples, vocab=512, suffix=sharing == "tree", shrink=shrink)
        self.batch = pack(texts, sharing=sharing)
        self.layout = self.batch.layout.to(device)
        self.paths, self.shape, self.device, self.dtype = self.layout.paths, shape, device, dtype
        tokens = self.layout.num_tokens

        def random(heads):
            return torch.randn(1, heads, tokens, shape.head_size, device=device).to(dtype).requires_grad_()

        self.q, self.k, self.v = random(shape.heads), random(shape.kv_heads), random(shape.kv_heads)
        self.upstream = torch.randn(1, tokens, shape.heads, shape.head_size, device=device).to(dtype)
        index = self.paths.keys.index
        self.index = index
        # the first copy of a token among the paths: it alone gets the token's gradient where nothing is shared
        order = torch.full((tokens,), len(index), device=device).scatter_reduce(
            0, index, torch.arange(len(index), device=device), "amin"
        )
        self.first = torch.zeros(len(index), dtype=torch.bool, device=device)
        self.first[order] = True

    def leaves(self):
        return self.q, self.k, self.v

    def with_gradients(self, output, upstream, leaves=None):
        return output, torch.autograd.grad(output, leaves or self.leaves(), upstream)


class Layer(nn.Module):
    """What the backends look at of a layer."""


def ours(case: Case):
    def run():
        output, _ = tree_attention(Layer(), *case.leaves(), None, amopo_paths=case.paths)
        return case.with_gradients(output, case.upstream)

    return run, lambda result: result


def sdpa(case: Case):
    def run():
        q, k, v = (part[0].transpose(0, 1) for part in case.leaves())
        k, v = gather_rows(k, case.paths.keys), gather_rows(v, case.paths.keys)
        output = run_sdpa(q, k, v, case.paths, q.shape[-1] ** -0.5, None, None)[None].contiguous()
        return case.with_gradients(output, case.upstream)

    return run, lambda result: result


def unshared(case: Case):
    lengths = tuple((keys, keys) for _, keys in case.paths.lengths)
    cu = case.paths.cu_seqlens_k
    paths = dataclasses.replace(case.paths, lengths=lengths, cu_seqlens_q=cu, cu_seqlens_k=cu, keys=None)
    leaves = tuple(part.detach()[0].transpose(0, 1)[case.index].requires_grad_() for part in case.leaves())
    q, _, v = leaves
    name = attention_backends.choose_backend(Layer(), case.q, case.v, window=None, softcap=None)
    kernel = attention_backends.RUN[name]
    upstream = case.upstream[0][case.index] * case.first[:, None, None]

    def run():
        output = kernel(*leaves, paths, q.shape[-1] ** -0.5, None, None)
        return case.with_gradients(output, upstream, leaves)

    def packed(result):  # outputs of a token's first copy; gradients of all copies added
        output, gradients = result
        rows = torch.empty_like(case.upstream[0])
        rows[case.index[case.first]] = output[case.first]
        added = [
            torch.zeros(case.layout.num_tokens, *g.shape[1:], device=g.device).index_add_(0, case.index, g.float())
            for g in gradients
        ]
        return rows[None], tuple(g.transpose(0, 1)[None] for g in added)

    return run, packed


def flex_attend(case: Case):
    """FlexAttention over the row, not compiled: queries, keys, values -> [1, heads, T, D]."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    ends, tokens = case.paths.subtree_end, case.layout.num_tokens

    def visible(_, __, q, k):
        return (k <= q) & (q < ends[k])

    mask = create_block_mask(visible, None, None, tokens, tokens, device=case.device)
    return functools.partial(flex_attention, block_mask=mask, enable_gqa=True)


def flex(case: Case):
    attend = torch.compile(flex_attend(case), dynamic=False)

    def run():
        output = attend(*case.leaves()).transpose(1, 2)
        return case.with_gradients(output, case.upstream)

    return run, lambda result: result


def gather(case: Case):
    keys, values = (part.detach()[0].transpose(0, 1).contiguous().requires_grad_() for part in (case.k, case.v))
    upstream = torch.randn(len(case.index), *keys.shape[1:], device=case.device).to(case.dtype)

    def run():
        parts = gather_rows(keys, case.paths.keys), gather_rows(values, case.paths.keys)
        return torch.autograd.grad(parts, (keys, values), (upstream, upstream))

    return run, None


def layer(case: Case):
    from transformers import Qwen2ForCausalLM

    from amopo.trainer.forward import patch_forward

    with torch.device(case.device):
        model = Qwen2ForCausalLM(case.shape.config(layers=1, vocab=512)).to(case.dtype).train()
    patch_forward(model)
    body = model.model.layers[0]
    hidden = torch.randn(1, case.layout.num_tokens, case.shape.hidden, device=case.device).to(case.dtype)
    hidden.requires_grad_()
    positions = case.batch.position_ids.to(case.device)
    with torch.no_grad():
        rotations = tuple(part.to(case.dtype) for part in model.model.rotary_emb(hidden, positions))
    leaves = (hidden, *body.parameters())

    def run():
        output = body(hidden, position_embeddings=rotations, position_ids=positions, amopo_paths=case.paths)
        output = output[0] if isinstance(output, tuple) else output
        return torch.autograd.grad(output, leaves, torch.ones_like(output))

    return run, None


BUILD = {"ours": ours, "sdpa": sdpa, "unshared": unshared, "flex": flex, "gather": gather, "layer": layer}


def _race(session, shape, sharing):
    full = session.full
    dtype = session.dtype if session.device.type == "cuda" else torch.float32
    case = Case(shape, sharing, session.device, dtype, SAMPLES["full" if full else "small"], 1 if full else 16)
    kernel = attention_backends.choose_backend(Layer(), case.q, case.v, window=None, softcap=None)
    entrants, infos, exact = {}, {}, None
    allowed = 1e-4 if dtype == torch.float32 else 2e-2
    for provider in PROVIDERS:
        entrant = entrants[provider] = Entrant(provider, None)
        if provider == "flex" and session.device.type != "cuda":
            with torch.no_grad():
                output = flex_attend(case)(*(part.detach() for part in case.leaves())).transpose(1, 2)
            assert relative_error(output, exact[0]) < allowed, "flex computes something else"
            entrant.problem = "FlexAttention has no backward on CPUs"
            continue
        try:
            entrant.function, as_packed = BUILD[provider](case)
            result, memory = run_for_memory(entrant.function, session.device, watch_tensors=provider != "flex")
        except Exception as error:
            entrant.fail(error)
            continue
        if as_packed is not None:
            output, gradients = as_packed(result)
            output = output.detach()
            exact = exact or (output.double(), [g.double() for g in gradients])
            for got, right in zip((output, *gradients), (exact[0], *exact[1]), strict=True):
                assert relative_error(got, right) < allowed, f"{provider} computes something else"
        infos[provider] = {
            "role": "ours" if provider == "ours" else "peer", "kernel": kernel, "tokens": case.layout.num_tokens,
            "keys": len(case.index), **memory,
        }  # fmt: skip
        del result
    race(list(entrants.values()), session.device, **session.effort())
    median = {name: e.stats()["median"] for name, e in entrants.items() if e.problem is None}
    for provider, entrant in entrants.items():
        if entrant.problem is None:
            infos[provider]["to_ours"] = median[provider] / median["ours"]
            if "layer" in median:
                infos[provider]["of_layer"] = median[provider] / median["layer"]
        key = {"shape": str(shape), "sharing": sharing, "provider": provider, "small": not full}
        session.record(QUESTION, key, entrant, infos.get(provider, {}))
        entrant.release()
    return entrants


@pytest.mark.parametrize("entrant", PROVIDERS)
@pytest.mark.parametrize("sharing", SHARING)
def test_attention(benchmark, bench_session, step_shape, sharing, entrant):
    pytest.importorskip("transformers")
    key = (QUESTION, step_shape, sharing)
    entrants = bench_session.race(key, lambda: _race(bench_session, step_shape, sharing))
    found = entrants[entrant]
    if found.problem is not None and not found.problem.startswith("failed"):
        pytest.skip(f"{entrant}: {found.problem}")
    benchmark.group = f"{QUESTION} {step_shape}, {sharing}"
    replay(benchmark, found)
