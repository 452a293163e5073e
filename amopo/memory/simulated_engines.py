"""How the engines wrap a model of fake tensors.

`wrap(model, engine=...)` -> `Wrapped(module to call, optimizer, tracker)`. fsdp2 makes the units that accelerate makes:
one per decoder layer, one for the input embedding, one for the head, which stays gathered from the forward to the
backward. Tied weights are gathered for the whole step, in the root unit. The final norm stands in the root unit too,
and not beside the head as in accelerate: `FSDPMemTracker` runs the hooks of a unit of several modules once per module,
which would gather it again in the backward. AdamW is the fused one, which is the trainer's default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

from amopo.head import find_head

ENGINES = ("single", "ddp", "fsdp2")


@dataclass(frozen=True)
class Wrapped:
    module: nn.Module
    optimizer: torch.optim.Optimizer
    tracker: Any


def wrap(model: nn.Module, *, engine: str, mesh: Any, precision: str) -> Wrapped:
    from torch.distributed._tools.mem_tracker import MemTracker

    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} cannot be simulated; {', '.join(ENGINES)} can")
    if engine == "fsdp2":
        shard(model, mesh, precision)
        optimizer = _optimizer(model)
        return Wrapped(model, optimizer, _sharded_tracker()(model, optimizer))

    class Tracker(MemTracker):
        def _track_module_params_and_buffers(
            self, module: nn.Module, install_grad_hooks: bool = True
        ) -> tuple[int, int]:
            # It would ask frozen weights for a hook on their gradient, which they refuse.
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    self._param_to_grad_hook_handles.setdefault(parameter, (_NoHook(), _NoHook()))
            return super()._track_module_params_and_buffers(module, install_grad_hooks)

        def _update_peak_stats(self, peak_state: Any) -> None:
            # It would go through every module at every operation; the peak of the whole is all that is read.
            modules, self.memory_tracking = self.memory_tracking, {}
            try:
                super()._update_peak_stats(peak_state)
            finally:
                self.memory_tracking = modules

    tracker = Tracker()
    module = model
    if engine == "ddp":
        with tracker:  # the buckets are made here
            module = _distributed(model)
    optimizer = _optimizer(model)
    tracker.track_external(model, optimizer)
    return Wrapped(module, optimizer, tracker)


def _sharded_tracker() -> type:
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    shapes_of_results = ShardingPropagator._propagate_tensor_meta_non_cached

    class Tracker(FSDPMemTracker):
        """Sees what a rank computes, and not how DTensor finds out which shape a result has.

        For that DTensor runs the operation on fake tensors of the whole shape. On torch 2.11 it does so for the
        optimizer in every step, and the tracker would take them for optimizer state of this rank.
        """

        _is_asked_for_shapes = False

        def __enter__(self) -> Any:
            def unseen(propagator: Any, schema: Any) -> Any:
                self._is_asked_for_shapes = True
                try:
                    return shapes_of_results(propagator, schema)
                finally:
                    self._is_asked_for_shapes = False

            self._patch = mock.patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", unseen)
            self._patch.start()
            return super().__enter__()

        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            self._patch.stop()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if self._is_asked_for_shapes:
                return func(*args, **kwargs or {})
            return super().__torch_dispatch__(func, types, args, kwargs)

    return Tracker


class _NoHook:
    def remove(self) -> None:
        pass


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)


def shard(model: nn.Module, mesh: Any, precision: str, *, offload: Any = None) -> None:
    """FSDP2 over the units that are named above. offload: an `OffloadPolicy`."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = torch.bfloat16 if precision == "mixed" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    if offload is not None:
        options["offload_policy"] = offload
    head = find_head(model)
    layers = next(module for module in head.body.modules() if isinstance(module, nn.ModuleList))
    for layer in layers:
        fully_shard(layer, **options)
    embedding = head.body.get_input_embeddings()
    if embedding.weight is not head.lm_head.weight:
        fully_shard(embedding, **options)
        fully_shard(head.lm_head, **options, reshard_after_forward=False)
    fully_shard(model, **options)


def _distributed(model: nn.Module) -> nn.Module:
    """DDP whose buckets are filled and copied as always, over a process group that sends nothing."""
    # init_sync compares and copies values, which fake tensors do not have; so does the reordering of the buckets after
    # the first step, which changes their order and not their size.
    module = nn.parallel.DistributedDataParallel(model, init_sync=False)
    module.reducer = _FixedBuckets(module.reducer)

    def reduced(_, bucket):  # DDP looks at annotations, and knows only its own
        future: torch.futures.Future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    module.register_comm_hook(None, reduced)
    return module


class _FixedBuckets:
    """A reducer that keeps its first buckets."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def _rebuild_buckets(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)
