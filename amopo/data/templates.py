"""Templates f(x, d): the user's message x with one objective d written into it.

    get_template("rubric").render(messages, objective="helpfulness", score=3.0, scale=Scale(0, 4)) -> new messages

The text goes into the last user message, set off by a blank line. `messages` is never changed: rendering K objectives
from the same messages gives K prompts with one template text each. `score=None` gives the text without a score.

  "rubric"         default; before x: names and explains the objective, its scale (ends and middle), the score to reach
  "rubric_suffix"  the same text after x
  "brief"          before x: one short line, for small models
  "plain"          x untouched, as at inference

`register_template(name)` adds one: a `Template`, or a function (objective, score, scale) -> text. A name that ends with
.txt, .yaml or .yml is that of a file, see `amopo.data.template_file`. A score outside its scale, a scale that is not
the one the template writes out, messages that do not end with the user, and a template without text raise ValueError.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike

from amopo.data.descriptions import describe, display_name
from amopo.data.schema import Message, Scale, is_finite_number, show_number
from amopo.data.template_file import POSITIONS, is_template_file, read_template_file, write_text
from amopo.registry import Registry

SEPARATOR = "\n\n"
WriteText = Callable[[str, float | None, Scale], str]


@dataclass(frozen=True)
class Template:
    """One way to write an objective into a prompt. `write=None` is the identity.

    `scale`: the one that its text writes out, if it does; objectives on another scale are refused.
    """

    name: str
    write: WriteText | None
    position: str = "prefix"
    scale: Scale | None = None

    def __post_init__(self) -> None:
        if self.position not in POSITIONS:
            raise ValueError(
                f"template {self.name!r}: position must be one of {', '.join(POSITIONS)}, not {self.position!r}"
            )

    def text(self, *, objective: str, score: float | None, scale: Scale) -> str:
        """What the template says about the objective; empty for the identity."""
        if self.scale is not None and scale != self.scale:
            raise ValueError(
                f"template {self.name!r} tells the model a scale of {self.scale}, but objective {objective!r} is "
                f"scored on {scale}; declare the right scale, or let the template show {{low}} and {{high}}"
            )
        if score is not None and (not is_finite_number(score) or score not in scale):
            raise ValueError(
                f"template {self.name!r}: the score {score!r} for objective {objective!r} is not on its scale {scale}; "
                f"pass a score on the scale, or None to show none"
            )
        if self.write is None:
            return ""
        text = self.write(objective, score, scale)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"template {self.name!r} wrote {text!r} for objective {objective!r}; it must write text")
        return text

    def render(
        self, messages: Sequence[Message], *, objective: str, score: float | None, scale: Scale
    ) -> list[Message]:
        if not messages or messages[-1]["role"] != "user":
            raise ValueError(f"template {self.name!r} needs messages whose last one is from the user")
        text = self.text(objective=objective, score=score, scale=scale)
        copies: list[Message] = [{"role": message["role"], "content": message["content"]} for message in messages]
        if text:
            parts = (text, copies[-1]["content"])
            copies[-1]["content"] = SEPARATOR.join(parts if self.position == "prefix" else reversed(parts))
        return copies


def _write_rubric(objective: str, score: float | None, scale: Scale) -> str:
    name, description = display_name(objective), describe(objective)
    low, high = show_number(scale.low), show_number(scale.high)
    text = (
        f"This request is about {name}: {description.meaning}. "
        f"An answer is rated from {low} ({description.low}) to {high} ({description.high})"
    )
    if description.middle:
        text += f"; {show_number((scale.low + scale.high) / 2)} stands for the middle ({description.middle})"
    text += "."
    if score is None:
        return text
    return f"{text} Give an answer that would be rated {show_number(score)} for {name}."


def _write_brief(objective: str, score: float | None, scale: Scale) -> str:
    name = display_name(objective)
    return name if score is None else f"{name} {show_number(score)}/{show_number(scale.high)}"


_templates: Registry[Template] = Registry("template")
list_templates = _templates.list


def get_template(template: str | Template) -> Template:
    """The template of that name, or in that file; a `Template` is returned as it is."""
    if isinstance(template, Template):
        return template
    return load_template(template) if is_template_file(template) else _templates.get(template)


def load_template(path: str | PathLike[str]) -> Template:
    """The template in a .txt or .yaml file; see `amopo.data.template_file`."""
    fields = read_template_file(path)
    return Template(fields["name"], functools.partial(write_text, fields["text"]), fields["position"], fields["scale"])


def register_template(
    name: str, template: Template | WriteText | None = None, *, position: str = "prefix", replace: bool = False
) -> Template | WriteText | Callable[[Template | WriteText], Template | WriteText]:
    """Adds a template; without `template`, a decorator. `position` is for functions: a `Template` has its own."""

    def add(given: Template | WriteText) -> Template | WriteText:
        if not isinstance(given, Template) and not callable(given):
            raise TypeError(f"template {name!r} must be a Template or a function (objective, score, scale) -> text")
        _templates.register(
            name, given if isinstance(given, Template) else Template(name, given, position), replace=replace
        )
        return given

    return add if template is None else add(template)


register_template("rubric", _write_rubric)
register_template("rubric_suffix", _write_rubric, position="suffix")
register_template("brief", _write_brief)
register_template("plain", Template("plain", None))
