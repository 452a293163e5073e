"""Peaks of a training loop by phase, whatever the loop is.

    with amopo.memory.track(model, optimizer) as memory:
        trainer.train()
    memory.peaks              # {"forward": bytes, "head": ..., "backward": ..., "step": ...}

Contract
--------
A step begins with the first operation after an optimizer step. The head's phase begins with the operator of
`amopo.linear_logprobs` and ends with its backward; a loop that never calls it has no such phase. The backward is told
by autograd, the step by a hook on all optimizers. `steps` holds the peaks of every finished step; `peaks` the largest
of all but the first, in which the optimizer makes its state (of the first, if there is no other).

On CUDA the numbers are the allocator's. On a CPU they are bytes of tensors: of those given (parameters, buffers,
gradients, optimizer state) and of all that operations make; `resident` is the process's peak resident set by phase,
where Linux tells it. Backward and optimizer run a little slower, since every operation passes through Python; and
autograd adds gradients that meet at a tied weight into a third tensor while it watches.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from amopo.memory.meters import TensorMeter, meter_of
from amopo_kernels.head_op import linear_logprobs_backward_op, linear_logprobs_op

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MemoryTrack(TorchDispatchMode):
    """The context manager that `track` gives."""

    def __init__(self, model: nn.Module | None, optimizer: Any, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.meter = meter_of(device)
        self.steps: list[dict[str, int]] = []
        self.resident: dict[str, int] = {}
        # (seconds, phase, live bytes) wherever live memory has changed by a thousandth of the peak
        self.timeline: list[tuple[float, str, int]] = []
        self._given = (model, optimizer)
        self._inside = {op._opoverload: op._init_fn for op in (linear_logprobs_op, linear_logprobs_backward_op)}
        self._forward, self._backward = linear_logprobs_op._opoverload, linear_logprobs_backward_op._opoverload
        self._phase: str | None = None
        self._current: dict[str, int] = {}
        self._head_is_over = False
        self._hooks: list[Any] = []
        self._started = 0.0

    @property
    def peaks(self) -> dict[str, int]:
        """The largest peak of each phase, without the first step if there are others."""
        found: dict[str, int] = {}
        for step in self.steps[1:] or self.steps:
            for phase, size in step.items():
                found[phase] = max(found.get(phase, 0), size)
        return found

    def __enter__(self) -> MemoryTrack:
        self.meter.start(_tensors(*self._given))
        self._started = time.perf_counter()
        self._hooks = [
            register_optimizer_step_pre_hook(lambda *_: self._begin("step")),
            register_optimizer_step_post_hook(lambda *_: self._end_step()),
        ]
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for hook in self._hooks:
            hook.remove()
        self._end_phase()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._head_is_over and func.namespace != "prim" and func is not torch.ops.aten.detach.default:
            self._head_is_over = False
            self._begin("backward")
        if func is self._forward:
            self._begin("head")
        elif self._phase is None:
            self._begin("forward")
        elif self._phase == "forward" and torch._C._current_graph_task_id() != -1 and not self._has_head:
            self._begin("backward")
        implementation = self._inside.get(func) if isinstance(self.meter, TensorMeter) else None
        if implementation is None:
            result = func(*args, **kwargs)
        else:  # look inside, where a tracker of calls would see the results alone
            super().__enter__()
            try:
                result = implementation(*args, **kwargs)
            finally:
                super().__exit__(None, None, None)
        self.meter.see(result)
        self._note()
        if func is self._backward:
            self._head_is_over = True
        return result

    @property
    def _has_head(self) -> bool:
        return "head" in self._current

    def _begin(self, phase: str) -> None:
        self._end_phase()
        self._phase = phase
        self.meter.restart()
        _restart_resident()

    def _end_phase(self) -> None:
        if self._phase is None:
            return
        self._current[self._phase] = max(self._current.get(self._phase, 0), self.meter.peak())
        if (resident := _peak_resident()) is not None:
            self.resident[self._phase] = max(self.resident.get(self._phase, 0), resident)
        self._phase = None

    def _end_step(self) -> None:
        self._end_phase()
        self.steps.append(self._current)
        self._current = {}

    def _note(self) -> None:
        live = self.meter.live()
        last = self.timeline[-1][2] if self.timeline else -1
        if last < 0 or abs(live - last) * 1000 > max(live, last):
            self.timeline.append((time.perf_counter() - self._started, self._phase or "", live))


def track(
    model: nn.Module | None = None, optimizer: Any = None, *, device: torch.device | str | None = None
) -> MemoryTrack:
    """Watch a training loop; see the module.

    Args:
        model, optimizer: on a CPU, whose tensors are there already. device: default that of the model's parameters.
    Raises:
        ValueError: a CUDA device without CUDA.
    """
    if device is None:
        parameter = next(model.parameters(), None) if model is not None else None
        device = parameter.device if parameter is not None else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"track(device={str(device)!r}): this torch has no CUDA device; leave device out")
    return MemoryTrack(model, optimizer, device)


def _tensors(model: nn.Module | None, optimizer: Any) -> Iterator[Tensor]:
    if model is not None:
        for tensor in (*model.parameters(), *model.buffers()):
            yield tensor
            if tensor.grad is not None:
                yield tensor.grad
    state = getattr(optimizer, "state", {})
    for values in state.values():
        yield from (value for value in values.values() if isinstance(value, Tensor))


def _restart_resident() -> None:
    try:
        _CLEAR.write_text("5")  # the peak begins anew from what is resident now
    except OSError:
        pass


def _peak_resident() -> int | None:
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024
