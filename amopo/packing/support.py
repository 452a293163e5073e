"""Which models keep the sequences of a packed row apart.

Contract
--------
`check_packing_support(model)` reads the configuration of a transformers causal LM and raises a ValueError that names
what cannot work in a packed row, before anything is run:

- attention implementations other than sdpa, eager, flash_attention_2 and flash_attention_3;
- linear-attention, state-space and convolution layers: their state flows from one sequence into the next;
- rotary embeddings that depend on the longest sequence of the row (dynamic, longrope), multimodal rotary embeddings,
  ALiBi and other models without position ids;
- encoder-decoder models, routers with an auxiliary loss (it would be dropped), prompt-tuning adapters.

`check_packed_row(body, ...)` then runs a small packed row through the model and raises where its hidden states are not
those of the sequences alone: the net under the names above, for models that nobody thought of.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from amopo.packing import attention
from amopo.packing.pack import PackedBatch, pack
from amopo.packing.sample import TokenizedSample
from amopo.packing.windows import watch_windows

ATTENTION = (*attention.NAMES, *attention.NAMES.values())
LAYERS = ("full_attention", "sliding_attention", "attention")
ROPE_OF_THE_ROW = ("dynamic", "longrope", "su")
RECURRENT_MODELS = frozenset(
    "bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe mamba mamba2 minimax nemotron_h "
    "olmo_hybrid qwen3_next qwen3_5 qwen3_5_moe recurrent_gemma rwkv xlstm zamba zamba2".split()
)
# relative change of a sequence's hidden states that rounding alone can explain
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}


def check_packing_support(model: nn.Module) -> None:
    """Raise if `model` (a bare or PEFT-wrapped causal LM) cannot train on packed rows."""
    for adapter, peft_config in (getattr(model, "peft_config", None) or {}).items():
        if getattr(peft_config, "is_prompt_learning", False):
            _refuse(model, f"adapter {adapter!r} puts virtual tokens before the row", "use LoRA or another adapter")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(base, "config", None)
    if config is None:
        _refuse(model, "it has no .config", "give a transformers causal LM")
    text = attention.text_config(base)

    if getattr(config, "is_encoder_decoder", False):
        _refuse(base, "it is an encoder-decoder model", "give a decoder-only causal LM")
    _check_attention(base, config)
    _check_layers(base, text)
    _check_rope(base, text)
    if getattr(text, "alibi", False):
        _refuse(base, "ALiBi counts distances along the whole row", "give a model with rotary position embeddings")
    if getattr(text, "output_router_logits", False):
        _refuse(
            base,
            "output_router_logits=True adds a router loss, which preference training would drop",
            "set model.config.output_router_logits = False",
        )


def _refuse(model: nn.Module, reason: str, remedy: str) -> None:
    raise ValueError(f"{type(model).__name__} cannot train on packed rows: {reason}; {remedy}")


def _check_attention(base: nn.Module, config: Any) -> None:
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in ATTENTION:
        _refuse(
            base,
            f"attn_implementation={implementation!r} is not known to keep packed sequences apart",
            f"load the model with attn_implementation one of {', '.join(attention.NAMES)}",
        )


def _check_layers(base: nn.Module, config: Any) -> None:
    kinds = set()
    for name in ("layer_types", "layers_block_type"):
        value = getattr(config, name, None)
        if isinstance(value, Iterable) and not isinstance(value, str):
            kinds.update(value)
    strange = sorted(kinds - set(LAYERS))
    remedy = "give a model whose layers are all full or sliding-window attention"
    if strange:
        _refuse(base, f"its layers of type {', '.join(strange)} let one sequence reach the next", remedy)
    model_type = getattr(config, "model_type", "")
    if model_type in RECURRENT_MODELS or getattr(base, "_is_stateful", False):
        _refuse(base, f"model type {model_type!r} carries a recurrent state from one sequence into the next", remedy)


def _check_rope(base: nn.Module, config: Any) -> None:
    for rope in _rope_dicts(config):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind in ROPE_OF_THE_ROW:
            _refuse(
                base,
                f"rope_type={kind!r} changes with the longest sequence of the row, so neighbours change each other",
                "give a model with a fixed rope type (default, linear, yarn, llama3)",
            )
        if "mrope_section" in rope or kind == "mrope":
            _refuse(base, "multimodal rope (mrope_section) needs three position ids per token", "give a text model")


def _rope_dicts(config: Any) -> list[dict]:
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        value = getattr(config, name, None)
        if isinstance(value, dict):
            found.append(value)
            # one dictionary per kind of layer
            found += [inner for inner in value.values() if isinstance(inner, dict)]
    return found


def check_position_ids(body: nn.Module) -> None:
    """Raise if the body does not take position ids: nothing would tell it where a sequence ends."""
    parameters = inspect.signature(body.forward).parameters
    if "position_ids" not in parameters:
        _refuse(body, "its forward takes no position_ids", "give a model with rotary or learned position embeddings")


def _probe(vocab_size: int, sharing: str) -> tuple[PackedBatch, list[list[int]]]:
    """A packed row of two small samples, and the sequences of the second, which stands behind the first."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(vocab_size, (count,), generator=generator).tolist()

    head, shared = tokens(3), tokens(1)
    prompts = [head + tokens(3), head + tokens(2)]
    last = TokenizedSample(prompts, shared + [(shared[0] + 1) % vocab_size] + tokens(2), shared + shared + tokens(1), 1)
    neighbour = TokenizedSample([tokens(4), tokens(3)], [1 % vocab_size, *tokens(3)], [0, *tokens(2)], 0)
    sequences = [prompt + response for prompt in last.prompts for response in (last.chosen, last.rejected)]
    return pack([neighbour, last], sharing=sharing), sequences


