"""amopo data: inspect, convert, split; and training on every form."""

from __future__ import annotations

import gzip
import json

import pytest

from amopo.cli import data as data_command
from amopo.cli.inputs import read_inputs
from amopo.data import build_pairs, read_records, split_records

pytest.importorskip("transformers")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Dispatch


def test_every_subcommand_is_named_and_has_a_help_page_of_one_screen(amopo):
    overview = amopo("data").out
    assert overview == amopo("data", "--help").out and "usage: amopo data COMMAND" in overview
    assert "data" in amopo().out
    for name in data_command.SUBCOMMANDS:
        assert name in overview
        outcome = amopo("data", name, "--help")
        assert outcome.status == 0 and f"usage: amopo data {name}" in outcome.out
        assert len(outcome.out.splitlines()) < 40


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["inspct"], ["unknown command 'inspct'", "did you mean inspect?", "Commands: inspect"]),
        (["inspect"], ["amopo data inspect needs FILE"]),
        (["inspect", "a", "b"], ["this needs FILE, but a b was given"]),
        (["convert", "a"], ["this needs IN OUT, but a was given"]),
        (["inspect", "a", "--fromat=x"], ["unknown flag --fromat", "--format"]),
        (["inspect", "a", "--format=csv"], ["--format: 'csv' is not one of auto, grouped, trl"]),
        (["inspect", "none.jsonl"], ["none.jsonl: the file does not exist"]),
        (["inspect", "a", "--sample=0"], ["--sample: at least 1"]),
        (["inspect", "a", "--template=poem"], ["poem", "rubric"]),
        (["inspect", "a", "--tokenizer=./no-such-folder"], ["--tokenizer: cannot use ./no-such-folder"]),
        (["convert", "a", "b", "--to=csv"], ["--to: 'csv' is not one of grouped, trl"]),
        (["convert", "a", "b", "--pairs=some"], ["--pairs: 'some' is not one of best_worst"]),
        (["split", "hf:me/one"], ["has no folder to write to", "--train and --eval"]),
    ],
)
def test_a_wrong_command_line_is_one_line(amopo, monkeypatch, tmp_path, argv, words):
    monkeypatch.chdir(tmp_path)
    outcome = amopo("data", *argv)
    message = outcome.one_line()
    assert outcome.status == 2 and all(word in message for word in words), message


# inspect


def test_inspect_prints_what_the_file_holds(amopo, write, rows):
    path = write([*rows(30), '{"broken'])
    outcome = amopo("data", "inspect", path)
    assert outcome.status == 0 and outcome.err == ""
    text = outcome.out
    assert "prompts      30 (30 distinct)" in text and "responses    60; per prompt: 2" in text
    assert "bad rows     1" in text and f"{path}, line 31: broken JSON" in text
    assert "a          0 to 4  declared      60       0        4     2" in text
    # b of the worse response is 0, 1 or 2, of the better one 3: no ties, no conflicts
    assert "30 comparisons" in text and "0 in conflict" in text and "tie 0" in text
    assert "lengths in words (no --tokenizer was named): 30 best-worst pairs of all prompts, template rubric" in text
    for layout in ("padded, 1 pair a batch", "padded, 4 pairs a batch", "sharing none", "sharing pair", "sharing tree"):
        assert layout in text
    assert amopo("data", "inspect", path, "--quiet").out == text  # it is the result


def test_inspect_prints_the_same_as_json(amopo, write, rows):
    found = json.loads(amopo("data", "inspect", write(rows(30)), "--json", "--sample", "10").out)
    assert found["form"] == "grouped" and found["prompts"] == 30 and found["responses_per_prompt"] == {"2": 30}
    assert found["objectives"]["b"] == {
        "scale": [0, 4], "scale_origin": "declared", "scores": 60, "lowest": 0, "highest": 3, "mean": 2.0,
    }  # fmt: skip
    assert found["ties"] == {"a": 0, "b": 0} and found["conflicts"] == {"a": {"b": 0}, "b": {"a": 0}}
    assert found["unit"] == "words" and found["sampled_prompts"] == found["pairs"] == 10
    assert {layout["layout"] for layout in found["layouts"]} >= {"packed, sharing tree", "padded, 4 pairs a batch"}
    assert found["bad_rows"] == {"count": 0, "first": []}


