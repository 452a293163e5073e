"""What a command reads: the same as with lists, in few passes over the file."""

from __future__ import annotations

import json

import pytest

from amopo.cli.console import Console
from amopo.cli.inputs import read_inputs
from amopo.data import (
    DataError,
    add_overall,
    build_pairs,
    overall_weights,
    read_records,
    scales_of,
    split_records,
    tokenize_pairs,
    with_overall,
)

OBJECTIVES = ["a", "b"]


@pytest.fixture
def mixed(write):
    """Prompts that come up twice, ties, equal texts, three responses, objectives that disagree."""
    rows = []
    for n in range(60):
        texts = ("Yes.", "No.", "Yes." if n % 7 == 0 else f"Perhaps {n}.")
        scores = ((n % 5, 2), (n % 3, n % 4), (2, 2))
        responses = [{"text": text, "scores": {"a": a, "b": b}} for text, (a, b) in zip(texts, scores, strict=True)]
        rows.append(
            {"prompt": f"Question {n % 45}?", "responses": responses, "scales": {"a": [0, 4], "b": [0, 4]}, "n": n}
        )
    return write(rows)


def with_lists(path, *, seed, overall, weights, **options):
    """The same from the parts of the library that hold everything."""
    objectives = OBJECTIVES
    train, held_out = split_records(read_records(path, objectives=objectives), eval_fraction=0.2, seed=seed)
    scales = scales_of([*train, *held_out])
    if overall:
        made_of = {"objectives": objectives, "scales": scales, "weights": weights}
        train, held_out = add_overall(train, **made_of), add_overall(held_out, **made_of)
        objectives, scales = with_overall(objectives), scales_of([*train, *held_out])
        weights = overall_weights(objectives)
    made = {"objectives": objectives, "scales": scales, "weights": weights, **options}
    return scales, (train, *build_pairs(train, **made)), (held_out, *build_pairs(held_out, **made))


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "all", "orientation": "per_objective"},
        {"strategy": "all", "pairs_per_prompt": 2, "weights": {"a": 1, "b": 3}},
        {"overall": True, "weights": [2, 1]},
    ],
)
def test_records_pairs_split_and_reports_are_those_of_lists(mixed, seed, options):
    options = {"overall": False, "weights": None, **options}
    scales, *expected = with_lists(mixed, seed=seed, **options)
    weights = options.pop("weights")
    inputs = read_inputs(
        str(mixed), objectives=OBJECTIVES, eval_fraction=0.2, seed=seed, score_weights=weights, **options
    )
    assert inputs.scales == scales and list(inputs.scales) == list(scales)
    for part, (records, pairs, report) in zip((inputs.train, inputs.evaluation), expected, strict=True):
        assert list(part.records) == records and list(part.pairs) == pairs and part.report == report
        assert (len(part.records), len(part.pairs)) == (len(records), len(pairs))
        assert list(part.pairs) == pairs, "a second time"
        held = part.in_memory()
        assert held.records == records and held.pairs == pairs


def test_a_file_of_its_own_for_evaluation(mixed, write, rows):
    other = write(rows(5), "other.jsonl")
    inputs = read_inputs(str(mixed), objectives=OBJECTIVES, eval_data=str(other))
    assert len(inputs.train.records) == 60 and [record.id for record in inputs.evaluation.records] == [
        f"r{n}" for n in range(5)
    ]
    assert inputs.evaluation.report.pairs == len(list(inputs.evaluation.pairs)) == 5
    none = read_inputs(str(mixed), objectives=OBJECTIVES, eval_fraction=0)
    assert none.evaluation.report is None and not none.evaluation.pairs and len(none.train.records) == 60


