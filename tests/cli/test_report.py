"""`amopo report`, and the report that other commands end with."""

from __future__ import annotations

import json
import sys

import pytest

from tests.report.run_files import metrics, rows, write_log, write_run

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")


@pytest.fixture
def run_of(tmp_path):
    return lambda name, **changes: write_run(tmp_path / name, metrics(["tone"], **changes))


def test_one_run_gets_its_page_in_its_folder(amopo, run_of):
    folder = run_of("one")
    outcome = amopo("report", folder)
    assert outcome.status == 0 and outcome.err == ""
    assert f"report: {folder / 'report.html'}" in outcome.out and "finished at step 24" in outcome.out
    assert "not in the report: generated scores" in outcome.out
    assert (folder / "report.html").stat().st_size > 10_000
    assert list((folder / "report_figures").glob("*.svg"))


def test_several_runs_share_a_page(amopo, run_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = run_of("one"), run_of("two", settings={"objectives": ["tone"], "beta": 2.0})
    assert amopo("report", one, two).status == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "one, two" in text and "beta differs" in text
    out = tmp_path / "elsewhere.html"
    # runs may stand before and after flags, and after a switch
    assert amopo("report", one, "--out", out, "--quiet", two).status == 0
    assert out.exists()


def test_quiet_says_nothing(amopo, run_of):
    outcome = amopo("report", "--quiet", run_of("one"))
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")


def test_a_mistake_is_one_line_before_anything_is_drawn(amopo, run_of, tmp_path):
    one = run_of("one")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.json").write_text("{", encoding="utf-8")
    for argv, text in (
        ([], "amopo report needs RUN [RUN ...]"),
        ([tmp_path / "none"], "there is no such file or folder"),
        ([one, one], "given twice"),
        ([tmp_path / "broken"], "metrics.json: not JSON"),
        ([one, "--out", tmp_path / "page.pdf"], "must end in .html"),
        ([one, "--out", tmp_path / "no" / "page.html"], "does not exist"),
        ([one, "--otu", "x.html"], "unknown flag --otu; did you mean --out?"),
        (["--out"], "expected one argument"),
    ):
        outcome = amopo("report", *argv)
        assert text in outcome.one_line() and outcome.status == 2
    assert not (one / "report.html").exists()


def test_a_name_with_escapes_does_not_reach_the_terminal(amopo, run_of):
    folder = run_of("a\x1b[31mb")
    outcome = amopo("report", folder)
    assert outcome.status == 0 and "\x1b" not in outcome.out and "a␛[31mb" in outcome.out


def test_the_help_names_what_is_given_without_a_flag(amopo):
    text = amopo("report", "--help").out
    assert "usage: amopo report RUN [RUN ...] [options]" in text and "--runs" not in text


def test_training_ends_with_a_report_of_itself(amopo, small, data, tmp_path):
    out = tmp_path / "out"
    argv = ["--data", data, "--objectives", "a,b", "--output-dir", out, "--max-steps=3", "--logging-steps=1"]
    outcome = amopo("train", *small, *argv, "--report=true", "--samples=2")
    assert outcome.status == 0, outcome.err
    assert f"report: {out / 'report.html'}" in outcome.out
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert found["finished"] is True
    prompts = [row["prompt"] for row in found["samples"]["after"]]
    assert len(prompts) == 2 and [row["prompt"] for row in found["samples"]["before"]] == prompts
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(prompt in page for prompt in prompts) and "finished at step 3" in page
    logged = [json.loads(line) for line in (out / "amopo_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3]


def test_a_run_that_stops_early_can_be_reported(amopo, small, data, tmp_path, monkeypatch):
    from amopo.trainer.trainer import AMoPOTrainer

    step_of = AMoPOTrainer.training_step

    def stops(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step_of(self, *args, **kwargs)

    monkeypatch.setattr(AMoPOTrainer, "training_step", stops)
    out = tmp_path / "out"
    argv = ["--data", data, "--objectives", "a,b", "--output-dir", out, "--max-steps=9", "--logging-steps=1"]
    assert amopo("train", *small, *argv, "--samples=1").status == 130
    outcome = amopo("report", out)
    assert outcome.status == 0 and "stopped after step 3 of 9" in outcome.out
    assert "before and after: the run did not finish" in outcome.out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "not generated" in page and "02-margins" in page


def test_a_report_that_cannot_be_written_costs_nothing_of_the_run(amopo, small, data, tmp_path, monkeypatch):
    from amopo.report import write

    def fails(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(write, "write_report", fails)
    out = tmp_path / "out"
    argv = ["--data", data, "--objectives", "a,b", "--output-dir", out, "--max-steps=1", "--quiet"]
    outcome = amopo("train", *small, *argv, "--report=true")
    assert outcome.status == 0 and (out / "metrics.json").exists()
    assert "no space left" in outcome.err and f"amopo report {out}" in outcome.err


def test_a_log_alone_is_enough(amopo, tmp_path):
    write_log(tmp_path / "run" / "amopo_log.jsonl", rows(3, ["tone"]), tail='{"half')
    outcome = amopo("report", tmp_path / "run")
    assert outcome.status == 0 and "note: amopo_log.jsonl: left out 1 of 4 lines" in outcome.out


def test_without_matplotlib_the_extra_is_named(amopo, run_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder = run_of("one")
    outcome = amopo("report", folder)
    assert "pip install 'amopo[plot]'" in outcome.one_line() and outcome.status == 2
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("flag", ["--samples=-1", "--sample-tokens=0"])
def test_samples_are_counted_from_zero(amopo, small, data, flag):
    argv = [given for given in small if not given.startswith(flag.split("=")[0])]
    outcome = amopo("train", *argv, "--data", data, "--objectives=a,b", flag)
    assert flag.split("=")[0] in outcome.one_line() and outcome.status == 2