def test_inspect_counts_the_tokens_of_a_tokenizer(amopo, write, rows, tmp_path):
    from amopo.data import ChatEncoder
    from amopo.trainer.scratch import train_tokenizer

    path, folder = write(rows(12)), tmp_path / "tokenizer"
    tokenizer = train_tokenizer([row["prompt"] for row in rows(12)], vocab_size=300)
    tokenizer.save_pretrained(folder)
    found = json.loads(amopo("data", "inspect", path, "--json", "--tokenizer", folder, "--template=plain").out)
    assert found["unit"] == "tokens"
    longest = max(len(ChatEncoder(tokenizer).response(row["responses"][0]["text"])) for row in rows(12))
    assert found["lengths"]["chosen response"]["most"] == longest


def test_inspect_asks_for_no_scale_and_says_which_one_is_missing(amopo, write, rows):
    path = write([{**row, "scales": {"a": [0, 4]}} for row in rows(6)])
    outcome = amopo("data", "inspect", path)
    assert (
        outcome.status == 0
        and "seen: from the scores themselves" in outcome.out
        and "--scales b=low:high" in outcome.out
    )
    assert "given" in amopo("data", "inspect", path, "--scales", "b=0:4").out


def test_inspect_of_named_objectives_shows_those(amopo, write, rows):
    found = json.loads(amopo("data", "inspect", write(rows(6)), "--json", "--objectives=b").out)
    assert list(found["objectives"]) == ["b"]
    message = amopo("data", "inspect", write(rows(6)), "--objectives=b,charm").one_line()
    assert "no response has a score for objective 'charm'" in message and "a, b" in message


# convert


def content(path, objectives=("a", "b")):
    return [(r.id, r.prompt, r.responses, r.scales) for r in read_records(path, objectives=objectives)]


def test_convert_to_trl_and_back_gives_the_same_data(amopo, write, rows, tmp_path):
    path, trl, back = write(rows(12)), tmp_path / "trl.jsonl", tmp_path / "back.jsonl.gz"
    outcome = amopo("data", "convert", path, trl, "--to", "trl")
    assert outcome.status == 0, outcome.err
    assert f"{path}: grouped, 12 prompts with 24 responses; objectives: a, b" in outcome.out
    assert f"{trl}: 12 rows, trl" in outcome.out
    assert {"prompt", "chosen", "rejected", "chosen_scores", "rejected_scores"} <= lines(trl)[0].keys()
    assert amopo("data", "convert", trl, back).status == 0
    # the better response of each pair stands first in both
    assert content(path) == content(trl) == content(back)
    assert len(gzip.decompress(back.read_bytes()).splitlines()) == 12


def test_convert_says_what_gives_no_pair(amopo, write, rows, tmp_path):
    tied = rows(3)
    for response in tied[0]["responses"]:
        response["scores"] = {"a": 1, "b": 1}
    outcome = amopo("data", "convert", write(tied), tmp_path / "trl.jsonl", "--to=trl")
    assert "2 rows, trl; 1 prompts give no pair (ties, or the same text)" in outcome.out
    source = write(tied[:1])
    message = amopo("data", "convert", source, tmp_path / "x", "--to=trl").one_line()
    assert (
        message.startswith(f"{source}: no prompt gives a pair") and "different texts and scores are needed" in message
    )
    assert not (tmp_path / "x").exists()


def test_convert_keeps_the_objectives_that_are_named(amopo, write, rows, tmp_path):
    undeclared = [{**row, "scales": {"a": [0, 4]}} for row in rows(3)]
    path, target = write(undeclared), tmp_path / "out.jsonl"
    message = amopo("data", "convert", path, target).one_line()
    assert "the scale of objective 'b' is not known" in message and "--objectives names those to keep" in message
    assert not target.exists()
    assert amopo("data", "convert", path, target, "--objectives=a").status == 0
    assert all(set(r["scores"]) == {"a"} for row in lines(target) for r in row["responses"])