def test_tokens_are_those_of_a_list(mixed, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from amopo.cli.tokens import tokenize
    from amopo.trainer.scratch import train_tokenizer

    monkeypatch.setenv("AMOPO_CACHE", str(tmp_path / "cache"))
    tokenizer = train_tokenizer(["Yes No Perhaps Question"], vocab_size=300)
    inputs = read_inputs(str(mixed), objectives=OBJECTIVES)
    settings = {"objectives": OBJECTIVES, "scales": inputs.scales, "template": "brief"}
    expected, report = tokenize_pairs(list(inputs.train.pairs), tokenizer, **settings)
    for cache in (False, True, True):
        samples, found = tokenize(inputs.train.pairs, tokenizer, Console(quiet=True), cache=cache, **settings)
        assert list(samples) == expected and found == report
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


@pytest.mark.parametrize("kept", [False, True])
def test_every_pass_that_takes_long_shows_how_far_it_is(mixed, tmp_path, monkeypatch, capsys, kept):
    pytest.importorskip("transformers")
    from amopo.cli import tokens
    from amopo.trainer.scratch import train_tokenizer

    monkeypatch.setenv("AMOPO_CACHE", str(tmp_path / "cache"))
    tokenizer = train_tokenizer(["Yes No Perhaps Question"], vocab_size=300)
    inputs = read_inputs(str(mixed), objectives=OBJECTIVES)
    settings = {"objectives": OBJECTIVES, "scales": inputs.scales, "template": "brief", "cache": True}
    if kept:
        tokens.tokenize(inputs.evaluation.pairs, tokenizer, Console(quiet=True), **settings)
    monkeypatch.setattr(tokens, "SILENT_SECONDS", -1.0)
    tokens.tokenize(inputs.evaluation.pairs, tokenizer, Console(), **settings)
    passes = [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()]
    # rows of the file, also those of the training part
    assert passes == ([] if kept else ["tokenise: 60/60"])
    pairs = list(inputs.evaluation.pairs)
    tokens.tokenize(pairs, tokenizer, Console(), **settings)
    shown = [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()]
    assert shown == [f"looking for kept tokens: {len(pairs)}/{len(pairs)}"], "the same key, found in a pass of its own"


@pytest.mark.parametrize("eval_data", [False, True])
def test_a_file_is_read_four_times_the_first_time_and_twice_where_tokens_are_kept(
    mixed, write, rows, tmp_path, monkeypatch, eval_data
):
    pytest.importorskip("transformers")
    from amopo.cli.tokens import tokenize
    from amopo.data.sources.steady import SteadyFile
    from amopo.trainer.scratch import train_tokenizer

    monkeypatch.setenv("AMOPO_CACHE", str(tmp_path / "cache"))
    tokenizer = train_tokenizer(["Yes No Perhaps Question"], vocab_size=300)
    passes, real = [], SteadyFile.rows

    def counted(self, *arguments):
        passes.append(self.name)
        return real(self, *arguments)

    monkeypatch.setattr(SteadyFile, "rows", counted)
    other = str(write(rows(5), "other.jsonl")) if eval_data else None

    def run():
        passes.clear()
        inputs = read_inputs(str(mixed), objectives=OBJECTIVES, eval_data=other)
        settings = {"objectives": OBJECTIVES, "scales": inputs.scales, "template": "brief", "cache": True}
        made = [
            tokenize(p.pairs, tokenizer, Console(quiet=True), **settings)[0] for p in (inputs.train, inputs.evaluation)
        ]
        return [list(samples) for samples in made], passes.count(str(mixed)), passes.count(other)

    first, *counts = run()
    assert counts == ([3, 3] if eval_data else [4, 0])
    again, *counts = run()
    assert counts == ([2, 2] if eval_data else [2, 0])
    assert again == first and all(first)


def test_a_file_that_changes_after_it_was_read_leaves_no_tokens(mixed, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from amopo.cli.tokens import tokenize
    from amopo.trainer.scratch import train_tokenizer

    monkeypatch.setenv("AMOPO_CACHE", str(tmp_path / "cache"))
    tokenizer = train_tokenizer(["Yes"], vocab_size=300)
    inputs = read_inputs(str(mixed), objectives=OBJECTIVES)
    mixed.write_text(mixed.read_text() + "\n")
    with pytest.raises(DataError, match=f"{mixed}: the file changed while it was in use"):
        settings = {"objectives": OBJECTIVES, "scales": inputs.scales}
        tokenize(inputs.train.pairs, tokenizer, Console(quiet=True), cache=True, **settings)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name != "tokens"]


def test_a_part_without_pairs_is_named(write, rows):
    same = rows(4)
    for row in same:
        row["responses"][1]["text"] = row["responses"][0]["text"]
    with pytest.raises(DataError, match="^evaluation data: no pair of responses can be compared"):
        read_inputs(str(write(rows(4))), objectives=OBJECTIVES, eval_data=str(write(same, "same.jsonl")))


def test_records_of_two_files_must_agree_on_a_scale(write, rows):
    other = rows(2)
    other[1]["scales"] = {"a": [0, 4], "b": [0, 5]}
    with pytest.raises(DataError, match=r"other.jsonl:2, record 'r1' scores 'b' on 0 to 5, but .*data.jsonl:1"):
        read_inputs(str(write(rows(4))), objectives=OBJECTIVES, eval_data=str(write(other, "other.jsonl")))


def test_each_pass_tells_its_rows(mixed):
    told = []
    read_inputs(str(mixed), objectives=OBJECTIVES, on_rows=told.append)
    assert told == [60, 60]


@pytest.mark.parametrize("bad", [{"score_weights": {"a": 1}}, {"eval_fraction": 1.5}])
def test_settings_are_refused_before_the_file_is_read(tmp_path, bad):
    with pytest.raises(ValueError, match="weights are for a|eval_fraction must be"):
        read_inputs(str(tmp_path / "none.jsonl"), objectives=OBJECTIVES, **bad)


def test_a_model_from_scratch_begins_with_a_bounded_sample(amopo, small, rows, write, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from amopo.cli import scratch

    made = rows(30)
    for number, row in enumerate(made):  # every prompt brings a word of its own to the tokenizer
        word = "".join(chr(97 + (number * step + number // 26) % 26) for step in (1, 5, 7, 11, 17, 19))
        row["prompt"] = f"Say {word} {word}."
        row["responses"][0]["text"] = f"I say {word} {word}."
    data = write(made)
    argv = ["--data", data, "--objectives=a,b", "--output-dir", tmp_path / "out", "--max-steps=1"]
    plan_of_all = amopo("train", *small, *argv, "--dry-run").out
    assert plan_of_all.count("made from 27 training prompts") == 1
    monkeypatch.setattr(scratch, "SCRATCH_PROMPTS", 10)
    plan = amopo("train", *small, *argv, "--dry-run").out
    assert plan.count("made from 10 of 27 training prompts, drawn by the seed") == 1
    outcome = amopo("train", *small, *argv)
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("made from 10 of 27 training prompts, drawn by the seed") == 1
    imitation = json.loads((tmp_path / "out" / "metrics.json").read_text())["imitation"]
    assert (imitation["prompts"], imitation["demonstrations"]) == (10, 20)
    # The tokenizer of ten prompts knows fewer words, so the head and the packed rows are others than those of all.
    vocabulary = json.loads((tmp_path / "out" / "metrics.json").read_text())["model"]["tokens"]
    assert f" rows x {vocabulary} vocabulary" in plan and f" rows x {vocabulary} vocabulary" not in plan_of_all
    again = amopo("train", *small, *argv, "--dry-run", "--resume").out
    assert f"the model that this run began with is in {tmp_path / 'out' / 'imitation'}" in again
    assert f" rows x {vocabulary} vocabulary" in again
