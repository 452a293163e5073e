"""One training step of the real model code, without a device and without storage: what a plan is checked against.

Contract
--------
`simulate(config, batch, patch=...)` builds the causal LM of a transformers configuration on fake tensors, wraps it as
the engine would (bare, `DistributedDataParallel`, `fully_shard` with the units that accelerate makes), and runs two
steps of forward, loss, backward and AdamW over a fake process group. The peaks of the second step, when the optimizer
has its state, are read from torch's `MemTracker` (`FSDPMemTracker` for fsdp2) at the phases of `amopo.memory.phases`.

Fake tensors stand on the "cpu", whose kernels are not the GPU's. So with `device="cuda"` attention runs torch's varlen
operator and the head is planned as on CUDA, and what these operators take inside themselves, where no tracker sees it,
is added as one tensor for the time of the call: `plan_workspace` of the head, `backward_workspace` of attention.

What it does not see: the CUDA context, fragmentation, buffers of NCCL and cuBLAS.
"""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from amopo.fused_loss import loss_from_logps
from amopo.memory.attention import backward_workspace
from amopo.memory.checkpointing import enable_checkpointing
from amopo.memory.phases import PhasePeaks
from amopo.memory.simulated_engines import wrap
from amopo.packing import attention
from amopo.packing.pack import PackedBatch
from amopo_kernels import head_op
from amopo_kernels.head_call import HeadCall, HeadOptions

STEPS = 2
_HEAD = torch.ops.amopo.linear_logprobs.default
_HEAD_BACKWARD = torch.ops.amopo.linear_logprobs_backward.default
_VARLEN_BACKWARD = "torch_attn::_varlen_attn_backward"  # there once torch.nn.attention.varlen is loaded


@dataclass(frozen=True)
class Simulation:
    """Bytes on one rank in the second step: peaks by phase, and what each peak consists of by the tracker's kinds."""

    peaks: dict[str, int]
    kinds: dict[str, dict[str, int]]

    @property
    def peak(self) -> int:
        return max(self.peaks.values())


def simulate(
    config: Any,
    batch: PackedBatch,
    *,
    patch: Callable[..., Any],
    engine: str = "single",
    gpus: int = 1,
    precision: str = "mixed",
    checkpointing: bool = False,
    lora: int | None = None,
    accumulation: int = 1,
    head_budget: int | None = None,
    device: str = "cuda",
) -> Simulation:
    """Peaks of a training step on one of `gpus` ranks.

    Args:
        config: a transformers configuration; a copy is used. batch: from `amopo.pack`; it is what every rank sees.
        patch: teaches a model's forward the argument `amopo_layout` (`amopo.trainer.forward.patch_forward`).
        engine: single, ddp or fsdp2. precision: bf16 (all of it), mixed (fp32 weights, bf16 products) or fp32.
        lora: rank of adapters on the linear layers, needs peft. accumulation: micro-batches of a step, each of them
            `batch`; peaks are those of the last. device: whose kernels' workspace is added.

    Raises:
        ValueError: the model's attention has a softcap, which torch's varlen operator does not have.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    softcap = getattr(config, "attn_logit_softcapping", None)
    if device == "cuda" and softcap is not None:
        raise ValueError(
            f"attention with a softcap ({softcap}) cannot be simulated: torch's varlen operator has none; it can "
            "be planned, and a configuration with attn_logit_softcapping=None can be simulated"
        )

    model = _build(config, precision, lora)
    with _process_group(engine, gpus) as mesh, FakeTensorMode(allow_non_fake_inputs=True), _kernels_of(device):
        _give_storage(model)
        model.train()
        if checkpointing:
            enable_checkpointing(model)
            if lora is not None:
                _no_leaves(model)
        patch(model, budget=head_budget)
        wrapped = wrap(model, engine=engine, mesh=mesh, precision=precision)
        peaks = PhasePeaks(wrapped.tracker)
        watch = _OperatorWatch(peaks, device)
        autocast = precision == "mixed" and engine != "fsdp2"
        with wrapped.tracker, watch:
            for step in range(STEPS):
                for number in range(accumulation):
                    with _accumulated(wrapped.module, is_last=number == accumulation - 1):
                        peaks.begin("forward")
                        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                            logps = wrapped.module(
                                input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout
                            )
                        loss = loss_from_logps(logps, batch.layout, sample_ids=batch.sample_ids, step=step).loss
                        loss.backward()
                        del logps, loss
                    wrapped.tracker.reset_mod_stats()
                peaks.begin("step")
                wrapped.optimizer.step()
                peaks.end()
                wrapped.optimizer.zero_grad()
    return Simulation(peaks.bytes, peaks.kinds)


def _accumulated(module: nn.Module, *, is_last: bool) -> contextlib.AbstractContextManager:
    """DDP reduces in the last micro-batch alone; FSDP2 in each, as the trainer lets it."""
    return contextlib.nullcontext() if is_last or not hasattr(module, "no_sync") else module.no_sync()


def _build(config: Any, precision: str, lora: int | None) -> nn.Module:
    """The causal LM on the meta device, with adapters where they are wanted."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = copy.deepcopy(config)
    config._attn_implementation = None  # the default of the architecture
    half = precision == "bf16" or (lora is not None and precision == "mixed")
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if half else torch.float32)
        model.tie_weights()
        if lora is None:
            return model
        from peft import LoraConfig, get_peft_model

        options = LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, options, autocast_adapter_dtype=precision == "mixed")
        if precision == "bf16":  # peft gives adapters the dtype of their layer, but not on the meta device
            model.to(torch.bfloat16)
        return model