def test_convert_stops_at_a_bad_row_and_writes_nothing(amopo, write, rows, tmp_path):
    path = write([*rows(3), '{"broken'])
    assert "line 4: broken JSON" in amopo("data", "convert", path, tmp_path / "out.jsonl").one_line()
    assert [item.name for item in tmp_path.iterdir()] == ["data.jsonl"]


def test_nothing_is_overwritten_without_force(amopo, write, rows, tmp_path):
    path, target = write(rows(12)), tmp_path / "out.jsonl"
    target.write_text("before")
    for argv in (["convert", path, target], ["split", path, "--train", target]):
        assert "out.jsonl: the file exists" in amopo("data", *argv).one_line()
        assert target.read_text() == "before"
    assert amopo("data", "convert", path, target, "--force").status == 0 and len(lines(target)) == 12
    assert amopo("data", "split", "--force", path, "--train", target).status == 0 and len(lines(target)) == 11
    assert "this is the file that is read" in amopo("data", "convert", path, path, "--force").one_line()


# split


def test_split_writes_two_files_beside_the_first(amopo, write, rows, tmp_path):
    path = write(rows(30))
    outcome = amopo("data", "split", path, "--eval-fraction", "0.2", "--seed", "3")
    assert outcome.status == 0, outcome.err
    train, evaluation = lines(tmp_path / "data.train.jsonl"), lines(tmp_path / "data.eval.jsonl")
    assert "24 rows of 24 prompts" in outcome.out and "6 rows of 6 prompts" in outcome.out
    expected = split_records(read_records(path, objectives=["a"]), eval_fraction=0.2, seed=3)
    for part, records in zip((train, evaluation), expected, strict=True):
        assert [row["id"] for row in part] == [record.id for record in records]
    assert all(row in rows(30) for row in train + evaluation)
    assert amopo("data", "split", path, "--force", "--quiet").out == ""


def test_split_checks_both_targets_before_it_writes_one(amopo, write, rows, tmp_path):
    path = write(rows(12))
    (tmp_path / "data.eval.jsonl").write_text("before")
    assert "data.eval.jsonl: the file exists" in amopo("data", "split", path).one_line()
    assert not (tmp_path / "data.train.jsonl").exists()
    same = ["--train", tmp_path / "x", "--eval", tmp_path / "x"]
    assert "--train and --eval both name" in amopo("data", "split", path, *same).one_line()


# Training


def as_trl(row):
    (better, worse), common = row["responses"], {"scales": row["scales"], "id": row["id"], "prompt": row["prompt"]}
    texts = {"chosen": better["text"], "rejected": worse["text"]}
    return {**common, **texts, "chosen_scores": better["scores"], "rejected_scores": worse["scores"]}


def as_released(row):
    sides = zip(("chosen", "rejected"), row["responses"], strict=True)
    made = {side: {"response": r["text"], **{k: str(v) for k, v in r["scores"].items()}} for side, r in sides}
    return {"id": row["id"], "prompt": row["prompt"], "scales": row["scales"], **made}


def test_train_and_eval_take_every_form(amopo, small, write, rows, tmp_path):
    """The same pairs in three forms, one of them an array, one compressed."""
    plain = rows(12)
    array, packed = tmp_path / "array.json", tmp_path / "trl.gz"
    array.write_text(json.dumps([as_released(row) for row in plain]))
    packed.write_bytes(gzip.compress("".join(json.dumps(as_trl(row)) + "\n" for row in plain).encode()))
    paths = write(plain), array, packed
    read = [read_inputs(str(path), objectives=["a", "b"]).in_memory() for path in paths]
    for inputs in read[1:]:
        assert inputs.train.pairs == read[0].train.pairs and inputs.evaluation.pairs == read[0].evaluation.pairs
        assert inputs.scales == read[0].scales and len(inputs.train.pairs) == 11
    out = tmp_path / "out"
    outcome = amopo("train", *small, "--data", array, "--objectives=a,b", "--output-dir", out, "--max-steps=1")
    assert outcome.status == 0 and "training data: 11 pairs from 11 prompts" in outcome.out, outcome.err
    outcome = amopo("eval", "--model", out, "--data", packed, "--objectives=a,b", "--template=brief")
    assert outcome.status == 0 and "data: 12 pairs from 12 prompts" in outcome.out, outcome.err


