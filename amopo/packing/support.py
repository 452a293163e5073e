"""Which models keep the sequences of a packed row apart.

Contract
--------
`check_packing_support(model)` reads the configuration of a transformers causal LM and raises a ValueError that names
what cannot work in a packed row, before anything is run:

- attention implementations other than sdpa, eager, flash_attention_2 and flash_attention_3 (transformers separates
  sequences by their restarting position ids only in those);
- linear-attention, state-space and convolution layers: their state flows from one sequence into the next;
- rotary embeddings that depend on the longest sequence of the row (dynamic, longrope), multimodal rotary embeddings,
  ALiBi and other models without position ids;
- encoder-decoder models, routers with an auxiliary loss (it would be dropped), prompt-tuning adapters.

`check_isolation(body, ...)` then runs two short rows through the model and raises where a sequence's hidden states
depend on its neighbour: the net under the names above, for models that nobody thought of. It costs two forwards of 16
tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
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
    text = config.get_text_config() if hasattr(config, "get_text_config") else config

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
            f"load the model with attn_implementation one of {', '.join(ATTENTION)}",
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


@torch.no_grad()
def check_isolation(body: nn.Module, *, vocab_size: int, device: torch.device | str) -> None:
    """Raise if, in a packed row, one sequence's tokens change another's hidden states.

    `body(input_ids, position_ids, use_cache, attention_mask)` is called twice in eval mode; the global random number
    generators are not used.
    """
    length = 8
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (3, length), generator=generator)
    tokens[1] = (tokens[0] + 1) % vocab_size  # a neighbour that differs everywhere
    positions = torch.arange(length).repeat(2)[None].to(device)
    was_training = body.training
    body.eval()
    try:
        hidden = []
        for neighbour in (0, 1):
            row = torch.cat([tokens[neighbour], tokens[2]])[None].to(device)
            output = body(input_ids=row, position_ids=positions, use_cache=False, attention_mask=None)
            hidden.append(output.last_hidden_state[0, length:].double())
    finally:
        body.train(was_training)
    if not all(rows.isfinite().all() for rows in hidden):
        _refuse(
            body,
            "its hidden states hold NaN or inf on a first try; the weights are broken",
            "load it from an intact checkpoint",
        )
    change = ((hidden[0] - hidden[1]).norm() / hidden[0].norm()).item()
    allowed = ROUNDING.get(output.last_hidden_state.dtype, 2e-2)
    if not change <= allowed:
        _refuse(
            body,
            f"changing one sequence's tokens changed its neighbour's hidden states by {change:.1e} (relative), more "
            f"than the {allowed:.0e} of rounding",
            "its attention does not separate sequences by position ids; use another attn_implementation or model",
        )
