"""Peaks of a training loop by phase, whatever the loop is.

    with amopo.memory.track(model, optimizer) as memory:
        trainer.train()
    memory.peaks              # {"forward": bytes, "head": ..., "backward": ..., "step": ...}

Contract
--------
The forward begins with the first call of a module, or the first operation on what is trained, in grad mode after an
optimizer step; what comes between (gradients that are dropped, metrics, the next batch) belongs to no phase. The head's
phase begins with the operator of `amopo.linear_logprobs` and ends with its backward; a loop that never calls it has no
such phase. The backward is told by autograd, the step by a hook on all of torch's optimizers; an optimizer that is
given and is not one of torch's (DeepSpeed's) is watched by its `step`. Modules that are called outside of grad mode
between steps are the phase "evaluation". `steps` holds the peaks of every finished step; `peaks` the largest of all but
the first, in which the optimizer makes its state (of the first, if there is no other; of the unfinished one, if that
was all).

On CUDA the numbers are the allocator's. On a CPU they are bytes of tensors: of those given (parameters and the
partitions that DeepSpeed keeps of them, buffers, gradients, optimizer state) and of all that operations make;
`resident` is the process's peak resident set by phase, where Linux tells it. Backward and optimizer run a little
slower, since every operation passes through Python; and autograd adds gradients that meet at a tied weight into a third
tensor while it watches. Trackers may stand inside each other; one that is left, by an error too, leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amopo.memory.given import tensors_of
from amopo.memory.meters import TensorMeter, meter_of
from amopo_kernels.head_op import linear_logprobs_backward_op, linear_logprobs_op

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ACTIVE: list[MemoryTrack] = []  # the outermost first


class MemoryTrack(TorchDispatchMode):
    """The context manager that `track` gives."""

    def __init__(self, model: nn.Module | None, optimizer: Any, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.meter = meter_of(device)
        self.steps: list[dict[str, int]] = []
        self.resident: dict[str, int] = {}
        # (seconds, phase, live bytes) where a phase begins, and where live memory has changed by a thousandth
        self.timeline: list[tuple[float, str, int]] = []
        self._given = (model, optimizer)
        self._inside = {op._opoverload: op._init_fn for op in (linear_logprobs_op, linear_logprobs_backward_op)}
        self._forward, self._backward = linear_logprobs_op._opoverload, linear_logprobs_backward_op._opoverload
        self._phase: str | None = None
        self._current: dict[str, int] = {}
        self._head_is_over = False
        self._in_step = 0  # calls of a given optimizer's step that have not returned
        self._undo = contextlib.ExitStack()
        self._started = 0.0

    @property
    def peaks(self) -> dict[str, int]:
        """The largest peak of each phase, without the first step if there are others."""
        found: dict[str, int] = {}
        for step in self.steps[1:] or self.steps or [self._current]:
            for phase, size in step.items():
                found[phase] = max(found.get(phase, 0), size)
        return found

    def __enter__(self) -> MemoryTrack:
        if self in _ACTIVE:
            raise RuntimeError("this tracker watches already; make another one with amopo.memory.track(...)")
        for other in _ACTIVE:
            other._fold()
        self.meter.start(tensors_of(*self._given))
        self._started = time.perf_counter()
        with contextlib.ExitStack() as undo:
            undo.callback(self._end_phase)
            for hook in (
                register_optimizer_step_pre_hook(lambda *_: self._begin_step()),
                register_optimizer_step_post_hook(lambda *_: self._end_step()),
                register_module_forward_pre_hook(lambda *_: self._at_module()),
            ):
                undo.callback(hook.remove)
            optimizer = self._given[1]
            if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
                undo.enter_context(_replaced(optimizer, "step", self._whole_step(optimizer.step)))
            undo.enter_context(
                _replaced(torch.UntypedStorage, "resize_", self._seen_resize(torch.UntypedStorage.resize_))
            )
            _ACTIVE.append(self)
            undo.callback(_ACTIVE.remove, self)
            super().__enter__()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        with self._undo:
            super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_idle and torch.is_grad_enabled() and _any_is_trained(args, kwargs):
            self._begin_forward()
        if any(
            hasattr(kind, "__tensor_flatten__") for kind in types
        ):  # a DTensor: what it does inside comes here again
            return NotImplemented
        for tracker in _ACTIVE:  # an operator of the head is seen by the innermost tracker alone
            tracker._at_operator(func)
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
            for tracker in _ACTIVE:
                tracker._head_is_over = tracker._phase == "head"
        return result

    # what happens ----------------------------------------------------------------------------------------------------

    @property
    def _is_idle(self) -> bool:
        """Whether no step runs: before the first, or after an optimizer step."""
        return self._phase in (None, "evaluation")

    @property
    def _is_noted(self) -> bool:
        return bool(self.steps) and self.steps[-1] is self._current

    def _at_module(self) -> None:
        if torch._C._current_graph_task_id() != -1:  # a checkpointed layer runs again
            return
        if not torch.is_grad_enabled():
            if self._is_idle and self._phase != "evaluation":
                self._begin("evaluation")
        elif self._is_idle:
            self._begin_forward()
        elif self._phase == "backward":  # the next batch of an accumulated step
            self._begin("forward")

    def _at_operator(self, func: Any) -> None:
        if self._head_is_over and func.namespace != "prim" and func is not torch.ops.aten.detach.default:
            self._head_is_over = False
            self._begin("backward")
        if func is self._forward and self._phase in ("forward", "backward"):
            self._begin("head")
        elif self._phase == "forward" and torch._C._current_graph_task_id() != -1:
            self._begin("backward")

    def _begin_forward(self) -> None:
        if self._is_noted:
            self._end_phase()  # an evaluation belongs to the step before it
            self._current = {}
        self._begin("forward")

    def _begin_step(self) -> None:
        self._head_is_over = False
        if self._phase != "step":
            self._begin("step")

    def _end_step(self) -> None:
        if self._in_step:
            return
        self._end_phase()
        if not self._is_noted:  # an engine may step in parts
            self.steps.append(self._current)

    def _whole_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._begin_step()
            self._in_step += 1
            try:
                return step(*args, **kwargs)
            finally:
                self._in_step -= 1
                self._end_step()

        return watched

    def _seen_resize(self, resize: Callable[..., Any]) -> Callable[..., Any]:
        """FSDP frees gathered weights by giving their storage no size, which is no operation."""

        def seen(storage: torch.UntypedStorage, *args: Any) -> Any:
            result = resize(storage, *args)
            self.meter.hold(storage)
            return result

        return seen

    # what is noted ---------------------------------------------------------------------------------------------------

    def _begin(self, phase: str) -> None:
        self._end_phase()
        for other in _ACTIVE:  # the counters of a device and of the process are one for all
            other._fold()
        self._phase = phase
        self.meter.restart()
        _restart_resident()
        self.timeline.append(self._point())

    def _end_phase(self) -> None:
        self._fold()
        self._phase = None

    def _fold(self) -> None:
        """Note the peak of the phase that runs, as far as it has come."""
        if self._phase is None:
            return
        self._current[self._phase] = max(self._current.get(self._phase, 0), self.meter.peak())
        if (resident := _peak_resident()) is not None:
            self.resident[self._phase] = max(self.resident.get(self._phase, 0), resident)

    def _note(self) -> None:
        point = self._point()
        last = self.timeline[-1][2] if self.timeline else -1
        if last < 0 or abs(point[2] - last) * 1000 > max(point[2], last):
            self.timeline.append(point)

    def _point(self) -> tuple[float, str, int]:
        return time.perf_counter() - self._started, self._phase or "", self.meter.live()


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


def _any_is_trained(*given: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(given))


@contextlib.contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one object, for a while."""
    had, before = name in vars(holder), getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before) if had else delattr(holder, name)


def _restart_resident() -> None:
    try:
        _CLEAR.write_text("5")  # the peak begins anew from what is resident now
    except OSError:
        pass


def _peak_resident() -> int | None:
    return _status("VmHWM")


def resident() -> int | None:
    """Bytes of this process that are in memory now, where Linux tells it."""
    return _status("VmRSS")


def _status(name: str) -> int | None:
    try:
        found = re.search(rf"{name}:\s*(\d+) kB", _STATUS.read_text())
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024
