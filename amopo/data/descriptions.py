"""What each objective means, in words that a template can show to a model.

`describe(objective) -> Description(meaning, low, high)`: what the objective asks for, what the lowest and the highest
score stand for. Objectives without an entry get generic words. `register_description(name, Description(...))` adds one.
"""

from __future__ import annotations

from dataclasses import dataclass

from amopo.registry import Registry


@dataclass(frozen=True)
class Description:
    """Three phrases that fit into "It is about <meaning>", "<score> stands for <low>"."""

    meaning: str
    low: str
    high: str


_descriptions: Registry[Description] = Registry("description of an objective")
register_description = _descriptions.register
list_descriptions = _descriptions.list


def display_name(objective: str) -> str:
    """The objective as words: "instruction_following" becomes "instruction following"."""
    return " ".join(objective.replace("_", " ").split())


def describe(objective: str) -> Description:
    if objective in _descriptions:
        return _descriptions.get(objective)
    name = display_name(objective)
    return Description(f"how much {name} the answer shows", f"hardly any {name}", f"as much {name} as possible")


for _name, _meaning, _low, _high in (
    (
        "helpfulness",
        "how far the answer gets the user with what they wanted to do",
        "an answer that is of no use",
        "an answer that leaves nothing to ask for",
    ),
    (
        "correctness",
        "whether the facts and the reasoning are right and nothing needed is missing",
        "wrong from start to end",
        "right in every point",
    ),
    (
        "coherence",
        "whether the parts of the answer fit together and are easy to follow",
        "a jumble that contradicts itself",
        "one clear line of thought",
    ),
    (
        "complexity",
        "how much expert knowledge went into the wording and the content",
        "words that a child could have written",
        "writing that takes a specialist",
    ),
    (
        "verbosity",
        "how long and detailed the answer is for what was asked",
        "as short as it can be",
        "long, with every detail spelled out",
    ),
    (
        "instruction_following",
        "whether the answer keeps to everything the user asked for, form and limits included",
        "the request was ignored",
        "each part of the request was carried out",
    ),
    (
        "conciseness",
        "whether the answer says what is needed without spare words",
        "mostly padding",
        "not one word too many",
    ),
    (
        "harmlessness",
        "whether the answer keeps people safe and treats them with respect",
        "dangerous or abusive",
        "safe for everybody",
    ),
    (
        "informativeness",
        "how much of the content that should be told is told",
        "the content is missing",
        "all of the content is there",
    ),
    (
        "naturalness",
        "whether a native speaker could have put it this way",
        "stilted, like a machine",
        "just as a person would say it",
    ),
    (
        "quality",
        "how good the answer is, taken as a whole",
        "unusable",
        "excellent",
    ),
    (
        "fluency",
        "whether each sentence is well formed and reads smoothly",
        "broken sentences",
        "flawless sentences",
    ),
    (
        "consistency",
        "whether every statement is backed by the given source",
        "statements that the source denies",
        "only statements that the source supports",
    ),
    (
        "relevance",
        "whether the answer picks what matters and leaves out the rest",
        "beside the point",
        "exactly what matters",
    ),
):
    register_description(_name, Description(_meaning, _low, _high))
