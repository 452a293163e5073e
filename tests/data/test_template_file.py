"""Templates in files: what they write, and what is refused by name of the file."""

from __future__ import annotations

import pytest

from amopo import templates
from amopo.data import DataError, Pair, Response, Scale, load_template, tokenize_pairs

SCALE = Scale(0, 4)
QUESTION = [{"role": "user", "content": "What is {snow}?"}]


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def shown(path, objective="instruction_following", score=3.5, scale=SCALE):
    return load_template(path).render(QUESTION, objective=objective, score=score, scale=scale)[-1]["content"]


def test_every_placeholder_of_a_text_file_is_filled(write):
    path = write("\n{objective} is {description}: {score} of {low}-{high}, {{kept}}\n")
    assert shown(path) == (
        "instruction following is whether the answer keeps to everything the user asked for, form and limits included: "
        "3.5 of 0-4, {kept}\n\nWhat is {snow}?"
    )


def test_a_yaml_file_says_where_the_text_stands(write):
    pytest.importorskip("yaml")
    path = write("text: |\n  Aim: {objective} {score}\nposition: suffix\nname: aims\n", "mine.yaml")
    assert shown(path) == "What is {snow}?\n\nAim: instruction following 3.5"
    assert load_template(path).name == "aims" and load_template(path).position == "suffix"


def test_a_path_is_a_template_wherever_a_name_is(write):
    path = write("[{objective}]")
    assert templates.get(str(path)).text(objective="wit", score=1, scale=SCALE) == "[wit]"


@pytest.mark.parametrize("score", [4.5, -1, float("nan")])
def test_a_score_off_its_scale_never_reaches_the_text(write, score):
    with pytest.raises(ValueError, match="is not on its scale 0 to 4"):
        shown(write("{objective} {score}"), score=score)


def test_a_scale_that_the_text_writes_out_must_be_the_objectives(write):
    pytest.importorskip("yaml")
    path = write("text: '{objective}: {score}, from 1 to 5'\nscale: [1, 5]\n", "mine.yml")
    assert shown(path, score=3, scale=Scale(1, 5)).startswith("instruction following: 3, from 1 to 5")
    with pytest.raises(ValueError, match="'mine.yml' tells the model a scale of 1 to 5, but .* is scored on 0 to 4"):
        shown(path, score=3)


def test_a_text_that_shows_the_score_needs_one(write):
    assert shown(write("{objective}"), score=None) == "instruction following\n\nWhat is {snow}?"
    with pytest.raises(ValueError, match=r"shows \{score\}, but there is none for objective"):
        shown(write("{objective} {score}"), score=None)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "t.txt",
            "{objective} {colour}",
            r"t.txt: unknown placeholder \{colour\}; known: \{objective\}, .* write \{\{",
        ),
        ("t.txt", "{objective} {}", r"t.txt: unknown placeholder \{\}"),
        ("t.txt", "{objective.upper}", r"t.txt: unknown placeholder \{objective.upper\}"),
        ("t.txt", "{objective} {score:.1f}", r"t.txt: broken placeholder \(\{score\} takes no format\)"),
        ("t.txt", "{objective} {score!r}", "t.txt: broken placeholder"),
        ("t.txt", "{objective} {score", "t.txt: broken placeholder"),
        ("t.txt", "{objective} }", "t.txt: broken placeholder"),
        ("t.txt", " \n", "t.txt: the template is empty; write"),
        ("t.txt", "Reach {score} of {high}.", r"t.txt: the text has neither \{objective\} nor \{description\}"),
        ("t.txt", b"{objective} \xff", "t.txt: the template is not UTF-8"),
        ("t.yaml", "position: suffix", 't.yaml: the field "text" is missing'),
        ("t.yaml", "text: '{objective}'\ncolour: red", "t.yaml: unknown field 'colour'; known: text, position"),
        ("t.yaml", "text: '{objective}'\nposition: middle", "t.yaml: position must be prefix or suffix"),
        ("t.yaml", "text: 3", "t.yaml: text must be text, but is 3"),
        ("t.yaml", "text: '{objective}'\nscale: [5, 1]", r"t.yaml: scale must be \[low, high\]"),
        ("t.yaml", "text: '{objective}'\nname: 3", "t.yaml: name must be text"),
        ("t.yaml", "a: b: c", r"t.yaml, line 1: not valid YAML .*text: \|"),
        ("t.yaml", "- {objective}", "t.yaml: a YAML template holds keys .*, not list"),
        ("t.yaml", "", "t.yaml: a YAML template holds keys .*, not NoneType"),
    ],
)
def test_what_cannot_be_used_names_the_file_and_the_remedy(write, name, content, message):
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    with pytest.raises(DataError, match=message):
        load_template(write(content, name))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone.txt: the template file does not exist"):
        templates.get(str(tmp_path / "gone.txt"))
    with pytest.raises(DataError, match=r"a template file ends with .txt, .yaml, .yml; rename it"):
        load_template(tmp_path / "mine.md")


def test_pairs_are_tokenised_with_it(write, tokenizer):
    pair = Pair("p", tuple(QUESTION), Response("good", {"wit": 3.0}), Response("bad", {"wit": 1.0}))
    path = write("<{objective} {score}>")
    (sample,), _ = tokenize_pairs([pair], tokenizer, objectives=["wit"], scales={"wit": SCALE}, template=str(path))
    assert "user\n<wit 3>\n\nWhat is {snow}?" in tokenizer.decode(sample.prompts[0])
    with pytest.raises(DataError, match="sample 'p': .* score 3.0 for objective 'wit' is not on its scale 0 to 2"):
        tokenize_pairs([pair], tokenizer, objectives=["wit"], scales={"wit": Scale(0, 2)}, template=str(path))
