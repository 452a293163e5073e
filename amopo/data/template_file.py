"""Templates that users keep in files.

    load_template("mine.txt")    the whole file is the text, placed before the user's message
    load_template("mine.yaml")   keys: text (needed), position: prefix | suffix, scale: [low, high], name

The text holds placeholders in braces:

    {objective}     its name, in words
    {description}   what it asks for, see `amopo.data.descriptions`
    {score}         the score to reach
    {low} {high}    the ends of its scale

`{{` and `}}` are braces themselves. At least one of {objective} and {description} is needed, or the K prompts would be
the same. `scale` is for a text that writes its scale out ("from 1 to 5") instead of {low} and {high}: objectives on
another scale are then refused, since the model would be told a wrong one.

Raises `DataError` that names file and remedy: no such file, empty, not UTF-8, an unknown or broken placeholder, bad
YAML, unknown, missing or wrong fields.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from amopo.data.descriptions import describe, display_name
from amopo.data.scales import as_scale
from amopo.data.schema import DataError, Scale, show_number

TEXT_SUFFIXES, YAML_SUFFIXES = (".txt",), (".yaml", ".yml")
PLACEHOLDERS = ("objective", "description", "score", "low", "high")
FIELDS = ("text", "position", "scale", "name")
POSITIONS = ("prefix", "suffix")


def is_template_file(name: object) -> bool:
    """Whether a template's name is that of a file."""
    return isinstance(name, str | PathLike) and Path(name).suffix.lower() in (*TEXT_SUFFIXES, *YAML_SUFFIXES)


def read_template_file(path: str | PathLike[str]) -> dict[str, Any]:
    """The file's fields, checked: text, position, scale (a `Scale` or None), name."""
    path = Path(path)
    if not is_template_file(path):
        raise DataError(
            f"a template file ends with {', '.join((*TEXT_SUFFIXES, *YAML_SUFFIXES))}; rename it", file=path
        )
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError("the template file does not exist; check the path", file=path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"the template is not UTF-8 text ({error.reason}); save it as UTF-8", file=path) from None
    except OSError as error:
        raise DataError(f"the template cannot be read ({error}); give a readable file", file=path) from None
    fields = _read_yaml(content, path) if path.suffix.lower() in YAML_SUFFIXES else {"text": content}
    fields = {"position": "prefix", "scale": None, "name": path.name, **fields}
    fields["text"] = _checked_text(fields["text"], path)
    if fields["position"] not in POSITIONS:
        raise DataError(f"position must be prefix or suffix, but is {fields['position']!r}", file=path)
    if not isinstance(fields["name"], str) or not fields["name"].strip():
        raise DataError(f"name must be text, but is {fields['name']!r}", file=path)
    if fields["scale"] is not None:
        try:
            fields["scale"] = as_scale("of the template", fields["scale"])
        except DataError:
            raise DataError(f"scale must be [low, high], but is {fields['scale']!r}", file=path) from None
    return fields


def write_text(text: str, objective: str, score: float | None, scale: Scale) -> str:
    """The template's text for one objective."""
    if score is None and "score" in _names(text):
        raise ValueError(f"the template shows {{score}}, but there is none for objective {objective!r}")
    return text.format(
        objective=display_name(objective),
        description=describe(objective).meaning,
        score="" if score is None else show_number(score),
        low=show_number(scale.low),
        high=show_number(scale.high),
    )


def _read_yaml(content: str, path: Path) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError:
        raise DataError(
            "a YAML template needs PyYAML: pip install 'amopo[hf]', or write the text into a .txt file", file=path
        ) from None
    try:
        loaded = yaml.safe_load(content)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or error
        raise DataError(
            f"not valid YAML ({problem}); put a text with colons or braces into a block: text: |",
            file=path,
            line=mark.line + 1 if mark else None,
        ) from None
    if not isinstance(loaded, dict):
        raise DataError(
            f"a YAML template holds keys (text: ..., position: prefix), not {type(loaded).__name__}", file=path
        )
    for key in loaded:
        if key not in FIELDS:
            raise DataError(f"unknown field {key!r}; known: {', '.join(FIELDS)}", file=path)
    if "text" not in loaded:
        raise DataError('the field "text" is missing; it holds what the template says', file=path)
    return loaded


def _checked_text(text: object, path: Path) -> str:
    if not isinstance(text, str):
        raise DataError(f"text must be text, but is {text!r}; put it into quotes", file=path)
    text = text.strip()
    if not text:
        raise DataError("the template is empty; write what a prompt should say of an objective", file=path)
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        names = _names(text)
    except ValueError as error:
        raise DataError(
            f"broken placeholder ({error}); known: {known}; write {{{{ and }}}} for braces that are text", file=path
        ) from None
    for name in names:
        if name not in PLACEHOLDERS:
            raise DataError(
                f"unknown placeholder {{{name}}}; known: {known}; write {{{{ and }}}} for braces that are text",
                file=path,
            )
    if not {"objective", "description"} & set(names):
        raise DataError(
            "the text has neither {objective} nor {description}, so the prompts of all objectives would be the same; "
            "add one of them",
            file=path,
        )
    return text


def _names(text: str) -> list[str]:
    """Placeholders of a text; ValueError for what `str.format` could not fill, or would fill in another way."""
    names = []
    for _, name, form, conversion in string.Formatter().parse(text):
        if name is None:
            continue
        if form or conversion:
            raise ValueError(f"{{{name}}} takes no format")
        names.append(name)
    return names
