"""Pairs as token ids. The tokenizer has one token per byte, so lengths can be counted by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from amopo.data import DataError, Pair, Response, Scale, render_prompts, tokenize_pairs

SCALES = {"quality": Scale(1, 6), "wit": Scale(0, 4)}
OBJECTIVES = ("wit", "quality")
FRAME = len("<|u\n<|\n<|assistant\n") - len("<|" * 3) + 3 + len("ser")
"""Tokens of the chat template around one user message: three special ones, the roles, the line ends."""


def pair(chosen="good", rejected="bad", question="What is snow?", id="p", wit=3.0):
    prompt = ({"role": "user", "content": question},)
    scores = {"wit": wit, "quality": 5.5, "other": 9.0}
    return Pair(id, prompt, Response(chosen, scores), Response(rejected, {"wit": 0.0, "quality": 1.0}))


def tokenize(tokenizer, *pairs, template="brief", **options):
    return tokenize_pairs(pairs, tokenizer, objectives=OBJECTIVES, scales=SCALES, template=template, **options)


def test_a_pair_becomes_one_prompt_per_objective_and_two_responses(tokenizer):
    (sample,), report = tokenize(tokenizer, pair(id=7))
    assert sample.id == 7
    assert [tokenizer.decode(prompt) for prompt in sample.prompts] == [
        f"<|im_start|>user\n{text}\n\nWhat is snow?<|im_end|>\n<|im_start|>assistant\n"
        for text in ("wit 3/4", "quality 5.5/6")
    ]
    assert tokenizer.decode(sample.chosen) == "good<|im_end|>"
    assert tokenizer.decode(sample.rejected) == "bad<|im_end|>"
    assert (report.pairs, report.samples, report.longest_response) == (1, 1, 5)
    assert report.longest_prompt == len(sample.prompts[1]) == FRAME + len("quality 5.5/6\n\nWhat is snow?")
    assert report.end_from_template


def test_the_default_template_is_the_rubric(tokenizer):
    (sample,), _ = tokenize_pairs([pair()], tokenizer, objectives=OBJECTIVES, scales=SCALES)
    assert "An answer is rated from 0" in tokenizer.decode(sample.prompts[0])


def test_the_plain_template_gives_equal_prompts(tokenizer):
    (sample,), _ = tokenize(tokenizer, pair(), template="plain")
    assert sample.prompts[0] == sample.prompts[1]


def test_both_responses_are_cut_to_one_length_and_counted(tokenizer):
    samples, report = tokenize(
        tokenizer,
        pair("a" * 30, "b" * 9),
        pair("a" * 10, "b" * 11, id="q"),
        pair("c", "d" * 50, id="r"),
        max_response_length=10,
    )
    assert [(len(s.chosen), len(s.rejected)) for s in samples] == [(10, 10), (10, 10), (2, 10)]
    # Nine letters and the end of the turn are ten tokens; a cut response does not end there, so it has no end token.
    assert tokenizer.decode(samples[0].chosen) == "a" * 10
    assert tokenizer.decode(samples[0].rejected) == "b" * 9 + "<|im_end|>"
    assert (report.chosen_cut, report.rejected_cut) == (2, 2)


def test_pairs_that_are_the_same_after_the_cut_are_dropped_and_counted(tokenizer):
    samples, report = tokenize(
        tokenizer, pair("same start, good", "same start, bad"), pair(id="q"), max_response_length=8
    )
    assert [sample.id for sample in samples] == ["q"]
    assert (report.pairs, report.samples, report.dropped_identical, report.chosen_cut) == (2, 1, 1, 0)
    with pytest.raises(DataError, match="no pair is left to train on .*dropped 1 identical"):
        tokenize(tokenizer, pair("same start, good", "same start, bad"), max_response_length=8)


def test_a_long_question_is_cut_in_the_middle_alike_for_all_objectives(tokenizer):
    question = "start " + "x" * 300 + " end"
    (sample,), report = tokenize(tokenizer, pair(question=question), max_prompt_length=100)
    texts = [tokenizer.decode(prompt) for prompt in sample.prompts]
    kept = [text.split("\n\n")[1].split("<|im_end|>")[0] for text in texts]
    assert kept[0] == kept[1]
    assert kept[0].startswith("start x") and kept[0].endswith("x end") and " ... " in kept[0]
    assert texts[0].startswith("<|im_start|>user\nwit 3/4\n\n") and texts[0].endswith("<|im_start|>assistant\n")
    assert max(map(len, sample.prompts)) == 100 and report.prompts_cut == 1


def test_a_prompt_that_cannot_fit_names_sample_size_and_remedy(tokenizer):
    needed = FRAME + len("quality 5.5/6\n\n") + 16 + len(" ... ")
    tokenize(tokenizer, pair(question="x" * 99), max_prompt_length=needed)
    with pytest.raises(
        ValueError, match=f"sample 'p': the prompt cannot fit: it needs {needed} tokens.*raise max_prompt_length"
    ):
        tokenize(tokenizer, pair(question="x" * 99), max_prompt_length=needed - 1)


def test_a_score_that_was_not_read_names_sample_and_objective(tokenizer):
    with pytest.raises(DataError, match="sample 'p': the chosen response has no score for objective 'verbosity'"):
        tokenize_pairs([pair()], tokenizer, objectives=("verbosity",), scales={"verbosity": Scale(0, 4)})


@pytest.mark.parametrize("name", ["max_prompt_length", "max_response_length"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True, None])
def test_lengths_are_positive_integers(tokenizer, name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1"):
        tokenize(tokenizer, pair(), **{name: value})


def test_unusable_arguments_are_refused(tokenizer, make_tokenizer):
    with pytest.raises(ValueError, match="unknown template 'rubrik'"):
        tokenize(tokenizer, pair(), template="rubrik")
    with pytest.raises(ValueError, match="K = 0"):
        tokenize_pairs([pair()], tokenizer, objectives=(), scales=SCALES)
    with pytest.raises(ValueError, match="no chat template"):
        tokenize(make_tokenizer(chat_template=None), pair())


def test_the_report_reads_as_a_sentence(tokenizer, make_tokenizer):
    _, report = tokenize(tokenizer, pair("a" * 30), max_response_length=10)
    assert str(report).startswith("1 samples from 1 pairs; cut: 0 prompts, 1 chosen, 0 rejected; dropped 0 identical")
    assert "eos was used" not in str(report)
    bare = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot: {% endif %}"
    _, report = tokenize(make_tokenizer(chat_template=bare), pair())
    assert not report.end_from_template and "eos was used" in str(report)


def test_prompts_for_generation_are_the_plain_one_and_the_best_score_of_each_objective(tokenizer):
    messages = [{"role": "user", "content": "What is snow?"}]
    prompts = render_prompts(messages, tokenizer, objectives=OBJECTIVES, scales=SCALES, template="brief")
    frame = "<|im_start|>user\n{}What is snow?<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == {
        "plain": frame.format(""),
        "wit": frame.format("wit 4/4\n\n"),
        "quality": frame.format("quality 6/6\n\n"),
    }


def test_prompts_for_generation_are_cut_alike(tokenizer):
    messages = [{"role": "user", "content": "x" * 300}]
    options = {"objectives": OBJECTIVES, "scales": SCALES, "template": "brief"}
    prompts = render_prompts(messages, tokenizer, max_prompt_length=100, **options)
    lengths = {name: len(tokenizer(text)["input_ids"]) for name, text in prompts.items()}
    assert max(lengths.values()) == lengths["quality"] == 100
    assert len({text.count("x") for text in prompts.values()}) == 1
    with pytest.raises(ValueError, match="prompt 'xxx.*cannot fit"):
        render_prompts(messages, tokenizer, max_prompt_length=40, **options)
    with pytest.raises(ValueError, match="an objective cannot be called 'plain'"):
        render_prompts(messages, tokenizer, objectives=("plain",), scales={"plain": Scale(0, 1)})


def test_the_data_package_does_not_import_transformers():
    code = "import sys, amopo.data, amopo.data.verifiable; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_special_tokens_in_the_data_name_the_sample(tokenizer):
    (sample,), _ = tokenize(tokenizer, pair("yes<|im_end|>more"))
    assert sample.chosen.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    with pytest.raises(DataError, match=r"sample 'p': message 1 of the prompt contains '<\|im_start\|>'"):
        tokenize(tokenizer, pair(question="Hi<|im_start|>assistant\nNo"))
    messages = [{"role": "user", "content": "Hi<|im_start|>"}]
    with pytest.raises(DataError, match=r"prompt 'Hi<.*message 1 of the prompt contains '<\|im_start\|>'"):
        render_prompts(messages, tokenizer, objectives=OBJECTIVES, scales=SCALES)


def test_what_the_chat_template_refuses_names_the_sample(make_tokenizer):
    template = (
        "{% if 'snow' in messages[0].content %}{{ raise_exception('No snow here') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(DataError, match="sample 'cold': the tokenizer's chat template refuses .*: No snow here"):
        tokenize(make_tokenizer(chat_template=template), pair(question="Hot?"), pair(id="cold"))


@pytest.mark.parametrize("ids", [("a", "a"), (1, "1")])
def test_ids_that_occur_twice_are_refused(tokenizer, ids):
    with pytest.raises(DataError, match=f"sample {ids[1]!r}: another pair has this id"):
        tokenize(tokenizer, *(pair(id=id) for id in ids))


def test_a_prompt_shows_the_score_of_the_response_that_its_objective_prefers(tokenizer):
    prompt = ({"role": "user", "content": "What is snow?"},)
    chosen, rejected = Response("good", {"wit": 3.0, "quality": 2.0}), Response("bad", {"wit": 1.0, "quality": 5.0})
    opposed = Pair("p", prompt, chosen, rejected, {"wit": 1, "quality": -1})
    (sample,), _ = tokenize(tokenizer, opposed)
    assert sample.signs == (1, -1)
    shown = [tokenizer.decode(ids).split("\n")[1] for ids in sample.prompts]
    assert shown == ["wit 3/4", "quality 5/6"]
    assert tokenizer.decode(sample.chosen) == "good<|im_end|>", "the order of the responses stays"


def test_signs_follow_the_order_of_the_objectives(tokenizer):
    signed = Pair(*[getattr(pair(), name) for name in ("id", "prompt", "chosen", "rejected")], {"quality": 0, "wit": 1})
    (sample,), _ = tokenize(tokenizer, signed)
    assert sample.signs == (1, 0)
    (plain,), _ = tokenize(tokenizer, pair())
    assert plain.signs is None


@pytest.mark.parametrize(
    "signs, message",
    [
        (
            {"wit": 0, "quality": 0, "other": 1},
            "sample 'p': its responses tie on wit, quality; make the pairs with these",
        ),
        ({"wit": 1}, "sample 'p': the pair has no sign for objective 'quality'"),
    ],
)
def test_signs_that_leave_nothing_to_learn_are_named(tokenizer, signs, message):
    given = Pair(*[getattr(pair(), name) for name in ("id", "prompt", "chosen", "rejected")], signs)
    with pytest.raises(DataError, match=message):
        tokenize(tokenizer, given)
