"""What an inspection counts, against counts by hand."""

from __future__ import annotations

import random

import pytest

from amopo.data import DataError, PreferenceRecord, Response, Scale
from amopo.data.agreement import Agreement
from amopo.data.inspection import inspect_file
from amopo.data.layouts import layout_costs, padded_tokens
from amopo.data.lengths import TokenMeasure, WordMeasure, summarize_lengths
from amopo.packing import TokenizedSample, pack


def scored(*scores, texts=None):
    texts = texts or [f"text {i}" for i in range(len(scores))]
    responses = tuple(Response(t, dict(zip("abc", s, strict=False))) for t, s in zip(texts, scores, strict=True))
    return PreferenceRecord(0, ({"role": "user", "content": "x"},), responses)


def test_conflicts_and_ties_are_counted_per_pair_of_objectives():
    agreement = Agreement("abc")
    agreement.add(scored((1, 2, 0), (0, 3, 0)))  # a and b disagree, c ties
    agreement.add(scored((1, 1, 1), (0, 0, 0)))  # all agree
    agreement.add(scored((2, 2, 2), (2, 2, 2)))  # all tie
    agreement.add(scored((0, 1, 1), (1, 0, 0)))  # a against b and c
    agreement.add(scored((0, 0, 0), (1, 1, 1), texts=["same", " same "]))  # not compared
    assert agreement.conflicts == [[1, 2, 1], [2, 1, 0], [1, 0, 2]]
    assert (agreement.comparisons, agreement.identical) == (4, 1)
    assert (agreement.in_conflict, agreement.tied_everywhere) == (2, 1)


def test_every_two_responses_of_a_prompt_are_compared():
    agreement = Agreement("ab")
    agreement.add(scored((3, 1), (2, 2), (1, 3)))
    assert agreement.comparisons == 3 and agreement.conflicts == [[0, 3], [3, 0]]


def test_lengths_are_summarised_by_rank():
    summary = summarize_lengths([5, 1, 3, 2, 4])
    assert (summary.least, summary.median, summary.mean, summary.most_but_5, summary.most) == (1, 3, 3.0, 5, 5)
    summary = summarize_lengths(list(range(1, 101)))
    assert (summary.median, summary.most_but_5, summary.most) == (50, 95, 100)
    assert summarize_lengths([7]).most_but_5 == 7


def samples(count, *, seed=0):
    rng = random.Random(seed)

    def tokens(longest):
        return [rng.randrange(50) for _ in range(rng.randint(1, longest))]

    made = []
    for number in range(count):
        head, tail = tokens(9), tokens(9)
        prompts = tuple(head + tokens(4) + tail for _ in range(3))
        made.append(TokenizedSample(prompts, tokens(12) + [50], tokens(12) + [51], number))
    return made


@pytest.mark.parametrize("batch", [1, 4])
def test_padded_tokens_are_those_of_the_rectangles(batch):
    made = samples(10)
    expected = 0
    for start in range(0, 10, batch):
        rows = [
            len(prompt) + len(response)
            for sample in made[start : start + batch]
            for prompt in sample.prompts
            for response in (sample.chosen, sample.rejected)
        ]
        expected += len(rows) * max(rows)
    assert padded_tokens(made, batch) == expected


def test_packed_costs_are_those_of_packed_rows():
    made = samples(10)
    costs = {cost.layout: cost for cost in layout_costs(made)}
    for sharing in ("none", "pair", "tree"):
        assert costs[f"packed, sharing {sharing}"].tokens == pack(made, sharing=sharing).layout.num_tokens
    one, four, none = (costs[n] for n in ("padded, 1 pair a batch", "padded, 4 pairs a batch", "packed, sharing none"))
    assert none.ratio == 1 and none.padding == 0 and none.per_sample == none.tokens / 10
    assert one.padding == pytest.approx(1 - none.tokens / one.tokens) and four.ratio > one.ratio > 1
    assert costs["packed, sharing tree"].tokens <= costs["packed, sharing pair"].tokens < none.tokens


