"""A training run that is asked to stop: a checkpoint at the next step boundary, and how to go on.

Contract
--------
`Stopping(signals)` asks all ranks whether any was asked to stop, `callback()` gives a `TrainerCallback` that then saves
a checkpoint and ends the training, on every rank at the same step. `finish(...)`, called after the training by every
rank, raises KeyboardInterrupt with the command that goes on, if the run was stopped.
`resume_command(argv)` is the command line of this run with `--resume`.

With several ranks a signal takes effect one step later: each step's answer is summed over the ranks while the next one
runs, so that no step waits for it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amopo.cli.launch import is_launched, program
from amopo.cli.stop_signals import StopSignals


class Stopping:
    """Whether this run is to end early, as all ranks agree."""

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals
        self._agreement: Agreement | None = None
        self.checkpoint: Path | None = None
        self.step = self.steps = 0

    def callback(self) -> Any:
        from transformers import TrainerCallback
        from transformers.trainer_utils import SaveStrategy

        stopping = self

        class Stop(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                stopping._agreement = Agreement(args.device)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if not stopping._agreement.later(stopping._signals.asked):
                    return
                # The loss since the last log would be lost: a resumed run begins its mean anew.
                control.should_log = control.should_save = control.should_training_stop = True
                if args.save_strategy == SaveStrategy.BEST:
                    control.should_evaluate = False  # an evaluation would decide whether the checkpoint is written
                stopping.step, stopping.steps = state.global_step, state.max_steps

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if stopping.step:
                    stopping.checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                    # The end of a training would load the best checkpoint, and may delete this one for it.
                    args.load_best_model_at_end, args.save_total_limit = False, None

        return Stop()

    def finish(self, folder: Path, command: str, *, save_only_model: bool = False) -> None:
        """Raise KeyboardInterrupt if any rank was asked to stop; only after all ranks have written what they save."""
        asked = self._signals.asked if self._agreement is None else self._agreement.now(self._signals.asked)
        if not (asked or self.step):
            return
        self._signals.deaf()
        if self._agreement is not None:
            self._agreement.now(True)  # nobody leaves while another still writes: a launcher would end that one
        if self.checkpoint is None:
            raise KeyboardInterrupt(go_on(folder, command, save_only_model=save_only_model))
        where = f"step {self.step} of {self.steps} is saved in {self.checkpoint}"
        if save_only_model:
            raise KeyboardInterrupt(f"{where}; save_only_model keeps no optimizer, so the run cannot go on from it")
        raise KeyboardInterrupt(f"{where}; go on with: {command}")


class Agreement:
    """Sums a yes or no over the ranks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._stream = torch.cuda.Stream(device) if self._is_shared and device.type == "cuda" else None

    @property
    def _is_shared(self) -> bool:
        distributed = torch.distributed
        return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1

    def later(self, mine: bool) -> bool:
        """Whether any rank said yes: this time if there is one rank, else at the previous call."""
        if not self._is_shared:
            return mine
        found = self._read()
        self._pending = self._ask(mine)
        return found

    def now(self, mine: bool) -> bool:
        """Whether any rank says yes, this time or before."""
        if not self._is_shared:
            return mine
        before = self._read()
        self._pending = self._ask(mine or before)
        return self._read()

    def _ask(self, mine: bool) -> tuple[Any, torch.Tensor]:
        answer = torch.tensor(int(mine), device="cpu")
        if self._device.type == "cpu":
            return torch.distributed.all_reduce(answer, async_op=True), answer
        if self._stream is None:
            answer = answer.to(self._device)
            return torch.distributed.all_reduce(answer, async_op=True), answer
        # On a stream of its own: reading it waits for the ranks' sums, not for the step that runs on the default one.
        with torch.cuda.stream(self._stream):
            answer = answer.pin_memory().to(self._device, non_blocking=True)
            torch.distributed.all_reduce(answer, async_op=True).wait()
            host = answer.to("cpu", non_blocking=True)
            return self._stream.record_event(), host

    def _read(self) -> bool:
        if self._pending is None:
            return False
        (work, answer), self._pending = self._pending, None
        work.synchronize() if isinstance(work, torch.cuda.Event) else work.wait()
        return bool(answer.item())


def go_on(folder: Path, command: str, *, save_only_model: bool = False) -> str:
    """What a run that ended without a checkpoint of its own can be told: from where it would go on."""
    from amopo.trainer.resume import latest_checkpoint

    try:
        found = latest_checkpoint(folder)
    except ValueError:
        return "no checkpoint was written, so there is nothing to go on from"
    if save_only_model:
        return f"{found} holds weights, but no optimizer to go on with"
    return f"the last checkpoint is {found}; go on with: {command}"


def resume_command(argv: Sequence[str], *, resume: bool = True) -> str:
    """The command line of this run, `argv` being what follows `amopo`, to paste into a shell."""
    words, kept = list(argv), []
    while words:
        word = words.pop(0)
        if word in ("--resume", "--force"):
            if words and not words[0].startswith("-"):
                words.pop(0)
        elif not word.startswith(("--resume=", "--force=")):
            kept.append(word)
    return shlex.join([*program(), *kept, *(["--resume"] if resume else [])]) + _launcher()


def _launcher() -> str:
    if "RANK" not in os.environ or is_launched():
        return ""
    return f"   (under the same launcher, on {os.environ.get('WORLD_SIZE', '?')} processes)"
