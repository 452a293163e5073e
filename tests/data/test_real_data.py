"""Real preference data, read to token ids. Skips where the data is absent."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

from amopo.data import DataError, Scale, build_pairs, read_records, scales_of, split_records, tokenize_pairs
from amopo.data.export import trl_rows
from amopo.data.inspection import inspect_file
from amopo.data.output import write_rows
from amopo.data.split_file import split_file

HELPSTEER2 = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
HELPSTEER2_SCALES = dict.fromkeys(HELPSTEER2, Scale(0, 4))
NLG = ("informativeness", "naturalness", "quality")
NLG_SCALES = dict.fromkeys(NLG, Scale(1, 6))


def all_pairs(path):
    """Every two different texts of a prompt, with their scores, read by hand."""
    for line in path.read_text().splitlines():
        for a, b in combinations(json.loads(line)["responses"], 2):
            if a["text"] != b["text"]:
                yield a["scores"], b["scores"]


def test_helpsteer2_gives_the_known_counts(real_data):
    path = real_data("helpsteer2_sample100")
    records = read_records(path, objectives=HELPSTEER2, scales=HELPSTEER2_SCALES)
    assert len(records) == 50 and {len(record.responses) for record in records} == {2}
    pairs, report = build_pairs(records, objectives=HELPSTEER2[:3])
    scored = [[[s[name] for name in HELPSTEER2[:3]] for s in both] for both in all_pairs(path)]
    assert report.pairs == sum(sum(a) != sum(b) for a, b in scored)
    assert report.ties == 50 - report.pairs and report.identical == 0
    winners_first = [(a, b) if sum(a) > sum(b) else (b, a) for a, b in scored if sum(a) != sum(b)]
    assert report.conflicts == sum(any(y > x for x, y in zip(a, b, strict=True)) for a, b in winners_first)


def test_emnlp17_gives_the_known_counts(real_data):
    path = real_data("emnlp17_nlg")
    with pytest.raises(DataError, match="grouped.jsonl, line 1: the scale of objective 'informativeness' is not known"):
        read_records(path, objectives=NLG)
    records = read_records(path, objectives=NLG, scales=NLG_SCALES)
    assert len(records) == 1180
    _, report = build_pairs(records, objectives=NLG)
    assert report.identical == 85 and report.pairs + report.ties == 1095
    scored = [[[s[name] for name in NLG] for s in both] for both in all_pairs(path)]
    _, every = build_pairs(records, objectives=NLG, strategy="all")
    # Scores are multiples of a half: their sums are exact.
    assert every.pairs == sum(sum(a) != sum(b) for a, b in scored)
    with pytest.raises(DataError, match=r"grouped.jsonl:\d+, record 'emnlp17-\d+': its responses have"):
        build_pairs(records, objectives=NLG, strict=True)


def test_emnlp17_has_prompts_that_occur_twice_and_they_stay_together(real_data):
    records = read_records(real_data("emnlp17_nlg"), objectives=NLG, scales=NLG_SCALES)
    train, evaluation = split_records(records, eval_fraction=0.1, seed=0)
    prompts = [{record.prompt[0]["content"] for record in part} for part in (train, evaluation)]
    assert sum(map(len, prompts)) < len(records)
    assert not prompts[0] & prompts[1]
    assert len(prompts[1]) == round(0.1 * sum(map(len, prompts)))


# The same real rows in every form: each must be read as the same records


def as_helpsteer2(row):
    return [{"prompt": row["prompt"], "response": r["text"], **r["scores"]} for r in row["responses"]]


def as_trl(row):
    one, two = ([{"role": "assistant", "content": r["text"]}] for r in row["responses"])
    scores = {f"{side}_scores": r["scores"] for side, r in zip(("chosen", "rejected"), row["responses"], strict=True)}
    return [{"prompt": [{"role": "user", "content": row["prompt"]}], "chosen": one, "rejected": two, **scores}]


def as_implicit_trl(row):
    question = {"role": "user", "content": row["prompt"]}
    one, two = ([question, {"role": "assistant", "content": r["text"]}] for r in row["responses"])
    return [
        {name: value for name, value in (as_trl(row)[0] | {"chosen": one, "rejected": two}).items() if name != "prompt"}
    ]


def as_released(row):
    sides = zip(("chosen", "rejected"), row["responses"], strict=True)
    made = {side: {"response": r["text"], **{k: str(v) for k, v in r["scores"].items()}} for side, r in sides}
    return [{"prompt": row["prompt"], **made}]


def as_ultrafeedback(row):
    notes = [{name: {"Rating": str(score + 1)} for name, score in r["scores"].items()} for r in row["responses"]]
    made = [{"response": r["text"], "annotations": n} for r, n in zip(row["responses"], notes, strict=True)]
    return [{"instruction": row["prompt"], "completions": made}]


@pytest.fixture(scope="module")
def helpsteer2_rows(real_data):
    return [json.loads(line) for line in real_data("helpsteer2_sample100").read_text().splitlines()]


@pytest.mark.parametrize("as_array", [False, True], ids=["lines", "array"])
@pytest.mark.parametrize("form", [as_helpsteer2, as_trl, as_implicit_trl, as_released, as_ultrafeedback])
def test_real_rows_read_the_same_in_every_form(helpsteer2_rows, real_data, tmp_path, form, as_array):
    expected = read_records(real_data("helpsteer2_sample100"), objectives=HELPSTEER2, scales=HELPSTEER2_SCALES)
    made = [item for row in helpsteer2_rows for item in form(row)]
    path = tmp_path / "data"
    path.write_text(json.dumps(made) if as_array else "".join(json.dumps(item) + "\n" for item in made))
    declares = form in (as_helpsteer2, as_released, as_ultrafeedback)
    found = read_records(path, objectives=HELPSTEER2, scales=None if declares else HELPSTEER2_SCALES)
    shift = 1 if form is as_ultrafeedback else 0
    assert len(found) == len(expected) == 50
    for one, two in zip(found, expected, strict=True):
        assert one.prompt == two.prompt
        for a, b in zip(one.responses, two.responses, strict=True):
            assert a.text == b.text and a.scores == {name: score + shift for name, score in b.scores.items()}
        assert set(one.scales.values()) == {Scale(shift, 4 + shift)}


def test_real_rows_survive_a_round_trip_through_trl(real_data, tmp_path):
    records = read_records(real_data("helpsteer2_sample100"), objectives=HELPSTEER2, scales=HELPSTEER2_SCALES)
    path = tmp_path / "trl.jsonl"
    with write_rows(path) as write:
        for record in records:
            for row in trl_rows(record):
                write(row)
    pairs, _ = build_pairs(records, objectives=HELPSTEER2)
    again, _ = build_pairs(read_records(path, objectives=HELPSTEER2), objectives=HELPSTEER2)
    assert again == pairs and len(pairs) == 44


@pytest.mark.parametrize(
    ("name", "comparisons", "in_conflict"),
    # as the data's own description counts them
    [("summeval", 11935, 3579), ("emnlp17_nlg", 1356, 269), ("helpsteer2_sample100", 50, 9)],
)
def test_inspection_finds_the_known_conflicts(real_data, name, comparisons, in_conflict):
    found = inspect_file(real_data(name), sample=50)
    assert (found.agreement.comparisons, found.agreement.in_conflict) == (comparisons, in_conflict)
    assert found.bad.count == 0 and found.costs.pairs > 40
    lines = real_data(name).read_text().splitlines()
    assert found.report.records == len(lines)
    assert found.report.responses == sum(len(json.loads(line)["responses"]) for line in lines)


def test_summaries_are_on_their_own_scale_though_helpsteer2_has_an_objective_of_that_name(real_data):
    found = inspect_file(real_data("summeval"), sample=50).scores["coherence"]
    assert (found.scale, found.origin) == (Scale(1, 5), "seen")
    with pytest.raises(DataError, match=r"line 1: the scale of objective 'coherence' is not known.*coherence=0:4"):
        read_records(real_data("summeval"), objectives=["coherence"])


def test_real_files_split_as_training_splits_them(real_data, tmp_path):
    path = real_data("emnlp17_nlg")
    train, evaluation = tmp_path / "train", tmp_path / "eval"
    split_file(path, train, evaluation, eval_fraction=0.1, seed=0)
    records = read_records(path, objectives=NLG, scales=NLG_SCALES)
    for file, part in zip((train, evaluation), split_records(records, eval_fraction=0.1, seed=0), strict=True):
        assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [record.id for record in part]


@pytest.fixture(scope="module")
def trained(real_data, make_tokenizer):
    """A tokenizer trained on the file that it reads."""
    return make_tokenizer(corpus=[real_data("helpsteer2_sample100").read_text()], vocab_size=600)


@pytest.mark.parametrize("template", ["rubric", "rubric_suffix", "brief", "plain"])
def test_real_pairs_become_samples(real_data, trained, template):
    scales = {name: HELPSTEER2_SCALES[name] for name in HELPSTEER2[:3]}
    records = read_records(real_data("helpsteer2_sample100"), objectives=HELPSTEER2[:3], scales=scales)
    pairs, _ = build_pairs(records, objectives=HELPSTEER2[:3])
    samples, report = tokenize_pairs(
        pairs,
        trained,
        objectives=HELPSTEER2[:3],
        scales=scales_of(records),
        template=template,
        max_prompt_length=300,
        max_response_length=200,
    )
    assert len(samples) + report.dropped_identical == len(pairs)
    assert 0 < report.prompts_cut < len(pairs) and report.chosen_cut > 0 and report.rejected_cut > 0
    assert report.longest_prompt <= 300 and report.longest_response == 200
    for sample in samples:
        prompts = [trained.decode(prompt) for prompt in sample.prompts]
        assert all(text.endswith("<|im_start|>assistant\n") for text in prompts)
        if template != "plain":
            for name, text in zip(HELPSTEER2[:3], prompts, strict=True):
                assert name in text