def test_words_stand_for_tokens_where_there_is_no_tokenizer():
    measure = WordMeasure()
    one, two = measure.response("a b a"), measure.response(" b\n c ")
    assert one[0] == one[2] != one[1] == two[0] and len(two) == 2
    assert measure.prompt([{"role": "user", "content": "a b"}, {"role": "user", "content": "c"}]) == [*one[:2], two[1]]


def test_tokens_are_counted_as_in_training(tokenizer):
    measure = TokenMeasure(tokenizer)
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(measure.prompt([{"role": "user", "content": "Hi"}])) == prompt
    assert tokenizer.decode(measure.response("Yes")) == "Yes<|im_end|>"


@pytest.fixture
def path(write_jsonl, grouped_row):
    a, b, c = {"helpfulness": 4, "wit": 1}, {"helpfulness": 2, "wit": 3}, {"helpfulness": 2, "wit": 2}
    return write_jsonl(
        grouped_row(a, b, texts=["one two three", "four five"], prompt="a question of six words"),
        '{"broken',
        grouped_row(a, b, c, prompt="another"),
        grouped_row(a, {"helpfulness": 9, "wit": 1}),
        grouped_row(b, c, prompt="another"),
        grouped_row(a),
        grouped_row({"helpfulness": 1}, {"helpfulness": 2}),
    )


def test_a_file_is_inspected_with_its_bad_rows(path):
    found = inspect_file(path, template="plain")
    assert found.scan.form == "grouped"
    assert (found.report.records, found.report.responses, found.distinct_prompts) == (3, 7, 2)
    assert found.responses_per_prompt == {2: 2, 3: 1}
    assert found.bad.count == 4
    for line, text in zip((2, 4, 6, 7), found.bad.first, strict=True):
        assert text.startswith(f"{path}, line {line}: ")
    helpfulness, wit = found.scores["helpfulness"], found.scores["wit"]
    assert (helpfulness.scale, helpfulness.origin) == (Scale(0, 4), "declared")
    assert (helpfulness.count, helpfulness.low, helpfulness.high) == (7, 2, 4)
    assert helpfulness.mean == pytest.approx((4 + 2 + 4 + 2 + 2 + 2 + 2) / 7)
    # nobody declared it: from its smallest to its largest score in the file
    assert (wit.scale, wit.origin, wit.count) == (Scale(1, 3), "seen", 7)
    assert found.agreement.conflicts == [[2, 3], [3, 0]] and found.agreement.comparisons == 5


def test_lengths_and_layouts_are_of_best_worst_pairs(write_jsonl, grouped_row):
    good, poor = {"helpfulness": 4}, {"helpfulness": 1}
    path = write_jsonl(
        grouped_row(good, poor, texts=["one two three", "four five"], prompt="a question of six words"),
        grouped_row(poor, good, texts=["no", "yes yes yes yes"], prompt="another"),
    )
    costs = inspect_file(path, template="plain").costs
    assert (costs.unit, costs.pairs) == ("words", 2)
    assert (costs.lengths["prompt alone"].least, costs.lengths["prompt alone"].most) == (1, 5)
    assert (costs.lengths["chosen response"].least, costs.lengths["chosen response"].most) == (3, 4)
    assert costs.lengths["rejected response"].mean == 1.5
    tokens = {cost.layout: cost.tokens for cost in costs.layouts}
    assert tokens["padded, 1 pair a batch"] == 2 * 8 + 2 * 5
    assert tokens["padded, 4 pairs a batch"] == 4 * 8
    assert tokens["packed, sharing none"] == (8 + 7) + (5 + 2)
    assert tokens["packed, sharing pair"] == (5 + 3 + 2) + (1 + 4 + 1)


def test_a_tokenizer_counts_tokens_and_names_pairs_that_it_cannot_take(write_jsonl, grouped_row, tokenizer):
    good, poor = {"helpfulness": 4}, {"helpfulness": 1}
    rows = [grouped_row(good, poor, id=n) for n in range(3)]
    rows.append(grouped_row(good, poor, id="evil", prompt="<|im_end|> hello"))
    costs = inspect_file(write_jsonl(*rows), template="plain", measure=TokenMeasure(tokenizer)).costs
    assert costs.unit == "tokens" and costs.pairs == 3
    assert costs.unusable.count == 1 and "sample 'evil'" in costs.unusable.first[0]
    assert costs.lengths["chosen response"].most == len("answer 0") + 1


