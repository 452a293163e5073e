"""What is wrong is said in one line, before anything is trained."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest

pytest.importorskip("transformers")


@pytest.fixture
def train(amopo, small, tmp_path):
    """Runs `amopo train`; whatever fails must fail before the first step of any training."""
    out = tmp_path / "out"

    def run(*argv: object) -> str:
        outcome = amopo("train", *small, "--output-dir", out, *argv)
        message = outcome.one_line()
        assert outcome.status == 2
        assert "imitation:" not in outcome.out and "training:" not in outcome.out
        assert not list(out.glob("**/*.safetensors"))
        return message

    return run


@pytest.fixture
def refused(train, write, rows):
    """The message about a file whose fourth line is `line`, and whose other lines are good."""

    def run(line: object, *argv: object) -> str:
        path = write([*rows(3), line, *rows(3, start=10)])
        message = train("--data", path, "--objectives", "a,b", *argv)
        assert str(path) in message
        return message

    return run


def test_a_broken_line_is_named_by_file_and_line(refused):
    assert "line 4" in refused('{"prompt": "unfinished')


def test_a_missing_file_is_named(train, tmp_path):
    assert str(tmp_path / "none.jsonl") in train("--data", tmp_path / "none.jsonl", "--objectives", "a,b")


def test_a_folder_is_no_file(train, tmp_path):
    assert str(tmp_path) in train("--data", tmp_path, "--objectives", "a,b")


def test_an_empty_file_is_named(train, write):
    path = write([])
    message = train("--data", path, "--objectives", "a,b")
    assert str(path) in message and "empty" in message


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"a": 4}, ["no score", "'b'"]),
        ({"a": 4, "b": "high"}, ["'high'", "'b'", "number"]),
        ({"a": 4, "b": None}, ["None", "'b'", "number"]),
        ({"a": 4, "b": 7}, ["7", "'b'", "outside its scale 0 to 4"]),
        ({"a": 4, "b": float("nan")}, ["nan", "'b'"]),
    ],
)
def test_a_score_that_cannot_be_used_is_named_by_line_and_objective(refused, rows, scores, words):
    (row,) = rows(1, start=99)
    row["responses"][1]["scores"] = scores
    message = refused(row)
    assert "line 4" in message and all(word in message for word in words)


def test_an_unknown_objective_lists_the_known(train, data):
    message = train("--data", data, "--objectives", "a,kindness")
    assert "'kindness'" in message and "a, b" in message


@pytest.mark.parametrize("objectives", ["", ",", "a,a"])
def test_objectives_must_be_named_once_each(train, data, objectives):
    message = train("--data", data, f"--objectives={objectives}")
    assert ("K = 0" in message) or ("twice" in message)


def test_an_objective_without_a_scale_names_the_remedy(train, write, rows):
    path = write([{key: value for key, value in row.items() if key != "scales"} for row in rows(3)])
    message = train("--data", path, "--objectives", "a,b")
    assert "scale of objective 'a'" in message and "--scales" in message


@pytest.mark.parametrize("text", ["", "   \n"])
def test_an_empty_response_is_named(refused, rows, text):
    (row,) = rows(1, start=99)
    row["responses"][0]["text"] = text
    message = refused(row)
    assert "line 4" in message and "empty" in message


def test_only_identical_responses_leave_no_pair(train, write, rows):
    same = rows(4)
    for row in same:
        row["responses"][1]["text"] = row["responses"][0]["text"]
    message = train("--data", write(same), "--objectives", "a,b")
    assert "no pair" in message and "identical" in message


def test_a_prompt_that_cannot_fit_names_the_sample_and_the_remedy(train, data):
    message = train("--data", data, "--objectives", "a,b", "--max-prompt-length", "3")
    assert "cannot fit" in message and "sample 'r" in message and "max_prompt_length" in message


def test_a_sample_larger_than_a_batch_names_the_sample(train, data):
    message = train("--data", data, "--objectives", "a,b", "--tokens-per-batch", "16")
    assert "tokens_per_batch" in message and "16" in message and "r" in message


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--beta=0", ["beta", "positive"]),
        ("--beta=-1", ["beta", "positive"]),
        ("--beta=nan", ["beta"]),
        ("--weights=guess", ["guess", "gaussian"]),
        ("--weights=fixed", ["objective_weights"]),
        ("--template=poem", ["poem", "rubric"]),
        ("--pairs=some", ["some", "best_worst"]),
        ("--format=csv", ["csv", "grouped"]),
        ("--dtype=int4", ["int4", "float32"]),
        ("--eval-fraction=1", ["eval_fraction", "below 1"]),
        ("--scales=a=high", ["a=high", "low:high"]),
        ("--score-weights=a=x", ["a=x"]),
        ("--max-prompt-length=0", ["max_prompt_length"]),
        ("--imitation-epochs=0", ["--imitation-epochs", "above 0"]),
        ("--imitation-conditioned=2", ["--imitation-conditioned", "between 0 and 1"]),
        ("--per-device-train-batch-size=4", ["per_device_train_batch_size", "tokens_per_batch"]),
        ("--lora-r=4", ["--lora-r", "scratch"]),
        ("--model=scratch:tinny", ["scratch:tinny", "did you mean scratch:tiny?"]),
        ("--model=./no-such-folder", ["./no-such-folder", "does not exist"]),
        ("--num-train-epochs=many", ["--num-train-epochs", "number", "many"]),
        ("--head-budget=10", ["--head-budget", "budget=10 bytes is too small"]),
    ],
)
def test_a_setting_that_cannot_work_is_named(train, data, flag, words):
    message = train("--data", data, "--objectives", "a,b", flag)
    assert all(word in message for word in words), message


def test_a_folder_that_is_no_model_is_named(train, data, tmp_path):
    (tmp_path / "model").mkdir()
    message = train("--data", data, "--objectives", "a,b", f"--model={tmp_path / 'model'}")
    assert "cannot load" in message and str(tmp_path / "model") in message


def test_an_output_directory_below_a_file_is_not_writable(amopo, small, data, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = amopo("train", *small, "--data", data, "--objectives", "a,b", "--output-dir", tmp_path / "file" / "out")
    message = outcome.one_line()
    assert outcome.status == 2 and "not writable" in message and outcome.out == ""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not hold for this user")
def test_an_output_directory_without_permission_is_not_writable(amopo, small, data, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    outcome = amopo("train", *small, "--data", data, "--objectives", "a,b", "--output-dir", locked / "out")
    assert "not writable" in outcome.one_line()


def test_nothing_to_resume_is_said(train, data):
    flags = ("--data", data, "--objectives", "a,b")
    message = train(*flags, "--resume")
    assert "--resume" in message and "holds no checkpoint to go on from" in message
    message = train(*flags, "--resume", "runs/none/checkpoint-3")
    assert "--resume" in message and "runs/none/checkpoint-3 does not exist" in message


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_an_engine_that_is_not_installed_is_named_with_its_extra(train, data):
    message = train("--data", data, "--objectives", "a,b", "--deepspeed", "examples/cluster/zero3.json")
    assert "needs deepspeed: pip install 'amopo[deepspeed]'" in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tran"], ["unknown command 'tran'", "did you mean train?"]),
        (["train", "--modle=m"], ["unknown flag --modle", "--model"]),
        (["train"], ["needs --model"]),
        (["train", "--model=m", "--data=d", "--objectives=a", "--config=none.yaml"], ["none.yaml is not a file"]),
        (["train", "--do-train"], ["unknown flag --do-train"]),
        (["eval", "--model=scratch:tiny", "--data=d", "--objectives=a"], ["untrained model"]),
        (["demo", "--seed=x"], ["--seed", "whole number"]),
        (["env", "everything"], ["unexpected argument 'everything'"]),
    ],
)
def test_a_wrong_command_line_is_one_line(amopo, argv, words):
    outcome = amopo(*argv)
    message = outcome.one_line()
    assert outcome.status == 2 and all(word in message for word in words), message


def test_an_unknown_key_of_the_file_names_file_and_key(train, data, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"data": str(data), "objectives": ["a", "b"], "learning_rat": 1e-4}))
    message = train("--config", config)
    assert str(config) in message and "learning_rat" in message and "learning_rate" in message


def test_yaml_cannot_run_code(train, tmp_path):
    config, mark = tmp_path / "run.yaml", tmp_path / "mark"
    config.write_text(f'data: !!python/object/apply:os.mkdir ["{mark}"]\n')
    assert "not valid YAML" in train("--config", config)
    assert not mark.exists()


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_the_traceback_shows_on_demand(amopo, monkeypatch, how):
    argv = ["env", "everything"]
    if how == "flag":
        argv.append("--debug")
    else:
        # the fixture clears it, so that it holds for this call only
        monkeypatch.setenv("AMOPO_DEBUG", "1")
        from amopo.cli.main import main

        with pytest.raises(ValueError, match="unexpected argument"):
            main(argv)
        return
    with pytest.raises(ValueError, match="unexpected argument"):
        amopo(*argv)


def test_a_failure_that_is_no_bad_input_has_another_status(amopo, monkeypatch):
    from amopo.cli import env

    def fail(settings):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(env, "run", fail)
    outcome = amopo("env")
    assert outcome.status == 1
    assert outcome.one_line() == "RuntimeError: first line second line (--debug shows where)"


def test_ctrl_c_is_no_error(amopo, monkeypatch):
    from amopo.cli import env

    def stop(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(env, "run", stop)
    outcome = amopo("env")
    assert (outcome.status, outcome.err) == (130, "amopo: interrupted\n")