@torch.no_grad()
def check_packed_row(body: nn.Module, *, vocab_size: int, device: torch.device | str, shares: bool) -> None:
    """Raise if hidden states of a packed row are not those of its sequences, each run alone.

    Two samples of two objectives; with `shares` their tokens stand once (`tree_attention` is installed). Five forwards
    of fewer than 50 tokens, in eval mode; the global random number generators are not used.
    """
    batch, sequences = _probe(vocab_size, "tree" if shares else "none")
    batch = batch.to(device)
    row = batch.input_ids[0].tolist()
    arguments = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    mask = {"attention_mask": None}
    if shares:
        mask = {"attention_mask": attention.no_mask(device), "amopo_paths": batch.layout.paths}
    modes = [(module, module.training) for module in body.modules()]
    body.eval()
    try:
        packed = body(**arguments, **mask).last_hidden_state[0]
        with watch_windows() as windows:
            alone = [
                body(input_ids=torch.tensor([sequence], device=device), use_cache=False).last_hidden_state[0]
                for sequence in sequences
            ]
    finally:
        for module, mode in modes:
            module.training = mode
    if shares and windows.disagreement is not None:
        _refuse(body, windows.disagreement, "its packed row would attend to other keys; use another model")
    if not packed.isfinite().all():
        _refuse(
            body,
            "its hidden states hold NaN or inf on a first try; the weights are broken",
            "load it from an intact checkpoint",
        )
    pairs = [(packed[path], expected) for path, expected in zip(_paths_of(batch, row, sequences), alone, strict=True)]
    change = max(((got - expected).double().norm() / expected.double().norm()).item() for got, expected in pairs)
    kind, dtype = torch.device(device).type, packed.dtype
    if dtype == torch.float32 and torch.is_autocast_enabled(kind):  # the last norm gives fp32, what is before rounds
        dtype = torch.get_autocast_dtype(kind)
    allowed = ROUNDING.get(dtype, 2e-2)
    if not change <= allowed:
        _refuse(
            body,
            f"the hidden states of a sequence in a packed row differ from those of the sequence alone by {change:.1e} "
            f"(relative), more than the {allowed:.0e} of rounding",
            "its layers look at more than a token's own path; use another attn_implementation or model",
        )


def _paths_of(batch: PackedBatch, row: list[int], sequences: list[list[int]]) -> list[list[int]]:
    """Row positions of each of the last sample's sequences, found by following the tree."""
    ends = batch.layout.paths.subtree_end.tolist()
    positions = batch.position_ids[0].tolist()
    first = len(row) - 1
    paths = []
    # A token's ancestors are the tokens before it whose subtree it stands in.
    candidates = [[k for k in range(q + 1) if q < ends[k]] for q in range(first + 1)]
    found: dict[tuple[int, ...], list[int]] = {tuple(row[k] for k in path): path for path in candidates}
    for sequence in sequences:
        path = found[tuple(sequence)]
        assert [positions[k] for k in path] == list(range(len(path)))
        paths.append(path)
    return paths