def test_a_sample_is_drawn_from_all_records_and_counts_are_of_all(write_jsonl, grouped_row):
    path = write_jsonl(
        *(grouped_row({"helpfulness": 4}, {"helpfulness": 1}, prompt="word " * (n + 1)) for n in range(200))
    )
    found = inspect_file(path, sample=20, template="plain")
    assert found.sampled == found.costs.pairs == 20 and found.report.records == 200
    lengths = found.costs.lengths["prompt alone"]
    assert lengths.least < 60 and lengths.most > 140
    assert found.costs == inspect_file(path, sample=20, template="plain").costs
    with pytest.raises(ValueError, match="sample must be at least 1"):
        inspect_file(path, sample=0)


def test_scales_come_from_the_caller_then_the_file_then_the_scores_themselves(write_jsonl):
    scores = {"helpfulness": 3, "wit": 3, "charm": 3}
    responses = [{"text": "a", "scores": scores}, {"text": "b", "scores": {**scores, "wit": 2, "helpfulness": 1}}]
    path = write_jsonl({"prompt": "p", "responses": responses, "scales": {"wit": [1, 6], "charm": [0, 9]}})
    found = inspect_file(path, scales={"charm": [0, 5]})
    assert {name: (str(s.scale), s.origin) for name, s in found.scores.items()} == {
        "helpfulness": ("1 to 3", "seen"),
        "wit": ("1 to 6", "declared"),
        "charm": ("0 to 5", "given"),
    }


def test_a_record_on_another_scale_is_a_bad_row(write_jsonl, grouped_row):
    a, b = {"wit": 3}, {"wit": 2}
    path = write_jsonl(grouped_row(a, b, scales={"wit": [1, 6]}), grouped_row(a, b, scales={"wit": [0, 4]}))
    found = inspect_file(path)
    assert found.bad.count == 1 and "scores 'wit' on 0 to 4, but the records before it on 1 to 6" in found.bad.first[0]


def test_ties_leave_nothing_to_measure_and_say_so(write_jsonl, grouped_row):
    found = inspect_file(write_jsonl(grouped_row({"helpfulness": 3}, {"helpfulness": 3})))
    assert "no pair of responses can be compared" in found.costs.problem and not found.costs.layouts
    assert found.agreement.tied_everywhere == 1


def test_other_fields_of_a_row_are_no_objectives(write_jsonl):
    rows = [{"prompt": "p", "response": t, "helpfulness": 1, "split": "train", "tags": ["a"]} for t in ("a", "b")]
    assert inspect_file(write_jsonl(*rows)).scan.objectives == ("helpfulness",)


def test_a_bad_score_makes_no_other_field_of_an_objective(write_jsonl, grouped_row):
    rows = [grouped_row({"helpfulness": 3}, {"helpfulness": 1})] * 5 + [grouped_row({"helpfulness": "x"}, {})]
    found = inspect_file(write_jsonl(*rows))
    assert found.scan.objectives == ("helpfulness",) and found.bad.count == 1


def test_what_holds_no_scores_is_refused(write_jsonl, grouped_row):
    with pytest.raises(DataError, match="no field of the responses holds numbers"):
        inspect_file(write_jsonl(grouped_row({}, {})))
    with pytest.raises(DataError, match="no response has a score for objective 'charm'"):
        inspect_file(write_jsonl(grouped_row({"wit": 1}, {"wit": 2})), objectives=["charm"])


def test_unrated_responses_are_counted(write_jsonl):
    def completion(rating):
        return {"response": f"rated {rating}", "annotations": {"honesty": {"Rating": rating}}}

    rows = [{"instruction": "x", "completions": [completion(r) for r in ratings]} for ratings in ("123", "12")]
    rows.append({"instruction": "y", "completions": [completion("N/A"), completion("3")]})
    found = inspect_file(write_jsonl(*rows))
    assert (found.report.records, found.report.responses_unrated, found.report.records_unrated) == (2, 1, 1)
    assert found.scores["honesty"].scale == Scale(1, 5) and found.bad.count == 0
