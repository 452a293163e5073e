"""The trainer's progress on the console.

`make_callback(console)` gives a `TrainerCallback` that moves one bar over the optimizer steps, with the loss, the
margin and the accuracy of the last logging step beside it, and one over the batches of each evaluation.
"""

from __future__ import annotations

from typing import Any

from amopo.cli.console import Console

# metric -> how it is shown
SHOWN = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


def make_callback(console: Console) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def __init__(self) -> None:
            self._context = self._bar = None
            self._evaluation: Any = None  # context, bar, batches done

        def on_prediction_step(
            self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
        ) -> None:
            if self._evaluation is None:
                context = console.bar("evaluation")
                self._evaluation = [context, context.__enter__(), 0]
            self._evaluation[2] += 1
            self._evaluation[1].update(self._evaluation[2], len(eval_dataloader))

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self._evaluation is not None:
                self._evaluation[0].__exit__(None, None, None)
                self._evaluation = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._context = console.bar("training")
            self._bar = self._context.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._bar.update(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            note = ", ".join(f"{text} {logs[name]:.3f}" for name, text in SHOWN.items() if name in (logs or {}))
            if self._bar is not None and "loss" in (logs or {}):
                self._bar.update(state.global_step, state.max_steps, note)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._context.__exit__(None, None, None)
            self._context = self._bar = None

    return Progress()
