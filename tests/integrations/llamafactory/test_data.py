"""AMoPO's data through LLaMA-Factory's loader, template and collator."""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip("llamafactory.hparams", reason="LLaMA-Factory is not installed here; run make test-llamafactory")

from llamafactory.data import get_template_and_fix_tokenizer  # noqa: E402
from llamafactory.data.parser import DatasetAttr  # noqa: E402
from llamafactory.hparams import DataArguments  # noqa: E402

from amopo.data.verifiable import generate_tasks  # noqa: E402
from amopo.integrations.llamafactory.arguments import AMoPOFinetuningArguments, amopo_settings  # noqa: E402
from amopo.integrations.llamafactory.collator import AMoPODataCollator  # noqa: E402
from amopo.integrations.llamafactory.data import AMoPODatasetConverter, AMoPODatasetProcessor  # noqa: E402
from amopo.trainer.scratch import train_tokenizer  # noqa: E402

RELEASED = {
    "prompt": "What is 2 + 3?",
    "chosen": {"response": "It is 5.", "helpfulness": "3", "correctness": "4", "instruction_following": None},
    "rejected": {"response": "Six, I think.", "helpfulness": "2", "correctness": "0", "instruction_following": None},
}
GROUPED = {
    "id": "q1",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 3?"}],
    "responses": [
        {"text": "Five or so.", "scores": {"helpfulness": 2, "correctness": 3}},
        {"text": "Six, I think.", "scores": {"helpfulness": 2, "correctness": 0}},
        {"text": "It is 5.", "scores": {"helpfulness": 3, "correctness": 4}},
    ],
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([task.prompt for task in generate_tasks(50, seed=0)], vocab_size=400)


def settings(**changes):
    given = {"amopo_objectives": "helpfulness,correctness", "amopo_scales": "helpfulness=0:4,correctness=0:4"}
    given |= {"amopo_template": "brief", **changes}
    return amopo_settings(AMoPOFinetuningArguments(stage="amopo", **given))


def convert(row, amopo=None, **columns):
    data_args = DataArguments(dataset_dir=".", template="default", cutoff_len=256)
    data_args.amopo = amopo
    attr = DatasetAttr("file", dataset_name="x", formatting="amopo", ranking=True)
    attr.join({"formatting": "amopo", "ranking": True, "columns": {"prompt": "prompt", **columns}})
    return AMoPODatasetConverter(attr, data_args)(row)


def process(rows, tokenizer, amopo, cutoff_len=256):
    data_args = DataArguments(dataset_dir=".", template="default", cutoff_len=cutoff_len)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    data_args.amopo = amopo
    aligned = [convert(row, amopo) for row in rows]
    columns = {key: [row[key] for row in aligned] for key in aligned[0]}
    columns["_amopo_scores"] = [row.get("_amopo_scores") for row in aligned]
    return AMoPODatasetProcessor(template, tokenizer, None, data_args).preprocess_dataset(columns)


@pytest.mark.parametrize("row", [RELEASED, GROUPED], ids=["released", "grouped"])
def test_both_forms_give_the_same_pair(row):
    aligned = convert(row, settings())
    assert aligned["_prompt"] == [{"role": "user", "content": "What is 2 + 3?"}]
    assert [r["content"] for r in aligned["_response"]] == ["It is 5.", "Six, I think."]
    assert aligned["_system"] == ("Be brief." if row is GROUPED else "")
    assert json.loads(aligned["_amopo_scores"])["chosen"] == {"helpfulness": 3.0, "correctness": 4.0}


def test_a_sample_has_one_prompt_per_objective_with_the_chosen_score(tokenizer):
    samples = process([RELEASED], tokenizer, settings())
    texts = [tokenizer.decode(ids) for ids in samples["prompt_ids"][0]]
    assert texts == [
        "Human: helpfulness 3/4\n\nWhat is 2 + 3?<|end|>\nAssistant:",
        "Human: correctness 4/4\n\nWhat is 2 + 3?<|end|>\nAssistant:",
    ]
    ends = [tokenizer.decode(samples[side][0]) for side in ("chosen_ids", "rejected_ids")]
    assert ends[0].rstrip("\n").startswith("It is 5.") and ends[1].startswith("Six, I think.")
    assert samples["objectives"] == [["helpfulness", "correctness"]]


def test_the_same_data_serve_llamafactorys_own_losses(tokenizer):
    ours = process([RELEASED], tokenizer, settings(amopo_template="plain"))
    pairs = process([RELEASED], tokenizer, None)
    assert ours["prompt_ids"][0][0] + ours["chosen_ids"][0] == pairs["chosen_input_ids"][0]
    assert ours["prompt_ids"][0][1] + ours["rejected_ids"][0] == pairs["rejected_input_ids"][0]
    assert [label for label in pairs["chosen_labels"][0] if label != -100] == ours["chosen_ids"][0]


def test_long_prompts_are_cut_alike_and_keep_template_and_header(tokenizer):
    row = {**RELEASED, "prompt": "What is 2 + 3? " * 60}
    samples = process([row], tokenizer, settings(), cutoff_len=160)
    for ids in samples["prompt_ids"][0]:
        text = tokenizer.decode(ids)
        assert len(ids) + max(len(samples["chosen_ids"][0]), len(samples["rejected_ids"][0])) <= 160
        assert text.startswith("Human: ") and "/4" in text and text.endswith("Assistant:") and " ... " in text
    with pytest.raises(ValueError, match="cutoff_len"):
        process([row], tokenizer, settings(), cutoff_len=40)


def test_ties_are_dropped(tokenizer):
    tie = {**GROUPED, "id": "tie", "responses": [dict(GROUPED["responses"][0], text=text) for text in ("a", "b")]}
    assert len(process([tie, GROUPED], tokenizer, settings())["prompt_ids"]) == 1


def test_a_batch_is_sample_major_with_labels_on_responses(tokenizer):
    data_args = DataArguments(dataset_dir=".", template="default")
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    other = {**RELEASED, "prompt": "And 4 + 4?"}
    samples = process([RELEASED, other], tokenizer, settings())
    features = [{key: values[i] for key, values in samples.items()} for i in range(2)]
    collator = AMoPODataCollator(
        template=template, tokenizer=tokenizer, processor=None, pad_to_multiple_of=8, amopo=settings()
    )
    batch = collator(features)
    assert batch["input_ids"].shape[0] == 8 and batch["input_ids"].shape[1] % 8 == 0
    rows = [(s, k, side) for s in range(2) for k in range(2) for side in ("chosen_ids", "rejected_ids")]
    for row, (sample, objective, side) in enumerate(rows):
        prompt, response = samples["prompt_ids"][sample][objective], samples[side][sample]
        length = len(prompt) + len(response)
        assert batch["input_ids"][row, :length].tolist() == prompt + response
        assert batch["attention_mask"][row].sum() == length
        assert batch["labels"][row][batch["labels"][row] != -100].tolist() == response
    assert len(set(batch["amopo_sample_ids"].tolist())) == 2

    changed = dataclasses.replace(collator, amopo=settings(amopo_objectives="correctness"))
    with pytest.raises(ValueError, match="the tokenized data have the objectives helpfulness, correctness"):
        changed(features)


def without(row, side, key):
    return {**row, side: {name: value for name, value in row[side].items() if name != key}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(RELEASED, "chosen", "correctness"), "no score for objective 'correctness'"),
        (without(RELEASED, "rejected", "response"), "rejected has no text"),
        ({**RELEASED, "chosen": {**RELEASED["chosen"], "correctness": "7"}}, "outside its scale 0 to 4"),
        ({**RELEASED, "chosen": "It is 5."}, "chosen must be an object"),
        ({"prompt": "x"}, "no column 'chosen'"),
        ({**GROUPED, "responses": GROUPED["responses"][:1]}, "1 response"),
        ({**GROUPED, "scales": {"correctness": [1, 5]}}, "its scale of 'correctness' is 1 to 5"),
    ],
)
def test_rows_that_cannot_be_used_are_named(row, message, tokenizer):
    with pytest.raises(ValueError, match=message) as caught:
        process([row], tokenizer, settings())
    assert "sample" in str(caught.value) or "column" in str(caught.value)


