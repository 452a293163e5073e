"""What a run is planned with, checked before anything is computed.

`RunSettings` raises ValueError for what cannot work: unknown names (with the known ones), sizes that are not positive,
a number of GPUs that is not a whole number of nodes, an engine that cannot do what is asked of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from amopo.memory.precision import PRECISIONS
from amopo.packing.trie import check_sharing

ENGINES = ("single", "ddp", "fsdp2", "zero3")
OPTIMIZERS = ("adamw", "adamw8bit")
OFFLOADS = ("none", "optimizer", "all")
DEVICES = ("cuda", "cpu")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Engine, precision and what is trained. `lora`: rank of adapters on the layers' linear layers, the rest frozen.

    gpus_per_node: a cluster has whole nodes, or less than one. accumulation: micro-batches of an optimizer step
    (`gradient_accumulation_steps`). head_budget: as in `AMoPOConfig`. device: whose kernels run.
    """

    engine: str = "single"
    gpus: int = 1
    gpus_per_node: int = 8
    precision: str = "mixed"
    optimizer: str = "adamw"
    offload: str = "none"
    checkpointing: bool = False
    accumulation: int = 1
    lora: int | None = None
    head_budget: int | None = None
    device: str = "cuda"

    @property
    def sharded(self) -> bool:
        """Whether ranks hold parts of the states, so that more of them need less each."""
        return self.engine in ("fsdp2", "zero3")

    def __post_init__(self) -> None:
        for name, known in (
            ("engine", ENGINES),
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
            ("offload", OFFLOADS),
            ("device", DEVICES),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} {value!r} is not known; known: {', '.join(known)}")
        for name in ("gpus", "gpus_per_node", "accumulation", "lora", "head_budget"):
            value = getattr(self, name)
            if value is None and name in ("lora", "head_budget"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.engine == "single" and self.gpus != 1:
            raise ValueError(
                f"engine 'single' runs on one GPU, not on {self.gpus}; give --engine ddp, fsdp2 or zero3, or --gpus 1"
            )
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise ValueError(
                f"{self.gpus} GPUs are not a whole number of nodes of {self.gpus_per_node}; give a multiple of "
                f"{self.gpus_per_node}, or --gpus-per-node"
            )
        if self.offload != "none" and self.engine in ("single", "ddp"):
            raise ValueError(f"engine {self.engine!r} does not offload; --offload needs --engine zero3 or fsdp2")
        if self.offload == "optimizer" and self.engine == "fsdp2":
            raise ValueError(
                "fsdp2 offloads parameters, gradients and optimizer state together; give --offload all, or --engine "
                "zero3 to offload the optimizer alone"
            )
        if self.offload != "none" and self.optimizer == "adamw8bit":
            raise ValueError("adamw8bit runs on the GPU; with --offload give --optimizer adamw")
        if self.engine == "fsdp2" and self.optimizer == "adamw8bit":
            raise ValueError(
                "adamw8bit does not run under fsdp2: the kernels of bitsandbytes take the pointers of plain tensors, "
                "and FSDP2's parameters are DTensors; give --optimizer adamw, or another --engine"
            )
        if self.engine == "zero3" and self.optimizer == "adamw8bit":
            raise ValueError(
                "adamw8bit is not planned with zero3: DeepSpeed does not list bitsandbytes among the optimizers that "
                "ZeRO supports; give --optimizer adamw, or another --engine"
            )
        if self.engine == "zero3" and self.precision == "fp32":
            raise ValueError("zero3 is planned with bf16 weights and an fp32 master; give --precision mixed")
        if self.engine == "zero3" and self.precision == "bf16":
            raise ValueError("DeepSpeed keeps an fp32 master of bf16 weights; with zero3 give --precision mixed")


@dataclass(frozen=True, kw_only=True)
class SampleShape:
    """Lengths of one preference sample in tokens, and how many of them one row holds.

    objectives: K. prompt: without the template; template: of one objective; chosen, rejected: the responses.
    """

    objectives: int = 4
    prompt: int = 256
    template: int = 32
    chosen: int = 256
    rejected: int = 256
    samples: int = 1
    sharing: str = "pair"

    def __post_init__(self) -> None:
        check_sharing(self.sharing)
        for name in ("objectives", "prompt", "chosen", "rejected", "samples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if isinstance(self.template, bool) or not isinstance(self.template, int) or self.template < 0:
            raise ValueError(f"template must be a whole number of at least 0, got {self.template!r}")
