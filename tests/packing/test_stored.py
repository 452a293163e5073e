"""Samples in files: what comes back is what went in, nothing is read before it is asked for, damage is seen."""

from __future__ import annotations

import json
import pickle
import random
import tracemalloc

import pytest

pytest.importorskip("numpy")

from amopo.packing import SampleWriter, StoredSamplesError, TokenDataset, TokenizedSample, packed_size  # noqa: E402


def samples(count, *, objectives=3, signs=True, longest=12):
    rng = random.Random(0)

    def tokens():
        return [rng.randrange(3, 60_000) for _ in range(rng.randint(1, longest))]

    for number in range(count):
        given = rng.choice([None, (1, -1, 0)[:objectives]]) if signs else None
        name = number if number % 2 else f"s{number} é\u2028"
        yield TokenizedSample([tokens() for _ in range(objectives)], tokens(), [*tokens(), 2], name, given)


def write(folder, made, objectives=3, notes=None):
    with SampleWriter(folder, num_objectives=objectives) as writer:
        for sample in made:
            writer.add(sample)
        writer.close(notes)
    return folder


def test_samples_come_back_as_they_were(tmp_path):
    made = list(samples(25))
    stored = TokenDataset(write(tmp_path, made, notes={"made by": "hand"}))
    assert len(stored) == 25 and list(stored) == made
    assert stored[-1] == made[-1] and stored[3:9:2] == made[3:9:2]
    assert [stored.id_of(i) for i in range(25)] == [s.id for s in made]
    assert stored.notes == {"made by": "hand"} and stored.num_objectives == 3
    for index in (25, -26):
        with pytest.raises(IndexError, match="of 25"):
            stored[index]


def test_sizes_are_known_without_tokens(tmp_path):
    made = list(samples(20))
    stored = TokenDataset(write(tmp_path, made))
    for sharing in ("none", "pair", "tree"):
        sizes = [packed_size(s, sharing=sharing) for s in made]
        assert stored.sizes(sharing).tokens.tolist() == [size.tokens for size in sizes]
        assert stored.sizes(sharing).rows.tolist() == [size.rows for size in sizes]
    assert stored.largest_tokens.tolist() == [max(map(max, (*s.prompts, s.chosen, s.rejected))) for s in made]
    longest = [max(map(len, s.prompts)) + max(len(s.chosen), len(s.rejected)) for s in made]
    assert stored.longest_sequences.tolist() == longest
    assert stored.has_signs and stored.first_with_signs() == next(i for i, s in enumerate(made) if s.signs)


def test_other_processes_open_it_again(tmp_path):
    made = list(samples(4, signs=False))
    copy = pickle.loads(pickle.dumps(TokenDataset(write(tmp_path, made))))
    assert list(copy) == made and not copy.has_signs


def test_memory_does_not_grow_with_the_data(tmp_path):
    def used(count):
        folder = write(tmp_path / str(count), samples(count))
        tracemalloc.start()
        stored = TokenDataset(folder)
        first, last = stored[0], stored[-1]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert first.id == "s0 é\u2028" and last.id == count - 1
        size = sum(path.stat().st_size for path in folder.iterdir())
        return peak, size

    (small, _), (large, size) = used(50), used(5_000)
    assert size > 1_000_000 and large < small + 150_000, "opening reads two blocks of 64 KiB, and keeps none"


@pytest.mark.parametrize("name", ["tokens.i32", "offsets.i64", "summary.i32", "signs.i8", "keys.i64", "ids.json"])
def test_a_changed_byte_is_seen(tmp_path, name):
    folder = write(tmp_path, samples(9))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(StoredSamplesError, match=f"{name} does not hold what was written"):
        TokenDataset(folder)


def test_a_folder_that_is_not_whole_is_named(tmp_path):
    with pytest.raises(StoredSamplesError, match="meta.json is missing; the folder holds no samples"):
        TokenDataset(tmp_path)
    folder = write(tmp_path / "a", samples(3))
    path = folder / "tokens.i32"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    for verify in (True, False):
        with pytest.raises(StoredSamplesError, match=f"has {len(whole) - 4} bytes instead of {len(whole)}"):
            TokenDataset(folder, verify=verify)
    path.unlink()
    with pytest.raises(StoredSamplesError, match="tokens.i32 cannot be read"):
        TokenDataset(folder)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(StoredSamplesError, match="not of format 1"):
        TokenDataset(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(StoredSamplesError, match="meta.json cannot be read"):
        TokenDataset(folder)


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ValueError, match="no sample was written"):
        write(tmp_path / "none", [])
    twice = [*samples(3), *samples(1)]
    with pytest.raises(ValueError, match="sample id 's0 .*' occurs twice"):
        write(tmp_path / "twice", twice)
    with pytest.raises(ValueError, match="sample 's0 .*' has 2 prompts, but the folder holds samples of 3"):
        write(tmp_path / "other", samples(1, objectives=2))
