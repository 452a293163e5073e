"""`amopo train --dry-run` says what the run then does, and leaves no trace; other runs' folders are left alone."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from amopo.packing.sample import TokenizedSample  # noqa: E402


@pytest.fixture
def train(amopo, small, data, tmp_path):
    """Runs `amopo train` on the small file; later flags win."""

    def run(*argv: object, folder: str = "out", model: object = "scratch:nano"):
        flags = [flag for flag in small if not flag.startswith("--model")]
        given = ["--model", model, "--data", data, "--objectives=a,b", "--output-dir", tmp_path / folder]
        return amopo("train", *flags, *given, *argv)

    return run


def entries(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def numbers(text: str, pattern: str) -> list[float]:
    found = re.search(pattern, text)
    assert found, text
    return [float(number) for number in found.groups()]


def test_the_plan_is_what_the_run_does_and_nothing_is_written(train, tmp_path, monkeypatch):
    monkeypatch.setenv("AMOPO_CACHE", str(tmp_path / "cache"))
    flags = ["--num-train-epochs=1", "--logging-strategy=epoch", "--samples=0"]
    before = entries(tmp_path)
    planned = train(*flags, "--dry-run")
    assert planned.status == 0, planned.err
    assert entries(tmp_path) == before

    outcome = train(*flags)
    assert outcome.status == 0, outcome.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    (row,) = [row for row in metrics["log_history"] if "amopo/fill" in row]
    steps, per_epoch = numbers(planned.out, r"optimizer steps: (\d+) \((\d+) per epoch\)")
    assert steps == per_epoch == row["step"] > 1
    packed, written_out, sharing = numbers(planned.out, r"(\d+) packed, (\d+) written out \(sharing ([\d.]+)x\)")
    assert sharing == pytest.approx(row["amopo/sharing"], abs=0.005) and written_out / packed == pytest.approx(
        row["amopo/sharing"], rel=1e-6
    )
    (batches,) = numbers(planned.out, r"micro-batches per epoch: (\d+)")
    assert packed / (512 * batches) == pytest.approx(row["amopo/fill"], rel=1e-6)
    (fill,) = numbers(planned.out, r"filled to (\d+) %")
    assert fill == round(100 * row["amopo/fill"])
    samples, held_out = numbers(planned.out, r"samples: (\d+) for training, (\d+) held out")
    assert samples == metrics["data"]["training"]["tokens"]["samples"] == 27
    assert held_out == metrics["data"]["evaluation"]["tokens"]["samples"] == 3
    (parameters,) = numbers(planned.out, r"model: scratch:nano, ([\d.]+)M parameters")
    assert parameters == round(metrics["model"]["parameters"] / 1e6, 2)


def test_several_processes_are_planned_without_being_started(train):
    alone, two = (
        train("--dry-run", "--max-steps=-1", "--num-train-epochs=3", *more).out for more in ([], ["--nproc=2"])
    )
    (batches,), (of_two, ranks) = (
        numbers(alone, r"micro-batches per epoch: (\d+), "),
        numbers(two, r"micro-batches per epoch: (\d+) on each of (\d) ranks"),
    )
    assert ranks == 2 and of_two == math.ceil(batches / 2)
    assert numbers(two, r"optimizer steps: (\d+)")[0] == 3 * of_two
    assert numbers(alone, r"(\d+) packed") == numbers(two, r"(\d+) packed")
    for text in (alone, two):  # all ranks' batches are padded
        written_out, padded = numbers(text, r"(\d+) written out .*, (\d+) padded")
        assert padded >= written_out


def test_the_head_is_planned_with_the_formula_of_the_kernel(train):
    from amopo import workspace_bytes

    out = train("--dry-run", "--head-budget=200000", "--bf16").out
    rows, vocabulary, hidden = (int(number) for number in numbers(out, r"head: (\d+) rows x (\d+) vocab\w+ x (\d+)"))
    import torch

    expected = workspace_bytes((rows, hidden, vocabulary), torch.bfloat16, 200000, autocast_weight=True)
    assert f"{expected / 1024:.1f} KiB of workspace (budget 195.3 KiB)" in out


def test_padding_is_counted_as_a_rectangle_of_all_sequences():
    from amopo.cli.plan import padded_tokens

    short = TokenizedSample(prompts=([1], [1, 2]), chosen=[5], rejected=[6, 7], id=0)
    long = TokenizedSample(prompts=([1, 2, 3], [1]), chosen=[5, 5, 5, 5], rejected=[6], id=1)
    assert padded_tokens([short]) == 4 * 4  # 2 objectives x 2 responses, the longest 2 + 2
    assert padded_tokens([short, long]) == 8 * 7


@pytest.fixture
def saved(train, tmp_path):
    """The folder of a saved model."""
    outcome = train("--max-steps=1", "--eval-fraction=0", folder="saved")
    assert outcome.status == 0, outcome.err
    return tmp_path / "saved"


def test_of_a_saved_model_configuration_and_tokenizer_are_read_and_weights_are_not(train, saved, tmp_path):
    weights = saved / "model.safetensors"
    weights.write_bytes(b"no weights at all")
    outcome = train("--dry-run", model=saved)
    assert outcome.status == 0 and "0.11M parameters" in outcome.out, outcome.err
    weights.unlink()
    assert "holds no weights" in train("--dry-run", model=saved).one_line()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    (saved / "model-00001-of-00002.safetensors").touch()
    message = train("--dry-run", model=saved).one_line()
    assert "lacks model-00002-of-00002.safetensors" in message
    (saved / "config.json").unlink()
    assert "cannot load" in train("--dry-run", model=saved).one_line()


def test_a_model_that_packed_rows_do_not_suit_is_refused_by_the_plan(train, saved):
    config = json.loads((saved / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (saved / "config.json").write_text(json.dumps(config))
    assert "rope" in train("--dry-run", model=saved).one_line()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tokens-per-batch=16"], ["tokens_per_batch", "16"]),
        (["--head-budget=10"], ["--head-budget", "too small"]),
        (["--nproc=0"], ["--nproc", "at least 1"]),
        (["--nproc=40"], ["samples", "40 ranks"]),
        (["--output-dir=/dev/null/run"], ["output_dir", "not writable"]),
        (["--lora-r=4"], ["--lora-r", "scratch"]),
        (["--fsdp"], ["--fsdp", "one process", "--nproc"]),
        (["--fsdp", "--nproc=2"], ["--fsdp", "no FSDP on CPUs"]),
        (["--resume"], ["--resume", "no checkpoint"]),
    ],
)
def test_what_the_run_would_refuse_the_plan_refuses(train, flags, words):
    message = train("--dry-run", *flags).one_line()
    assert all(word in message for word in words), message


def test_ranks_are_not_started_inside_a_launcher(train, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert "leave --nproc away" in train("--nproc=2").one_line()


def test_a_finished_run_is_not_overwritten_unless_asked_for(train, saved, tmp_path):
    before = entries(saved)
    for more in ([], ["--dry-run"]):
        message = train(*more, folder="saved").one_line()
        assert "finished run" in message and "--resume" in message and "--force" in message
    assert entries(saved) == before
    assert train("--dry-run", "--force", folder="saved").status == 0
    assert entries(saved) == before
    assert "own folder" not in train("--dry-run", "--force", folder="saved").err
    message = train("--force", folder="saved", model=saved).one_line()
    assert "folder of the model" in message and entries(saved) == before


def test_force_begins_anew_and_resume_then_finds_the_new_run(train, tmp_path):
    folder = tmp_path / "out"
    keep = ["--save-strategy=steps", "--save-steps=2", "--num-train-epochs=1"]
    assert train(*keep, "--num-train-epochs=3").status == 0
    (folder / "metrics.json").unlink()  # as after a run that was killed
    old = {path.name for path in folder.glob("checkpoint-*")}
    message = train(*keep).one_line()
    assert "was stopped" in message and all(name in message for name in old)
    (folder / "checkpoint-999").mkdir()  # not ours
    assert train(*keep, "--force").status == 0
    left = {path.name for path in folder.glob("checkpoint-*")}
    assert left < {*old, "checkpoint-999"} and "checkpoint-999" in left
    shutil.rmtree(folder / "checkpoint-999")
    assert train(*keep, "--resume").status == 0  # the newest checkpoint is the new run's, else settings would differ
    assert os.listdir(folder)
