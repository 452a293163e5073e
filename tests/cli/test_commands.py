"""The commands do what they say, on small files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from amopo import __version__

pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]


def read_metrics(folder: Path) -> dict:
    def refuse(text: str):
        raise AssertionError(f"{text} is not JSON")

    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_the_overview_names_every_command(amopo):
    for argv in ([], ["--help"]):
        outcome = amopo(*argv)
        assert outcome.status == 0 and outcome.err == ""
        assert all(name in outcome.out for name in ("train", "eval", "report", "doctor", "env", "demo"))
    assert amopo("--version").out == f"amopo {__version__}\n"


def test_every_command_has_a_help_page_of_one_screen(amopo):
    for name in ("train", "eval", "report", "doctor", "env", "demo"):
        outcome = amopo(name, "--help")
        assert outcome.status == 0 and outcome.err == "" and f"usage: amopo {name}" in outcome.out
        assert len(outcome.out.splitlines()) < 60
    assert "--adam-beta1" not in amopo("train", "--help").out
    assert "--adam-beta1" in amopo("train", "--help-all").out


def test_env_says_what_runs_and_why(amopo):
    from amopo_kernels.backend import describe

    text = amopo("env").out
    found = json.loads(amopo("env", "--json").out)
    assert found["versions"]["amopo"] == __version__ and found["operations"] == describe()
    for row in describe():
        assert row["operation"] in text and row["backend"] in text and row["reason"] in text


def test_python_m_amopo_is_the_command():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run(
        [sys.executable, "-m", "amopo", "env", "--jsn"], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "amopo: error: unknown flag --jsn; did you mean --json?\n"


@pytest.fixture
def trained(amopo, small, data, tmp_path):
    """A small run and its folder."""

    def run(*argv: object, folder: str = "out"):
        out = tmp_path / folder
        outcome = amopo("train", *small, "--data", data, "--objectives", "a,b", "--output-dir", out, *argv)
        assert outcome.status == 0, outcome.err
        return outcome, out

    return run


def test_training_goes_from_a_file_to_a_model_that_prefers_the_chosen(trained):
    outcome, out = trained("--num-train-epochs", "8", "--beta", "2")
    metrics = read_metrics(out)
    before, after = metrics["preferences"]["before"], metrics["preferences"]["after"]
    for name in ("a", "b"):
        assert after[f"rewards/margins/{name}"] > before[f"rewards/margins/{name}"] + 0.5
        assert after[f"rewards/accuracies/{name}"] == 1.0
        assert f"amopo/alpha/{name}" in after
    assert "27 pairs from 27 prompts" in outcome.out and "cut: 0 prompts" in outcome.out
    assert "held-out pairs: margin" in outcome.out and outcome.err == ""
    assert metrics["data"]["evaluation"]["pairs"]["pairs"] == 3
    assert metrics["versions"]["amopo"] == __version__ and metrics["settings"]["beta"] == 2
    assert metrics["imitation"]["demonstrations"] == 54
    assert len([row for row in metrics["log_history"] if "rewards/margins/a" in row]) > 5
    assert (out / "picture.png").stat().st_size > 10_000


def test_the_saved_model_answers_and_evaluates_alike(trained, amopo, data, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, out = trained("--eval-data", str(data))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) == model.config.vocab_size
    result = tmp_path / "eval.json"
    argv = ["--model", out, "--data", data, "--objectives", "a,b", "--template", "brief", "--out", result]
    outcome = amopo("eval", *argv)
    assert outcome.status == 0, outcome.err
    found = json.loads(result.read_text())["preferences"]
    trained_metrics = read_metrics(out)["preferences"]["after"]
    for name in ("loss", "rewards/margins/a", "rewards/accuracies/b"):
        assert found[name] == pytest.approx(trained_metrics[name], abs=1e-5)
    again = amopo("eval", *argv, "--sharing", "none")  # what is shared changes no number
    assert again.status == 0, again.err
    assert json.loads(result.read_text())["preferences"] == pytest.approx(found, abs=1e-5)
    assert "sharing='all' is not known" in amopo("eval", *argv, "--sharing", "all").one_line()


def test_a_yaml_file_holds_the_same_keys(trained, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("beta: 2\nnum-train-epochs: 2\nscales:\n  a: [0, 4]\n", encoding="utf-8")
    _, from_file = trained("--config", config, folder="file")
    _, from_flags = trained("--beta=2", "--num-train-epochs=2", "--scales=a=0:4", folder="flags")
    one, two = read_metrics(from_file), read_metrics(from_flags)
    assert one["preferences"] == two["preferences"]
    assert one["settings"]["num_train_epochs"] == 2


def test_quiet_says_nothing(trained):
    outcome, _ = trained("--quiet", "--max-steps=1")
    assert (outcome.out, outcome.err) == ("", "")


def test_without_held_out_data_there_is_no_before_and_after(trained):
    outcome, out = trained("--eval-fraction=0", "--max-steps=1")
    assert "no before and after" in outcome.out and "preferences" not in read_metrics(out)


def test_a_stopped_run_resumes_to_the_same_result(trained, amopo, small, data):
    flags = ["--num-train-epochs=4", "--save-steps=3", "--save-strategy=steps", "--gradient-accumulation-steps=2"]
    _, whole = trained(*flags, folder="whole")
    _, stopped = trained(*flags, folder="stopped")
    checkpoints = sorted(stopped.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) > 1
    (stopped / "metrics.json").unlink()
    trained(*flags, "--resume", str(checkpoints[0]), folder="stopped")
    assert read_metrics(stopped)["preferences"]["after"] == read_metrics(whole)["preferences"]["after"]
    # other settings are another run
    outcome = amopo(
        "train", *small, "--data", data, "--objectives=a,b", "--output-dir", stopped, *flags, "--resume", "--beta=3"
    )
    message = outcome.one_line()
    assert outcome.status == 2 and "beta" in message and "cannot resume" in message


def test_lora_trains_adapters_of_a_saved_model(trained, amopo, data, tmp_path):
    pytest.importorskip("peft")
    _, base = trained("--max-steps=1", folder="base")
    out = tmp_path / "lora"
    outcome = amopo(
        *("train", "--model", base, "--data", data, "--objectives=a,b", "--template=brief", "--output-dir", out),
        *("--lora-r=4", "--tokens-per-batch=512", "--learning-rate=1e-2", "--num-train-epochs=4", "--use-cpu"),
    )
    assert outcome.status == 0, outcome.err
    metrics = read_metrics(out)
    assert 0 < metrics["model"]["trained parameters"] < metrics["model"]["parameters"] / 2
    assert (out / "adapter_model.safetensors").exists() and "imitation" not in metrics
    change = metrics["preferences"]
    assert change["after"]["rewards/margins"] > change["before"]["rewards/margins"]


@pytest.mark.parametrize(
    "flags, frozen", [((), "float32"), (("--bf16",), "bfloat16"), (("--bf16", "--dtype=float32"), "float32")]
)
def test_the_frozen_base_of_lora_is_bfloat16_where_training_is(
    trained, amopo, data, tmp_path, monkeypatch, flags, frozen
):
    pytest.importorskip("peft")
    from amopo.trainer import AMoPOTrainer

    _, base = trained("--max-steps=1", folder="base")
    out = tmp_path / "lora"
    argv = ["train", "--model", base, "--data", data, "--objectives=a,b", "--template=brief", "--output-dir", out]
    argv += ["--lora-r=4", "--tokens-per-batch=512", "--max-steps=1", "--use-cpu", "--samples=0", *flags]
    planned = amopo(*argv, "--dry-run")
    seen = []
    train = AMoPOTrainer.train

    def look_and_train(self, *args, **kwargs):
        result = train(self, *args, **kwargs)
        seen.extend((name, p.requires_grad, p.dtype, p.numel()) for name, p in self.model.named_parameters())
        return result

    monkeypatch.setattr(AMoPOTrainer, "train", look_and_train)
    outcome = amopo(*argv)
    assert outcome.status == planned.status == 0, outcome.err + planned.err
    assert {(trained, str(dtype)) for _, trained, dtype, _ in seen} == {
        (True, "torch.float32"),
        (False, f"torch.{frozen}"),
    }
    assert all(trained == ("lora_" in name) for name, trained, _, _ in seen)
    counts = {frozen: sum(size for _, trained, _, size in seen if not trained)}
    counts["float32"] = counts.get("float32", 0) + sum(size for _, trained, _, size in seen if trained)
    metrics = read_metrics(out)
    assert metrics["settings"]["dtype"] == frozen and metrics["model"]["dtypes"] == counts
    assert json.loads((out / "amopo_run.json").read_text())["settings"]["model"]["dtypes"] == counts
    (line,) = [line for line in planned.out.splitlines() if line.startswith("weights: ")]
    assert line in outcome.out and f"frozen in {frozen}" in line and "trained in float32" in line


def test_all_weights_are_trained_in_float32_in_mixed_precision_too(trained):
    folder = trained("--max-steps=1", "--bf16", folder="base")[1]
    metrics = read_metrics(folder)
    assert metrics["settings"]["dtype"] == "float32" and set(metrics["model"]["dtypes"]) == {"float32"}


def test_eval_scores_generations_of_tasks(trained, amopo, tmp_path):
    from amopo.data.verifiable import OBJECTIVES, write_splits

    _, model = trained("--max-steps=1")
    path = write_splits(tmp_path, {"eval": 6}, seed=0)["eval"]
    result = tmp_path / "scores.json"
    argv = ["--model", model, "--data", path, "--objectives", ",".join(OBJECTIVES), "--template=brief"]
    outcome = amopo("eval", *argv, "--generate", "--max-new-tokens=4", "--out", result)
    assert outcome.status == 0, outcome.err
    generation = json.loads(result.read_text())["generation"]
    assert set(generation) == {"plain", *OBJECTIVES}
    assert all(0 <= generation["plain"][name]["mean"] <= 4 for name in (*OBJECTIVES, "mean"))


def test_eval_refuses_to_score_what_carries_no_task(trained, amopo, data):
    _, model = trained("--max-steps=1")
    argv = ["eval", "--model", model, "--data", data, "--generate"]
    assert "'a' is not scored by program" in amopo(*argv, "--objectives=a,b").one_line()


def test_the_demo_goes_all_the_way(amopo, tmp_path, monkeypatch):
    """The demo with almost nothing of each part; what it reaches in full is measured by running it."""
    from amopo.cli import demo
    from amopo.data.verifiable import OBJECTIVES

    plan = demo.Plan(train_prompts=40, eval_prompts=6, imitation_epochs=1.0, max_steps=2)
    monkeypatch.setattr(demo, "QUICK", plan)
    monkeypatch.setattr(demo, "MODEL", "scratch:nano")
    monkeypatch.setattr(demo, "MAX_NEW_TOKENS", 8)
    outcome = amopo("demo", "--quick", "--out", tmp_path / "demo")
    assert outcome.status == 0, outcome.err
    metrics = read_metrics(tmp_path / "demo")
    for when in ("before", "after"):
        drawn = metrics["generation"][when]["drawn"]
        assert set(drawn) == {"plain", *OBJECTIVES}
        mean = sum(drawn["plain"][name]["mean"] for name in OBJECTIVES) / len(OBJECTIVES)
        assert drawn["plain"]["mean"]["mean"] == pytest.approx(mean)
        assert metrics["generation"][when]["responses"] == 30
    assert metrics["plan"]["train_prompts"] == 40 and metrics["seconds"]["train"] > 0
    assert {row["task"]["kind"] for row in map(json.loads, (tmp_path / "demo/data/eval.jsonl").open())}
    assert (tmp_path / "demo" / "picture.png").exists()
    for title in ("plain prompt", "asked for the best in one objective", "held-out pairs: margin"):
        assert title in outcome.out
