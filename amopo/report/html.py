"""The page: one HTML file that needs nothing else.

Contract
--------
`page(runs, figures, pictures)` -> the HTML as text. `pictures[figure key]` holds one (panel, SVG source, link) per
panel; pictures stand in the page as data, the link names the file beside it. There is no script, and the content
security policy of the page allows none, nor anything from outside. Whatever came out of a file or a model goes through
`markup`, so that it shows as the text that it is. The same runs give the same page.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from amopo import __version__
from amopo.report import compare
from amopo.report.css import CSS
from amopo.report.figures.panel import Figure, Panel
from amopo.report.measured import Sample
from amopo.report.run import Run
from amopo.report.text import markup, shorten

LONGEST_RESPONSE = 6000  # characters that a sample shows
Pictures = Mapping[str, Sequence[tuple[Panel, str, str]]]


def page(runs: Sequence[Run], figures: Sequence[Figure], pictures: Pictures, *, notes: Sequence[str] = ()) -> str:
    names = ", ".join(shorten(run.name, 40) for run in runs[:3])
    title = f"amopo report: {names}" + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    style = f"\n{CSS.strip()}\n"
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    sections: list[tuple[str, str, str]] = [("runs", "Runs", _runs(runs, notes))]
    sections += [(figure.key, figure.title, _figure(figure, pictures.get(figure.key, ()))) for figure in figures]
    sections += [
        ("samples", "Samples of generations", _samples(runs)),
        ("settings", "Settings", _settings(runs)),
        ("versions", "Versions and machine", _versions(runs)),
        ("absent", "What is not here", _absent(runs)),
    ]
    links = "".join(f'<li><a href="#{key}">{markup(name)}</a></li>' for key, name, _ in sections)
    body = "\n".join(
        f'<section id="{key}">\n<h2>{markup(name)}</h2>\n{text}\n</section>' for key, name, text in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{markup(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{markup(title, line=True)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{markup(title, line=True)}</h1>
<p class="soft">Made by amopo {markup(__version__)} from what the trainer logged.
Nothing in this page is loaded from elsewhere.</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", values: bool = False) -> str:
    """A table that scrolls sideways by itself; the first column names the rows."""
    if not rows:
        return ""
    numeric = [
        not values and column > 0 and all(_is_number(row[column]) for row in rows) for column in range(len(header))
    ]
    mark = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(f'<th scope="col"{m}>{markup(name, line=True)}</th>' for name, m in zip(header, mark, strict=True))
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{m}>{markup(cell)}</td>" for cell, m in zip(rest, mark[1:], strict=True))
        lines.append(f'<tr><th scope="row">{markup(first, line=True)}</th>{cells}</tr>')
    name = f"<caption>{markup(title)}</caption>" if title else ""
    where = markup(title or "Overview", line=True)
    kind = ' class="values"' if values else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{where}, table"><table{kind}>{name}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def _is_number(text: str) -> bool:
    # an arrow joins the values before and after
    return re.fullmatch(r"[-+]?[\d.,]+%?( → [-+]?[\d.,]+)?( GiB)?|-|nan", text) is not None


def _runs(runs: Sequence[Run], notes: Sequence[str]) -> str:
    parts = [table(*compare.overview(runs), values=True)]
    parts.append(
        '<p class="caption">Loss and margin: the first and the last logged value, smoothed. Held-out accuracy and '
        "generated score: before → after. Tokens/s: the median of what was logged. "
        f"{compare.NONE} where a run does not say.</p>"
    )
    warned = [f"{run.name}: {note}" for run in runs for note in run.notes]
    parts += [
        f'<p class="note">{markup(note, line=True)}</p>' for note in (*warned, *compare.differences(runs), *notes)
    ]
    return "\n".join(parts)


def _figure(figure: Figure, pictures: Sequence[tuple[Panel, str, str]]) -> str:
    parts = [f'<p class="caption">{markup(figure.caption)}</p>'] if pictures else []
    panels = "\n".join(_panel(*picture) for picture in pictures)
    if panels:
        parts.append(f'<div class="panels">\n{panels}\n</div>')
    parts += [f'<p class="note">Not here: {markup(reason, line=True)}.</p>' for reason in figure.absent]
    return "\n".join(parts) or '<p class="note">Nothing to draw.</p>'


def _panel(panel: Panel, source: str, link: str) -> str:
    data = base64.b64encode(source.encode()).decode()
    return (
        f'<figure><a href="{markup(link)}"><img src="data:image/svg+xml;base64,{data}" '
        f'alt="{markup(panel.alt, line=True)}"></a></figure>'
    )


def _samples(runs: Sequence[Run]) -> str:
    """One box per prompt, in it before and after, or each run's after."""
    prompts = list(dict.fromkeys((sample.prompt, place) for run in runs for sample, place in _placed(run)))
    if not prompts:
        return '<p class="note">No run has saved samples; amopo train does for held-out prompts (--samples).</p>'
    boxes = []
    for number, (prompt, place) in enumerate(prompts, 1):
        answers = []
        for run in runs:
            found = [sample for sample, at in _placed(run) if (sample.prompt, at) == (prompt, place)]
            answers += list(_answers(run, found[0], len(runs) > 1)) if found else []
        boxes.append(
            f'<article class="sample"><h3>Prompt {number}</h3>\n{_text(prompt)}\n'
            f'<div class="answers">\n{"".join(answers)}</div></article>'
        )
    return (
        '<p class="caption">What the model wrote for the same prompts before and after training, the prompt given as '
        "it is. Control characters are shown by their pictures.</p>\n" + "\n".join(boxes)
    )