def test_images_are_refused():
    with pytest.raises(ValueError, match="AMoPO data are text"):
        convert({**RELEASED, "images": ["a.png"]}, settings(), images="images", chosen="chosen", rejected="rejected")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"amopo_objectives": None}, "needs amopo_objectives"),
        ({"amopo_objectives": "fluency"}, "amopo_scales"),
        ({"amopo_objectives": "helpfulness", "amopo_scales": None}, "amopo_scales"),
        ({"amopo_weights": "1,2,3"}, "must be 2 numbers"),
        ({"amopo_weights": "loudest"}, "gaussian"),
        ({"amopo_template": "loud"}, "rubric"),
        ({"pref_ftx": 0.5}, "pref_ftx=0.5 has no effect"),
        ({"ld_alpha": 0.5}, "ld_alpha=0.5 has no effect"),
        ({"pref_beta": -1.0}, "beta must be a positive number"),
        ({"amopo_preset": "official", "simpo_gamma": 1.0}, "fixes gamma"),
    ],
)
def test_arguments_that_cannot_be_right_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        settings(**given)


def test_arguments_of_amopo_beside_another_loss_are_refused():
    with pytest.raises(ValueError, match="amopo_objectives has no effect with pref_loss: simpo"):
        AMoPOFinetuningArguments(stage="dpo", pref_loss="simpo", amopo_objectives="correctness")


def test_defaults_are_those_of_the_loss():
    amopo = AMoPOFinetuningArguments(stage="amopo", amopo_objectives="correctness", amopo_scales="correctness=0:4")
    assert (amopo.stage, amopo.pref_loss, amopo.use_ref_model) == ("dpo", "amopo", False)
    assert (amopo.pref_beta, amopo.simpo_gamma) == (0.8, 0.0)
    dpo = AMoPOFinetuningArguments(stage="dpo")
    assert (dpo.pref_loss, dpo.use_ref_model, dpo.pref_beta, dpo.simpo_gamma) == ("sigmoid", True, 0.1, 0.5)
    assert settings(amopo_scales="fluency=1:6", amopo_objectives="fluency").scales["fluency"].high == 6
    assert settings(amopo_scales={"fluency": [1, 6]}, amopo_objectives=["fluency"]).objectives == ("fluency",)
    assert settings(amopo_weights=[1, 3]).weights == (1.0, 3.0)
