"""The log on disk is what the trainer logged, row by row, while it runs and after it was resumed."""

import json
import math

import pytest
import tiny_runs
import torch
from transformers import TrainerCallback

from amopo.trainer import AMoPOTrainer
from amopo.trainer.peak_memory import peak_memory_gib
from amopo.trainer.run_log import LOG_FILE, as_line


def trainer(folder, callbacks=None, **changes):
    settings = {"num_train_epochs": 2, "tokens_per_batch": 120, **changes}
    return AMoPOTrainer(
        tiny_runs.qwen2(),
        tiny_runs.config(folder, **settings),
        train_dataset=tiny_runs.samples(12),
        callbacks=callbacks,
    )


def logged(folder):
    return [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]


class Stop(TrainerCallback):
    """Ends the run as a kill would, after a step was logged."""

    def __init__(self, step):
        self.step = step

    def on_log(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_the_file_holds_every_row_of_the_log(tmp_path):
    run = trainer(tmp_path)
    run.train()
    assert len(run.state.log_history) > 4
    assert logged(tmp_path) == run.state.log_history


def test_a_run_that_is_killed_leaves_what_it_had_logged(tmp_path):
    # the log comes first: its callback is called before or after this one, so the last row may be missing
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, [Stop(4)]).train()
    assert [row["step"] for row in logged(tmp_path)][:3] == [1, 2, 3]


def test_a_resumed_run_logs_each_step_once(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, [Stop(5)], **saving).train()
    run = trainer(tmp_path, **saving)
    run.train(resume_from_checkpoint=True)
    steps = [row["step"] for row in logged(tmp_path) if "loss" in row]
    assert steps == list(range(1, run.state.max_steps + 1)) and len(steps) > 5


def test_a_new_run_starts_the_file_anew(tmp_path):
    trainer(tmp_path).train()
    count = len(logged(tmp_path))
    trainer(tmp_path).train()
    assert len(logged(tmp_path)) == count


def test_an_evaluation_before_training_is_no_part_of_the_run(tmp_path):
    run = trainer(tmp_path)
    run.evaluate(tiny_runs.samples(3, seed=5))
    assert not (tmp_path / LOG_FILE).exists()


def test_what_is_not_finite_is_written_as_text():
    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    row = json.loads(as_line({"loss": math.nan, "grad_norm": -math.inf, "step": 3}), parse_constant=refuse)
    assert row == {"loss": "nan", "grad_norm": "-inf", "step": 3}


def test_peak_memory_is_what_the_system_says(tmp_path):
    try:
        lines = open("/proc/self/status", encoding="utf-8").read().splitlines()
    except OSError:
        pytest.skip("no /proc here")
    found = peak_memory_gib(torch.device("cpu"))
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))  # KiB
    assert found == pytest.approx(peak / 2**20, rel=0.1)
    run = trainer(tmp_path)
    run.train()
    assert all(row["amopo/peak_memory_gib"] > 0 for row in run.state.log_history if "loss" in row)