def _placed(run: Run) -> list[tuple[Sample, int]]:
    """Samples with their place among those of the same prompt."""
    counts: dict[str, int] = {}
    placed = []
    for sample in run.samples:
        counts[sample.prompt] = counts.get(sample.prompt, 0) + 1
        placed.append((sample, counts[sample.prompt]))
    return placed


def _answers(run: Run, sample: Sample, several: bool) -> Iterator[str]:
    for when in ("before", "after"):
        response, scores = getattr(sample, when), getattr(sample, f"{when}_scores")
        head = markup(f"{run.name}, {when}" if several else when, line=True)
        if response is None:
            shown = '<p class="soft">not generated</p>'
        else:
            shown = _text(response) if response.strip() else '<p class="soft">(an empty response)</p>'
        if scores:
            rated = ", ".join(f"{name} {value:g}" for name, value in scores.items())
            shown += f'<p class="soft">scores: {markup(rated, line=True)}</p>'
        yield f"<div><h4>{head}</h4>{shown}</div>\n"


def _text(text: str) -> str:
    left_out = len(text) - LONGEST_RESPONSE
    more = f'<p class="soft">and {left_out:,} characters more</p>' if left_out > 0 else ""
    # the parser of a browser drops a line break right after <pre>
    return f'<pre tabindex="0">\n{markup(text[:LONGEST_RESPONSE])}</pre>{more}'


def _settings(runs: Sequence[Run]) -> str:
    parts = []
    if len(runs) > 1:
        header, rows = compare.differing_settings(runs)
        parts.append(
            table(header, rows, title="Settings that differ", values=True)
            or '<p class="note">The settings that the runs recorded are the same.</p>'
        )
    for run in runs:
        if not run.settings:
            parts.append(f'<p class="note">{markup(run.name, line=True)}: no settings were recorded.</p>')
            continue
        rows = [[name, compare.shown(value)] for name, value in sorted(run.settings.items())]
        inner = table(["setting", "value"], rows, title=f"Settings of {run.name}", values=True)
        parts.append(f"<details><summary>All settings of {markup(run.name, line=True)}</summary>{inner}</details>")
    return "\n".join(parts)


def _versions(runs: Sequence[Run]) -> str:
    parts = [table(*compare.versions(runs), title="Versions", values=True)]
    for run in runs:
        rows = [[f"{group}: {name}", compare.shown(value)] for group, name, value in _facts(run)]
        rows.append(["folder", str(run.folder)])
        inner = table(["what", "value"], rows, title=f"Machine, model, data of {run.name}", values=True)
        parts.append(
            f"<details><summary>Machine, model, data of {markup(run.name, line=True)}</summary>{inner}</details>"
        )
    return "\n".join(part for part in parts if part)


def _facts(run: Run) -> Iterator[tuple[str, str, Any]]:
    for group, found in run.facts.items():
        for name, value in found.items() if isinstance(found, dict) else [("", found)]:
            yield group, name, value


def _absent(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        items = "".join(f"<li>{markup(text, line=True)}</li>" for text in run.absent)
        name = markup(run.name, line=True)
        parts.append(f"<h3>{name}</h3>\n<ul>{items}</ul>" if items else f"<p>{name}: nothing is missing.</p>")
    return "\n".join(parts)