def _give_storage(model: nn.Module) -> None:
    """Fake tensors on the CPU in the place of meta tensors, once for every tensor that several modules share."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the tensor itself, so that no other gets its id

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = (tensor, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty)
        return made[id(tensor)][1]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake(tensor)


@contextlib.contextmanager
def _process_group(engine: str, gpus: int) -> Iterator[Any]:
    """A process group that sends nothing, and for fsdp2 the mesh over it: a mesh is made of real tensors."""
    if engine == "single":
        yield None
        return
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError("simulate() makes a process group of its own; destroy the one that there is first")
    dist.init_process_group("fake", rank=0, world_size=gpus, store=FakeStore())
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (gpus,)) if engine == "fsdp2" else None
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _kernels_of(device: str) -> Iterator[None]:
    """Plan the head, and choose the attention, as on `device`, where fake tensors stand on the CPU."""

    class Planned(HeadCall):
        @classmethod
        def make(cls, hidden: Tensor, weight: Tensor, options: HeadOptions, lora_rank: int = 0) -> HeadCall:
            return _call_on(device, hidden, weight, options, lora_rank)

    backends = mock.patch.object(attention, "choose_backend", lambda *args, **kwargs: "varlen")
    with mock.patch.object(head_op, "HeadCall", Planned), backends if device == "cuda" else contextlib.nullcontext():
        yield


def _call_on(device: str, hidden: Tensor, weight: Tensor, options: HeadOptions, lora_rank: int) -> HeadCall:
    there = types.SimpleNamespace(shape=hidden.shape, device=torch.device(device))
    return HeadCall.make(there, weight, options, lora_rank)  # type: ignore[arg-type]


class _OperatorWatch(TorchDispatchMode):
    """Begins the phases of the head, and holds the workspace of opaque operators while they run."""

    def __init__(self, peaks: PhasePeaks, device: str) -> None:
        super().__init__()
        self.peaks = peaks
        self.device = device
        self.head_is_over = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.distributed.tensor import DTensor

        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        kwargs = kwargs or {}
        if self.head_is_over and func.namespace != "prim" and func is not torch.ops.aten.detach.default:
            self.head_is_over = False
            self.peaks.begin("backward")
        if func is _HEAD:
            self.peaks.begin("head")
            call = _call_on(self.device, args[0], args[1], HeadOptions(*args[6:]), _rank(args[5]))
            return self._held(call.plan.forward_bytes, func, args, kwargs, inside=True)
        if func is _HEAD_BACKWARD:
            options = HeadOptions(*args[-len(HeadOptions.__dataclass_fields__) :])
            call = _call_on(self.device, args[1], args[2], options, _rank(args[6]))
            # U, the kept G and the factors are saved tensors, and the tracker sees them already.
            saved = sum(part.untyped_storage().nbytes() for part in args[7 : -len(HeadOptions.__dataclass_fields__)])
            outputs = args[1].nbytes if options.need_hidden else 0  # dH
            work = max(0, call.plan.backward_bytes - saved - outputs)
            result = self._held(work, func, args, kwargs, inside=False)
            self.head_is_over = True  # what it saved is released when this call has returned
            return result
        if func.name() == _VARLEN_BACKWARD:
            # grad_out, query, key, value, out, lse, cu_seq_q, ...
            query, key, cu_seqlens = args[1], args[2], args[6]
            work = backward_workspace(
                tokens=query.shape[0], keys=key.shape[0], heads=query.shape[1], kv_heads=key.shape[1],
                head_dim=query.shape[2], paths=cu_seqlens.shape[0] - 1, itemsize=query.element_size(),
            )  # fmt: skip
            return self._held(work, func, args, kwargs, inside=False)
        return func(*args, **kwargs)

    def _held(self, size: int, func: Any, args: Any, kwargs: Any, *, inside: bool) -> Any:
        """The call, with `size` bytes taken until it is over; `inside`: its outputs are among them."""
        if not inside:
            work = torch.empty(size, dtype=torch.uint8, device="cpu")
            result = func(*args, **kwargs)
            del work
            return result
        result = func(*args, **kwargs)
        given = sum(part.untyped_storage().nbytes() for part in result)
        work = torch.empty(max(0, size - given), dtype=torch.uint8, device="cpu")
        del work
        return result


class _Reached(torch.autograd.Function):
    """Its input, as a result of what is trained."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, anchor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        return None, None


def _no_leaves(model: nn.Module) -> None:
    """Let the embedding's result require a gradient, as peft does under checkpointing, without being a leaf.

    The tracker's hooks on a leaf outlive the step with it and its gradient, which no run without a tracker does.
    """
    anchor = torch.zeros((), device="cpu", requires_grad=True)
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: _Reached.apply(output, anchor), prepend=True
    )


def _rank(lora_b: Tensor | None) -> int:
    return 0 if lora_b is None else lora_b.shape[1]
