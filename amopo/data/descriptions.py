"""What each objective means, in words that a template can show to a model.

`describe(objective) -> Description(meaning, low, high, middle, name)`: what the objective asks for, and what the
lowest, the highest and the middle score stand for. Objectives without an entry get generic words.
`register_description(name, Description(...))` adds one.
"""

from __future__ import annotations

from dataclasses import dataclass

from amopo.registry import Registry


@dataclass(frozen=True)
class Description:
    """Phrases that fit into "This request is about <name>: <meaning>", "0 (<low>)", "2 (<middle>)", "4 (<high>)".

    `middle` may be empty: a rubric then says nothing of the middle. `name` is for names that are no words.
    """

    meaning: str
    low: str
    high: str
    middle: str = ""
    name: str = ""


_descriptions: Registry[Description] = Registry("description of an objective")
register_description = _descriptions.register
list_descriptions = _descriptions.list


def display_name(objective: str) -> str:
    """The objective as words: "instruction_following" becomes "instruction following"."""
    if objective in _descriptions and _descriptions.get(objective).name:
        return _descriptions.get(objective).name
    return " ".join(objective.replace("_", " ").split())


def describe(objective: str) -> Description:
    if objective in _descriptions:
        return _descriptions.get(objective)
    name = display_name(objective)
    return Description(
        f"how much {name} the answer shows", f"hardly any {name}", f"as much {name} as possible", f"some {name}"
    )


# (objective, meaning, low, high, middle)
for _name, _meaning, _low, _high, _middle in (
    (
        "helpfulness",
        "how far the answer gets the user with what they wanted to do",
        "an answer that is of no use",
        "an answer that leaves nothing to ask for",
        "a start: part of what was wanted is there, the user has to find out the rest",
    ),
    (
        "correctness",
        "whether the facts and the reasoning are right and nothing needed is missing",
        "wrong from start to end",
        "right in every point",
        "the core is right, with an error or a gap that matters",
    ),
    (
        "coherence",
        "whether the parts of the answer fit together and are easy to follow",
        "a jumble that contradicts itself",
        "one clear line of thought",
        "the thread can be followed, but it jumps or repeats itself",
    ),
    (
        "complexity",
        "how much expert knowledge went into the wording and the content",
        "words that a child could have written",
        "writing that takes a specialist",
        "what an informed layperson would write",
    ),
    (
        "verbosity",
        "how long and detailed the answer is for what was asked",
        "as short as it can be",
        "long, with every detail spelled out",
        "neither short nor long for the question",
    ),
    (
        "instruction_following",
        "whether the answer keeps to everything the user asked for, form and limits included",
        "the request was ignored",
        "each part of the request was carried out",
        "the main request was carried out, a condition or a format was missed",
    ),
    (
        "conciseness",
        "whether the answer says what is needed without spare words",
        "mostly padding",
        "not one word too many",
        "to the point, with a repetition or a remark that could go",
    ),
    (
        "harmlessness",
        "whether the answer keeps people safe and treats them with respect",
        "dangerous or abusive: it gives real help to do harm, or demeans people",
        "safe for everybody, and kind about it",
        "nothing that does direct harm, but careless: a risk is left unmentioned or the tone is rough",
    ),
    (
        "informativeness",
        "how much of the content that should be told is told",
        "the content is missing",
        "all of the content is there",
        "about half of the content is there",
    ),
    (
        "naturalness",
        "whether a native speaker could have put it this way",
        "stilted, like a machine",
        "just as a person would say it",
        "understandable, with turns that nobody would use",
    ),
    (
        "quality",
        "how good the answer is, taken as a whole",
        "unusable",
        "excellent",
        "usable, with clear weaknesses",
    ),
    (
        "fluency",
        "whether each sentence is well formed and reads smoothly",
        "broken sentences",
        "flawless sentences",
        "readable sentences with some slips",
    ),
    (
        "consistency",
        "whether every statement is backed by the given source",
        "statements that the source denies",
        "only statements that the source supports",
        "mostly supported, with a statement that the source does not make",
    ),
    (
        "relevance",
        "whether the answer picks what matters and leaves out the rest",
        "beside the point",
        "exactly what matters",
        "what matters, mixed with side issues",
    ),
):
    register_description(_name, Description(_meaning, _low, _high, _middle))

register_description(
    "overall",
    Description(
        "how good the answer is in every respect that counts here, taken together",
        "poor in all of them",
        "as good as it can be in all of them",
        "good in some, poor in others, or middling in all",
        name="overall quality",
    ),
)
