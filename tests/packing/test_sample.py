"""A tokenised sample refuses what would train on nothing, and its id is a number that never changes."""

import hashlib

import pytest

from amopo.packing import TokenizedSample, sample_id_to_int64


def make(**changes):
    fields = {"prompts": ([1, 2], [3]), "chosen": [4, 5], "rejected": [6], "id": "s1"} | changes
    return TokenizedSample(**fields)


def test_a_valid_sample_keeps_its_tokens():
    sample = make(prompts=[(1, 2), (3,)], chosen=(4, 5))
    assert sample.prompts == ([1, 2], [3])
    assert sample.chosen == [4, 5]
    assert sample.num_objectives == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ()}, r"sample 's1' has no prompts \(K = 0 objectives\)"),
        ({"prompts": ([1], [])}, r"sample 's1': prompts\[1\] is empty"),
        ({"chosen": []}, "sample 's1': chosen is a sequence with no response token"),
        ({"rejected": []}, "sample 's1': rejected is a sequence with no response token"),
        ({"rejected": [4, 5]}, "sample 's1': chosen and rejected are identical"),
        ({"rejected": [6, -100]}, "sample 's1': rejected has the negative token id -100 at position 1"),
        ({"id": -1}, "sample id -1 does not fit"),
        ({"id": 2**63}, "does not fit a non-negative int64"),
    ],
)
def test_bad_values_name_the_sample(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": [1.5]}, "sample 's1': chosen must be a list of integer token ids"),
        ({"prompts": (["a"], [1])}, r"sample 's1': prompts\[0\] must be a list of integer"),
        ({"id": 1.0}, "must be an integer or a string"),
        ({"id": True}, "must be an integer or a string"),
    ],
)
def test_wrong_types_are_named(changes, message):
    with pytest.raises(TypeError, match=message):
        make(**changes)


def test_integer_ids_stand_for_themselves():
    assert sample_id_to_int64(0) == 0
    assert sample_id_to_int64(2**63 - 1) == 2**63 - 1


def test_string_ids_hash_to_the_same_number_everywhere():
    raw = hashlib.blake2b(b"a", digest_size=8).digest()
    expected = sum(byte << (8 * i) for i, byte in enumerate(raw)) % 2**63
    assert sample_id_to_int64("a") == expected
    values = {sample_id_to_int64(f"sample-{i}") for i in range(2000)}
    assert len(values) == 2000
    assert all(0 <= value < 2**63 for value in values)


def test_signs_are_kept_and_all_plus_one_is_none():
    sample = TokenizedSample([[1], [2], [3]], [4], [5], "s", signs=[1, -1, 0])
    assert sample.signs == (1, -1, 0)
    assert TokenizedSample([[1], [2]], [4], [5], signs=(1, 1)).signs is None
    assert TokenizedSample([[1], [2]], [4], [5]).signs is None


@pytest.mark.parametrize(
    "signs, error, message",
    [
        ((1,), ValueError, r"sample 'q': signs must be 2 numbers of \+1 .* got \(1,\)"),
        ((1, 2), ValueError, r"got \(1, 2\)"),
        ((0, 0), ValueError, "sample 'q': all signs are 0, .*; drop the sample"),
        ((1.0, 1), TypeError, "sample 'q': signs must be a list of"),
        (1, TypeError, "sample 'q': signs must be a list of"),
    ],
)
def test_signs_that_cannot_be_are_named(signs, error, message):
    with pytest.raises(error, match=message):
        TokenizedSample([[1], [2]], [4], [5], "q", signs=signs)