def test_training_says_what_has_no_rating(amopo, small, write, tmp_path):
    def completion(text, rating):
        notes = {name: {"Rating": rating if name == "honesty" else "3"} for name in ("honesty", "helpfulness")}
        return {"response": text, "annotations": notes}

    made = [
        {"instruction": f"Say {n}.", "completions": [completion(f"{n}", "5"), completion("No.", "1")]} for n in range(8)
    ]
    made[0]["completions"][0]["annotations"]["honesty"]["Rating"] = "N/A"
    path = write(made)
    flags = ["--objectives=honesty,helpfulness", "--output-dir", tmp_path / "out", "--max-steps=1", "--eval-fraction=0"]
    outcome = amopo("train", *small, "--data", path, *flags)
    assert outcome.status == 0, outcome.err
    assert f"{path}: 7 prompts with 14 responses; left out 1 responses without a rating (N/A)" in outcome.out
    settings = json.loads((tmp_path / "out" / "metrics.json").read_text())["settings"]
    # what the template tells the model
    assert settings["scales"] == {"honesty": [1, 5], "helpfulness": [1, 5]}


def test_the_scale_in_the_prompt_is_the_one_that_scores_are_checked_on(write):
    from amopo.data import get_template, scales_of

    def completion(text, rating):
        return {"response": text, "annotations": {"helpfulness": {"Rating": rating}}}

    path = write([{"instruction": "x", "completions": [completion("a", "5"), completion("b", "1")]}])
    records = read_records(path, objectives=["helpfulness"])
    (pair,), _ = build_pairs(records, objectives=["helpfulness"])
    (message,) = get_template("rubric").render(
        pair.prompt,
        objective="helpfulness",
        score=pair.chosen.scores["helpfulness"],
        scale=scales_of(records)["helpfulness"],
    )
    assert "rated from 1 (" in message["content"] and " to 5 (" in message["content"]


# Fields that nobody reads


@pytest.mark.parametrize(
    ("command", "targets"),
    [("convert", ["out.jsonl"]), ("split", ["data.train.jsonl", "data.eval.jsonl"])],
)
def test_half_a_character_in_a_field_that_is_not_read_stops_nothing_and_is_named(
    amopo, write, rows, tmp_path, command, targets
):
    given = rows(12)
    given[4]["note"] = "half \ud83d"
    path = write(given)
    outcome = amopo("data", command, path, *(tmp_path / name for name in targets if command == "convert"))
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("half a character") == 1
    said = next(line for line in outcome.out.splitlines() if "half a character" in line)
    assert str(path) in said and "its field 'note'" in said and ("line 5" in said or "data.jsonl:5" in said)
    found = [row for name in targets for row in lines(tmp_path / name)]
    assert [row["note"] for row in found if row["id"] == "r4"] == ["half \ud83d"] and len(found) == 12


def test_text_among_the_scores_is_no_objective_and_is_said(amopo, write, rows, tmp_path):
    given = rows(4)
    for row in given:
        for response in row["responses"]:
            response["scores"]["c"] = "good"
    path = write(given)
    assert "no objectives, since they hold no numbers: 'c'" in amopo("data", "inspect", path).out
    outcome = amopo("data", "convert", path, tmp_path / "out.jsonl")
    assert outcome.status == 0 and "not written, since they hold no numbers: 'c'" in outcome.out
    assert set(lines(tmp_path / "out.jsonl")[0]["responses"][0]["scores"]) == {"a", "b"}
