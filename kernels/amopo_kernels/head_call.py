"""The description of one head call: what is not a tensor, rebuilt alike by forward, backward, fake kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amopo_kernels.products import Products, choose_products
from amopo_kernels.row_pass import Transform
from amopo_kernels.workspace import Plan, plan_workspace


@dataclass(frozen=True)
class HeadOptions:
    """Options of a call as plain values, so that they fit the schema of a custom operator."""

    compute_dtype: torch.dtype
    logit_scale: float | None
    softcap: float | None
    lora_scale: float
    logits_dtype: str  # "", "input" or "float32"
    budget: int | None
    group: str  # name of the process group over which the vocabulary is sharded; "" = not sharded
    need_hidden: bool
    need_weight: bool
    need_bias: bool
    need_lora: bool


@dataclass(frozen=True)
class HeadCall:
    """What follows from options and shapes."""

    options: HeadOptions
    products: Products
    plan: Plan

    @classmethod
    def make(cls, hidden: Tensor, weight: Tensor, options: HeadOptions, lora_rank: int = 0) -> HeadCall:
        logits_dtype = {"": None, "input": "input", "float32": torch.float32}[options.logits_dtype]
        products = choose_products(options.compute_dtype, hidden.device, logits_dtype)
        plan = plan_workspace(
            (hidden.shape[0], hidden.shape[1], weight.shape[0]),
            products,
            budget=options.budget,
            need_hidden_grad=options.need_hidden or options.need_lora,
            need_weight_grad=options.need_weight or options.need_bias or options.need_lora,
            softcap=options.softcap is not None,
            cast_weight=weight.dtype != options.compute_dtype,
            lora_rank=lora_rank,
            device_type=hidden.device.type,
        )
        return cls(options, products, plan)

    @property
    def transform(self) -> Transform:
        return Transform(self.options.logit_scale, self.options.softcap)

    @property
    def half_range(self) -> bool:
        return self.products.compute == torch.float16

    @property
    def stores_g(self) -> bool:
        """The backward reads G: some gradient of vocabulary size is wanted."""
        return self.options.need_weight or self.options.need_bias or self.options.need_lora

    @property
    def needs_g(self) -> bool:
        return self.stores_g or self.options.need_hidden
