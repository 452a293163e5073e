"""What a model's size on a device depends on: `ModelShape`, from a configuration, without weights or network.

Contract
--------
`shape_from_config(config, name)` takes what a config.json holds; names and files: `known_shapes`. A `ModelShape` knows
its linear layers, its norms and its parameters exactly; `tests/memory` compares them with transformers' own modules.

Supported: dense decoders of pre-norm layers with rotary attention and a gated MLP (`FAMILIES`), and others whose
configuration names the same sizes (`hidden_size`, `intermediate_size`, ...): those are planned as Llama layers, and
`is_exact` is False. Mixtures of experts and state-space layers raise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """What the modelling code of a family does, beyond sizes; read from transformers' modules of that name.

    norms: norms of width H per layer. norm: "llama" multiplies the rounded result by the weight, "gemma" multiplies in
    fp32 and rounds then. qk_norm: queries and keys are normalised per head. qkv_bias: their projections have a bias.
    """

    norms: int = 2
    norm: str = "llama"
    qk_norm: bool = False
    qkv_bias: bool = False


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "gemma": Family(norm="gemma"),
    "gemma2": Family(norms=4, norm="gemma"),
    "gemma3_text": Family(norms=4, norm="gemma", qk_norm=True),
}


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder layer; `reads` names the tensor that it reads, shared by those of one name."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    reads: str

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder."""

    name: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    attention_bias: bool = False  # of all four projections (Llama's option)
    mlp_bias: bool = False
    window: int | None = None
    softcap: float | None = None  # of the final logits
    attention_softcap: float | None = None

    def __post_init__(self) -> None:
        for field in ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"model {self.name}: {field} must be a positive whole number, got {value!r}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model {self.name}: {self.heads} attention heads cannot share {self.kv_heads} key-value heads"
            )

    @property
    def family(self) -> Family:
        return FAMILIES.get(self.model_type, FAMILIES["llama"])

    @property
    def is_exact(self) -> bool:
        """Whether the family's own modelling code was read, and not Llama's taken in its place."""
        return self.model_type in FAMILIES

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one decoder layer, in the order of its forward."""
        h, i, q, k = self.hidden, self.intermediate, self.query_width, self.key_width
        qkv_bias = self.family.qkv_bias or self.attention_bias
        return (
            Linear("q_proj", h, q, qkv_bias, "attention input"),
            Linear("k_proj", h, k, qkv_bias, "attention input"),
            Linear("v_proj", h, k, qkv_bias, "attention input"),
            Linear("o_proj", q, h, self.attention_bias, "attention output"),
            Linear("gate_proj", h, i, self.mlp_bias, "mlp input"),
            Linear("up_proj", h, i, self.mlp_bias, "mlp input"),
            Linear("down_proj", i, h, self.mlp_bias, "mlp output"),
        )

    @property
    def linear_parameters(self) -> int:
        """Of the linear layers of one decoder layer."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def qkv_parameters(self) -> int:
        """Of the projections of queries, keys and values of one decoder layer."""
        return sum(linear.parameters for linear in self.linears if linear.reads == "attention input")

    @property
    def layer_parameters(self) -> int:
        norms = self.family.norms * self.hidden + (2 * self.head_dim if self.family.qk_norm else 0)
        return self.linear_parameters + norms

    @property
    def embedding_parameters(self) -> int:
        """Of the input embedding; the head has as many of its own unless it is tied."""
        return self.vocab * self.hidden

    @property
    def head_parameters(self) -> int:
        return 0 if self.tied else self.embedding_parameters

    @property
    def parameters(self) -> int:
        """All of the model's; a tied weight counts once."""
        return self.layers * self.layer_parameters + self.hidden + self.embedding_parameters + self.head_parameters

    def lora_parameters(self, rank: int) -> int:
        """Of adapters of this rank on every linear layer of one decoder layer: r (in + out) each."""
        return sum(rank * (linear.inputs + linear.outputs) for linear in self.linears)


# A config.json leaves out what is the class's default.
_TIED_BY_DEFAULT = ("gemma", "gemma2", "gemma3_text", "cohere", "cohere2", "ernie4_5", "smollm3", "starcoder2")


def shape_from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a `config.json` describes (its text part, where it has several)."""
    if isinstance(config.get("text_config"), Mapping):
        config = {**config["text_config"]}
        config.setdefault("model_type", "")
    model_type = str(config.get("model_type", ""))
    experts = [key for key in ("num_experts", "num_local_experts", "n_routed_experts") if config.get(key)]
    if experts:
        raise ValueError(f"model {name}: {experts[0]}={config[experts[0]]}: mixtures of experts are not planned")
    kinds = set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise ValueError(
            f"model {name}: layers of type {', '.join(sorted(kinds))} are not planned; give a dense decoder"
        )

    def need(key: str) -> int:
        value = config.get(key)
        if value is None:
            raise ValueError(
                f"model {name}: its configuration has no {key}; a dense decoder with a gated MLP is needed"
            )
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"model {name}: {key} must be a positive whole number, got {value!r}")
        return value

    def given(key: str, otherwise: int) -> int:
        return otherwise if config.get(key) is None else need(key)

    heads, hidden = need("num_attention_heads"), need("hidden_size")
    return ModelShape(
        name=name,
        model_type=model_type,
        layers=need("num_hidden_layers"),
        hidden=hidden,
        intermediate=need("intermediate_size"),
        heads=heads,
        kv_heads=given("num_key_value_heads", heads),
        head_dim=given("head_dim", hidden // heads),
        vocab=need("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", model_type in _TIED_BY_DEFAULT)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        window=config.get("sliding_window") if config.get("use_sliding_window", True) else None,
        softcap=config.get("final_logit_softcapping"),
        attention_softcap=config.get("attn_logit_softcapping"),
    )


def with_layers(shape: ModelShape, layers: int) -> ModelShape:
    """The same widths with the first `layers` layers.

    Raises:
        ValueError: it has not so many.
    """
    if not 1 <= layers <= shape.layers:
        raise ValueError(f"--layers {layers}: {shape.name} has {shape.layers}; give 1 to {shape.layers}")
    return dataclasses.replace(shape, layers=layers)
