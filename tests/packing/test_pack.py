"""A packed row holds every sequence whole, and every response token has the row that predicts it."""

import random

import pytest
import torch

from amopo.packing import TokenizedSample, pack, packed_length


def random_sample(rng, id, num_objectives=3, vocab=50):
    def tokens(longest):
        return [rng.randrange(vocab) for _ in range(rng.randint(1, longest))]

    chosen = tokens(6)
    return TokenizedSample([tokens(7) for _ in range(num_objectives)], chosen, [*chosen, 1], id)


def sequences(samples):
    for sample in samples:
        for prompt in sample.prompts:
            for response in (sample.chosen, sample.rejected):
                yield prompt, response


@pytest.fixture
def samples():
    rng = random.Random(0)
    return [random_sample(rng, f"s{i}") for i in range(5)]


def test_one_sample_by_hand():
    batch = pack([TokenizedSample(([1, 2], [3]), [7, 8], [9], 42)], sharing="none")
    #   prompt 0, chosen | prompt 0, rejected | prompt 1, chosen | prompt 1, rejected
    assert batch.input_ids.tolist() == [[1, 2, 7, 8, 1, 2, 9, 3, 7, 8, 3, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 1]]
    layout = batch.layout
    assert layout.row_index.tolist() == [1, 2, 5, 7, 8, 10]
    assert layout.row_target.tolist() == [7, 8, 9, 7, 8, 9]
    assert layout.offsets.tolist() == [0, 2, 3, 5, 6]
    assert layout.paths.cu_seqlens_q.tolist() == layout.paths.cu_seqlens_k.tolist() == [0, 4, 7, 10, 12]
    assert (layout.num_samples, layout.num_objectives, layout.num_sequences) == (1, 2, 4)
    assert (layout.max_target, layout.num_tokens, layout.paths.max_seqlen_q) == (9, 12, 4)
    assert layout.fan_out is None and layout.paths.keys is None
    assert batch.sample_ids.tolist() == [42]


def test_every_sequence_is_whole_and_every_response_token_has_its_row(samples):
    batch = pack(samples, sharing="none")
    layout = batch.layout
    row = batch.input_ids[0].tolist()
    for s, (prompt, response) in enumerate(sequences(samples)):
        start, end = layout.paths.cu_seqlens_q[s : s + 2].tolist()
        assert row[start:end] == prompt + response
        assert batch.position_ids[0, start:end].tolist() == list(range(len(prompt) + len(response)))
        first, last = layout.offsets[s : s + 2].tolist()
        assert layout.row_target[first:last].tolist() == response
        assert layout.row_index[first:last].tolist() == list(range(start + len(prompt) - 1, end - 1))
    assert layout.max_target == max(max(s.chosen + s.rejected) for s in samples)
    assert layout.num_tokens == len(row) == sum(packed_length(s, sharing="none") for s in samples)


def test_dtypes_are_those_of_the_contract(samples):
    batch = pack(samples)
    assert {t.dtype for t in (batch.input_ids, batch.position_ids, batch.sample_ids)} == {torch.int64}
    layout = batch.layout
    assert {t.dtype for t in (layout.row_index, layout.row_target, layout.offsets)} == {torch.int64}
    assert {layout.paths.cu_seqlens_q.dtype, layout.paths.cu_seqlens_k.dtype} == {torch.int32}
    assert isinstance(layout.max_target, int)


def test_padding_is_a_document_of_its_own_without_targets(samples):
    plain, padded = pack(samples), pack(samples, pad_to_multiple_of=64)
    length = plain.input_ids.shape[1]
    assert padded.input_ids.shape[1] % 64 == 0
    assert padded.input_ids[0, :length].equal(plain.input_ids[0])
    tail = padded.position_ids[0, length:]
    assert tail.tolist() == list(range(len(tail)))
    assert padded.layout.row_index.equal(plain.layout.row_index)
    assert padded.layout.num_tokens == length
    assert padded.layout.paths.cu_seqlens_q.tolist()[:-1] == plain.layout.paths.cu_seqlens_q.tolist()
    assert padded.layout.paths.lengths[-1] == (len(tail), len(tail))
    assert (padded.layout.paths.subtree_end[:length] <= length).all()


def test_a_batch_moves_as_a_whole(samples):
    samples = [*samples, TokenizedSample([[1], [2], [3]], [4, 5], [4, 6], "branches")]
    moved = pack(samples).to("meta")
    tensors = [moved.input_ids, moved.position_ids, moved.sample_ids]
    tensors += [moved.layout.row_index, moved.layout.row_target, moved.layout.offsets]
    paths = moved.layout.paths
    tensors += [paths.cu_seqlens_q, paths.cu_seqlens_k, paths.subtree_end]
    parts = [paths.keys, moved.layout.rows, moved.layout.fan]
    tensors += [tensor for part in parts for tensor in (part.index, part.order, part.offsets)]
    assert all(t.device.type == "meta" for t in tensors)
    assert moved.layout.max_target == pack(samples).layout.max_target


def test_accelerate_moves_the_paths_to_the_device_of_a_layer(samples):
    # a model that is spread over devices gets its arguments through this, layer by layer
    operations = pytest.importorskip("accelerate.utils.operations")
    paths = pack(samples).layout.paths
    moved = operations.send_to_device({"amopo_paths": paths}, torch.device("meta"))["amopo_paths"]
    assert moved.cu_seqlens_q.device.type == moved.subtree_end.device.type == "meta"
    assert moved.lengths == paths.lengths


def test_bad_calls_say_what_is_wrong(samples):
    with pytest.raises(ValueError, match="pack\\(\\) got no samples"):
        pack([])
    with pytest.raises(ValueError, match="sharing='all' is not known; known: 'none', 'pair', 'tree'"):
        pack(samples, sharing="all")
    with pytest.raises(ValueError, match="sample 'odd' has K = 1 objectives, but sample 's0' has K = 3"):
        pack([*samples, TokenizedSample(([1],), [2], [3], "odd")])
    with pytest.raises(TypeError, match="takes TokenizedSample objects, got dict"):
        pack([{"prompts": []}])
    with pytest.raises(ValueError, match="pad_to_multiple_of must be at least 1"):
        pack(samples, pad_to_multiple_of=0)
