"""The cache of tokenised pairs: the same samples as without it, found by content, never a broken one."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import shutil

import pytest

from amopo.data import DataError, Pair, Response, Scale, cache_folder, cached_samples, tokenize_pairs
from amopo.data import cache as cache_module
from amopo.data.content import PairContent
from amopo.data.templates import Template

SCALES = {"wit": Scale(0, 4), "tact": Scale(0, 4)}
OBJECTIVES = ("wit", "tact")


def pairs(count=5, signs=None, **changes):
    made = []
    for number in range(count):
        fields = {"id": f"p{number}", "question": f"Say {number}.", "chosen": f"{number}!", "wit": 4.0}
        fields |= changes if number == count - 1 else {}
        prompt = ({"role": "user", "content": fields["question"]},)
        chosen = Response(fields["chosen"], {"wit": fields["wit"], "tact": 2.0})
        made.append(Pair(fields["id"], prompt, chosen, Response("No.", {"wit": 0.0, "tact": 1.0}), signs))
    return made


@pytest.fixture
def cached(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("AMOPO_CACHE", str(tmp_path / "cache"))

    def run(given=None, **options):
        options = {"objectives": OBJECTIVES, "scales": SCALES, "template": "brief"} | options
        return cached_samples(pairs() if given is None else given, options.pop("tokenizer", tokenizer), **options)

    return run


@pytest.fixture
def made(monkeypatch):
    """Counts how often samples were made."""
    counts = []
    real = cache_module._make

    def make(*arguments):
        counts.append(1)
        return real(*arguments)

    monkeypatch.setattr(cache_module, "_make", make)
    return counts


def test_samples_and_report_are_those_of_tokenising(cached, tokenizer):
    given = pairs(signs={"wit": 1, "tact": -1})
    expected, report = tokenize_pairs(given, tokenizer, objectives=OBJECTIVES, scales=SCALES, template="brief")
    for _ in range(2):
        samples, found = cached(given)
        assert list(samples) == expected and found == report


def test_the_second_time_nothing_is_made(cached, made):
    first, _ = cached()
    again, _ = cached(pairs())
    assert len(made) == 1 and list(again) == list(first)


@pytest.mark.parametrize(
    "change",
    [
        {"given": pairs(question="Other?")},
        {"given": pairs(chosen="other")},
        {"given": pairs(wit=3.0)},
        {"given": pairs(id="other")},
        {"given": pairs(4)},
        {"given": pairs()[::-1]},
        {"given": pairs(signs={"wit": 1, "tact": 1})},
        {"given": pairs(signs={"wit": 1, "tact": 0})},
        {"template": "plain"},
        {"template": Template("brief", lambda objective, score, scale: f"{objective} {score}")},
        {"template": Template("brief", lambda *_: "same", "suffix")},
        {"objectives": ("tact", "wit")},
        {"scales": SCALES | {"wit": Scale(0, 5)}},
        {"max_prompt_length": 511},
        {"max_response_length": 511},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_tokens_is_part_of_the_key(cached, made, change):
    cached()
    cached(**change)
    assert len(made) == 2


def test_what_decides_nothing_is_not(cached, made):
    cached()
    others = [
        dataclasses.replace(pair, rejected=Response(pair.rejected.text, {"wit": 1.0, "tact": 0.0})) for pair in pairs()
    ]
    cached(others)
    assert len(made) == 1, "scores that no prompt shows"


def test_the_tokenizer_is_part_of_the_key(cached, made, make_tokenizer, tokenizer):
    cached()
    same = make_tokenizer()
    same(["pad", "these two"], padding=True, truncation=True, max_length=4)
    cached(tokenizer=same)
    assert len(made) == 1, "an equal tokenizer, however it was used before"
    merged = make_tokenizer(corpus=["Say it"] * 9, vocab_size=264)
    dated = make_tokenizer(chat_template=tokenizer.chat_template.replace("<|im_start|>", "<|im_start|>{{ 1 + 1 }}", 1))
    special = make_tokenizer()
    special.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    for number, other in enumerate((merged, dated, special), start=2):
        cached(tokenizer=other)
        assert len(made) == number


@pytest.mark.parametrize("damage", ["tokens", "missing", "meta", "report"])
def test_a_broken_entry_is_said_and_made_again(cached, made, tmp_path, caplog, damage):
    good = list(cached()[0])
    (entry,) = (tmp_path / "cache" / "tokens").iterdir()
    if damage == "tokens":
        content = (entry / "tokens.i32").read_bytes()
        (entry / "tokens.i32").write_bytes(content[:-1] + b"\x7f")
    elif damage == "missing":
        (entry / "offsets.i64").unlink()
    elif damage == "meta":
        (entry / "meta.json").write_text("")
    else:
        (entry / "meta.json").write_text((entry / "meta.json").read_text().replace('"report"', '"other"'))
    with caplog.at_level(logging.WARNING):
        samples, _ = cached()
    assert "is not whole" in caplog.text and len(made) == 2
    assert list(samples) == good
    assert [path.name for path in entry.parent.iterdir()] == [entry.name], "nothing is left lying about"


def test_errors_leave_nothing_behind(cached, tmp_path):
    with pytest.raises(DataError, match="another pair has this id"):
        cached([*pairs(), *pairs(1)])
    with pytest.raises(DataError, match="sample 'p4': .* score 5.0 for objective 'wit' is not on its scale 0 to 4"):
        cached(pairs(wit=5.0))
    assert not list(tmp_path.rglob("tokens/*"))


def test_pairs_that_can_be_read_once_are_refused(cached):
    with pytest.raises(TypeError, match="pairs can be gone through once only"):
        cached(iter(pairs()))


def test_a_source_that_starts_anew_will_do(cached):
    class Source:
        def __iter__(self):
            return iter(pairs())

    assert list(cached(Source())[0]) == list(cached()[0])


def test_a_folder_that_cannot_be_written_names_the_remedy(cached, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AMOPO_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be kept in .*file .*set AMOPO_CACHE to a folder .*--no-cache"):
        cached()


def test_the_folder_is_the_environments_or_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("AMOPO_CACHE", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x"
    monkeypatch.delenv("AMOPO_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "amopo"


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
def test_of_two_processes_the_first_to_finish_wins(cached, made, tmp_path, monkeypatch, broken):
    expected = list(cached()[0])
    (entry,) = (tmp_path / "cache" / "tokens").iterdir()
    other = entry.rename(tmp_path / "other")
    if broken:
        (other / "keys.i64").unlink()
    rename, raced = cache_module.os.rename, []

    def meanwhile(source, target):
        if not raced:
            raced.append(target)
            shutil.copytree(other, target)
        return rename(source, target)

    monkeypatch.setattr(cache_module.os, "rename", meanwhile)
    assert list(cached()[0]) == expected and raced
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]


def _tokenise(folder, tokenizer, start, results):
    start.wait()
    samples, _ = cached_samples(
        pairs(40), tokenizer, objectives=OBJECTIVES, scales=SCALES, template="brief", folder=folder
    )
    results.put(samples.fingerprint)


def test_processes_that_ask_at_once_get_the_same(tmp_path, tokenizer):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    workers = [context.Process(target=_tokenise, args=(tmp_path, tokenizer, start, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    found = {results.get(timeout=600) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(found) == 1 and len(list((tmp_path / "tokens").iterdir())) == 1


def test_content_that_is_known_finds_the_entry_without_a_pass(cached, made):
    class Pairs(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    first, _ = cached()
    content = PairContent.of(pairs(), OBJECTIVES)
    given = Pairs(pairs())
    again, _ = cached(given, content=content)
    assert len(made) == 1 and given.passes == 1 and list(again) == list(first), "one look at whether it begins anew"
    cached(pairs(question="Other?"), content=PairContent.of(pairs(question="Other?"), OBJECTIVES))
    assert len(made) == 2


def test_content_for_other_objectives_is_refused(cached):
    with pytest.raises(ValueError, match="content is of the objectives tact, wit, but the pairs are tokenised for wit"):
        cached(content=PairContent.of(pairs(), OBJECTIVES[::-1]))
