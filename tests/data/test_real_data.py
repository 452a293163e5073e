"""Real preference data, read to token ids. Skips where the data is absent."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

from amopo.data import DataError, Scale, build_pairs, read_records, scales_of, split_records, tokenize_pairs

HELPSTEER2 = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
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
    records = read_records(path, objectives=HELPSTEER2)
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


@pytest.fixture(scope="module")
def trained(real_data, make_tokenizer):
    """A tokenizer trained on the file that it reads."""
    return make_tokenizer(corpus=[real_data("helpsteer2_sample100").read_text()], vocab_size=600)


@pytest.mark.parametrize("template", ["rubric", "rubric_suffix", "brief", "plain"])
def test_real_pairs_become_samples(real_data, trained, template):
    records = read_records(real_data("helpsteer2_sample100"), objectives=HELPSTEER2[:3])
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
