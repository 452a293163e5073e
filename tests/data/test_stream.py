"""Records and pairs that are read anew are those of a list."""

from __future__ import annotations

import pytest

from amopo.data import PairMaker, Scale, read_records
from amopo.data.stream import PairStream, RecordPart, RecordStream, each, sample_of

SCALES = {"helpfulness": Scale(0, 4)}


@pytest.fixture
def path(write_jsonl, grouped_row):
    def scores(n):
        return {"helpfulness": n % 5}, {"helpfulness": 2}

    return write_jsonl(*(grouped_row(*scores(n), prompt=f"q{n}", note=n) for n in range(250)))


@pytest.fixture
def stream(path):
    made = RecordStream(path, objectives=["helpfulness"])
    list(made)
    return made


def test_every_pass_gives_the_records_of_a_list(path, stream):
    expected = read_records(path, objectives=["helpfulness"])
    assert list(stream) == list(stream) == expected and len(stream) == 250


def test_the_length_is_not_known_before_a_whole_pass(path):
    stream = RecordStream(path, objectives=["helpfulness"])
    next(iter(stream))
    with pytest.raises(TypeError, match="after a whole pass"):
        len(stream)


def test_arguments_are_checked_at_once(path):
    with pytest.raises(ValueError, match="unknown format 'poem'"):
        RecordStream(path, objectives=["helpfulness"], format="poem")


def test_a_part_tells_how_many_records_of_the_file_are_read(stream):
    part = RecordPart(stream, 2, keep=lambda record: record.extra["note"] in (3, 8))
    told = []
    pairs = PairStream(part, 2, make_maker=lambda: PairMaker(["helpfulness"], scales=SCALES))
    assert [pair.id for pair in each(pairs, lambda *state: told.append(state))] == ["line-4", "line-9"]
    assert told == [(done, 250) for done in range(1, 251)]
    told.clear()
    assert list(each(["a", "b"], lambda *state: told.append(state))) == ["a", "b"] and told == [(1, 2), (2, 2)]


def test_pairs_start_anew_each_time(path, stream):
    def make_maker():
        return PairMaker(["helpfulness"], scales=SCALES)

    maker = make_maker()
    expected = [pair for record in read_records(path, objectives=["helpfulness"]) for pair in maker.of(record)]
    pairs = PairStream(RecordPart(stream, 250), maker.report().pairs, make_maker=make_maker)
    assert list(pairs) == list(pairs) == expected and len(pairs) == len(expected) == 200


def test_a_sample_is_all_where_it_fits_else_drawn_by_the_seed(stream):
    part = RecordPart(stream, 250)
    assert sample_of(part, 250, seed=0) == list(part)
    drawn = [record.extra["note"] for record in sample_of(part, 60, seed=0)]
    assert len(set(drawn)) == 60 and drawn == sorted(drawn)
    assert drawn == [record.extra["note"] for record in sample_of(list(part), 60, seed=0)]
    assert drawn != [record.extra["note"] for record in sample_of(part, 60, seed=1)]
    # from the whole file: a quarter of it holds about a quarter of them
    assert all(5 <= sum(start <= note < start + 62 for note in drawn) <= 27 for start in (0, 62, 124, 186))
