"""The page is one file that shows everything as text and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from amopo.report.run import load_runs
from amopo.report.text import inert
from tests.report.run_files import OBJECTIVES, metrics, rows, with_scores, write_log, write_run

pytest.importorskip("matplotlib")

from amopo.report.figures import build_figures  # noqa: E402
from amopo.report.html import page as page_of  # noqa: E402
from amopo.report.write import write_report  # noqa: E402

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</pre></article></main><h1>taken over</h1>",
    "\x1b[2J\x1b[31mcleared\x07",
    "&lt;b&gt; &amp; \"quotes\" 'too'",
    "]]><!-- <style>*{display:none}</style>",
    "abc\u202etxt.exe",
]


class Page(HTMLParser):
    """Elements with their attributes, the text of each <pre>, and whether every element is closed."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.pre: list[str] = []
        self.style = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "pre":
            self.pre.append("")

    def handle_endtag(self, tag):
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data):
        if "style" in self._open:
            self.style += data
            return
        self.texts.append(data)
        if "pre" in self._open:
            self.pre[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return "".join(self.texts)


def report(tmp_path, *folders):
    out = tmp_path / "page.html"
    write_report(load_runs(folders), out)
    return out


def undrawn(*folders):
    """The page without its pictures, which take most of the time."""
    runs = load_runs(folders)
    return Page(page_of(runs, build_figures(runs), {}))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs of one name with other objectives, hostile texts everywhere."""
    folder = tmp_path_factory.mktemp("two")
    names = ["correctness", "<b>bold</b>", "_x $\\alpha$ \x1b[1m"]
    samples = {
        "before": [{"prompt": text, "response": "fine"} for text in HOSTILE],
        "after": [{"prompt": text, "response": text} for text in HOSTILE],
    }
    first = metrics(names, samples=samples)
    first["settings"]["note"] = HOSTILE[0]
    first["versions"]["</td>"] = HOSTILE[1]
    second = with_scores(metrics(OBJECTIVES), {name: (1.0, 2.0) for name in OBJECTIVES})
    runs = [write_run(folder / "a" / "out", first), write_run(folder / "b" / "out", second)]
    out = report(folder, *runs)
    return out, Page(out.read_text(encoding="utf-8"))


def test_hostile_text_shows_as_the_text_that_it_is(two):
    _, page = two
    shown = [text.removeprefix("\n") for text in page.pre]
    for text in HOSTILE:
        assert shown.count(inert(text)) == 2, text  # as a prompt and as a response
    assert HOSTILE[0] in page.text and "<b>bold</b>" in page.text


def test_nothing_in_the_page_can_run(two):
    out, page = two
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "form", "base", "svg", "math"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
    assert "\x1b" not in out.read_text(encoding="utf-8") and "\u202e" not in out.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(two):
    _, page = two
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "poster"):
            value = attributes.get(name, "#")
            inside = value.startswith(("#", "data:image/svg+xml;base64,", "page_figures/"))
            assert inside and "//" not in value.split(",")[0], (tag, value[:80])
    assert "url(" not in page.style and "@import" not in page.style


def test_the_policy_forbids_everything_but_what_is_there(two):
    _, page = two
    [policy] = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:") and f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_every_picture_is_whole_and_has_a_text_that_holds_numbers(two):
    out, page = two
    pictures = page.all("img")
    assert len(pictures) > 20
    for picture in pictures:
        source = base64.b64decode(picture["src"].split(",")[1])
        root = ElementTree.fromstring(source)
        assert root.tag.endswith("svg")
        assert not [e for e in root.iter() if e.tag.rsplit("}")[-1] in ("script", "foreignObject", "image")]
        links = [v for e in root.iter() for n, v in e.attrib.items() if n.endswith("href")]
        assert all(link.startswith("#") for link in links)
        assert len(picture["alt"]) > 20 and re.search(r"\d", picture["alt"])
    folder = out.parent / "page_figures"
    assert {a["href"] for a in page.all("a") if not a["href"].startswith("#")} == {
        f"{folder.name}/{path.name}" for path in folder.glob("*.svg")
    }
    assert len(list(folder.glob("*.png"))) == len(pictures)


def test_it_fits_a_phone_and_both_lights(two):
    _, page = two
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in page.style
    scrolling = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(scrolling) == len(page.all("table")) and all(a["tabindex"] == "0" for a in scrolling)


def test_every_section_has_a_link_and_every_link_a_section(two):
    _, page = two
    sections = [a["id"] for a in page.all("section")]
    links = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    assert sections == links and len(set(sections)) == len(sections)
    assert {"margins", "pairs", "alpha", "logps", "bars", "pareto", "speed", "samples", "settings", "absent"} <= set(
        sections
    )


def test_runs_are_named_apart_and_their_differences_said(two):
    _, page = two
    assert "a/out" in page.text and "b/out" in page.text
    assert "b/out was not trained on <b>bold</b>" in page.text
    assert "Settings that differ" in page.text
    assert "a/out: has no generated score before and after" in page.text


def test_both_falling_is_explained(two):
    _, page = two
    assert "Both may fall, and that alone is no fault" in page.text


def test_before_and_after_stand_side_by_side(tmp_path):
    found = metrics(
        ["tone"], samples={"before": [{"prompt": "p", "response": "old"}], "after": [{"prompt": "p", "response": ""}]}
    )
    page = undrawn(write_run(tmp_path / "one", found))
    text = page.text[page.text.index("Prompt 1") :]
    assert text.index("before") < text.index("old") < text.index("after") < text.index("(an empty response)")


def test_what_a_run_lacks_is_named(tmp_path):
    write_log(tmp_path / "bare" / "amopo_log.jsonl", [{"step": 2, "loss": 0.7}, {"step": 4, "loss": 0.6}])
    page = Page(report(tmp_path, tmp_path / "bare").read_text(encoding="utf-8"))
    for text in ("weights of the objectives", "log-probs", "throughput", "memory", "before and after", "samples"):
        assert text in page.text[page.text.index("What is not here", page.text.index("Versions and machine")) :]
    assert "Not here: bare: no margins were logged." in page.text
    assert "No run has saved samples" in page.text
    assert len(page.all("img")) == 1  # the loss


def test_an_empty_log_still_gives_a_page(tmp_path):
    write_log(tmp_path / "empty" / "amopo_log.jsonl", [])
    page = undrawn(tmp_path / "empty")
    assert page.all("img") == [] and "nothing logged" in page.text
    assert "no training step was logged" in page.text


def test_runs_without_an_objective_in_common_share_a_page(tmp_path):
    folders = [write_run(tmp_path / name, metrics([name], log_history=rows(3))) for name in ("x", "y")]
    page = undrawn(*folders)
    assert "x and y: no run has logged both" in page.text


def test_the_same_runs_give_the_same_bytes(tmp_path):
    folder = write_run(tmp_path / "one", metrics(["tone"], log_history=rows(3)))
    out = report(tmp_path, folder)
    first = {path.name: path.read_bytes() for path in (tmp_path / "page_figures").iterdir()} | {"": out.read_bytes()}
    report(tmp_path, folder)
    second = {path.name: path.read_bytes() for path in (tmp_path / "page_figures").iterdir()} | {"": out.read_bytes()}
    assert first == second


def test_pictures_of_an_earlier_report_are_removed_and_nothing_else(tmp_path):
    report(tmp_path, write_run(tmp_path / "one", metrics(["tone"], log_history=rows(3))))
    folder = tmp_path / "page_figures"
    (folder / "mine.png").write_bytes(b"mine")
    write_log(tmp_path / "bare" / "amopo_log.jsonl", [{"step": 2, "loss": 0.7}])
    report(tmp_path, tmp_path / "bare")
    assert sorted(path.name for path in folder.iterdir()) == ["07-loss-01-loss.png", "07-loss-01-loss.svg", "mine.png"]


def test_a_long_response_is_cut_and_its_length_said(tmp_path):
    found = metrics(["tone"], samples={"after": [{"prompt": "p", "response": "x" * 10_000}]})
    page = undrawn(write_run(tmp_path / "one", found))
    assert "and 4,000 characters more" in page.text and "not generated" in page.text


def test_not_a_number_before_or_after_is_drawn_and_said(tmp_path):
    found = metrics(["tone"], log_history=rows(3))
    found["preferences"]["after"] = dict.fromkeys(found["preferences"]["after"], "nan")
    page = Page(report(tmp_path, write_run(tmp_path / "one", found)).read_text(encoding="utf-8"))
    assert any("0.250 before, nan after" in picture["alt"] for picture in page.all("img"))
