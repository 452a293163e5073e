"""Metrics are exact means over samples, whatever the batches, and nothing waits for them."""

import math

import pytest
import tiny_runs
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amopo.fused_loss import loss_from_logps
from amopo.packing import TokenizedSample, pack
from amopo.trainer.metrics import MetricSums, Stopwatch

NAMES = ["help", "brief"]
BETA = 1.7


def one_result(samples, logps_of):
    batch = pack(samples, sharing="none")
    logps = torch.cat([logps_of[s.id] for s in samples])
    result = loss_from_logps(
        logps, batch.layout, beta=BETA, weights="gaussian", sample_ids=batch.sample_ids, seed=1, step=4
    )
    return result, batch.layout


@pytest.fixture
def data():
    samples = tiny_runs.samples(7)
    generator = torch.Generator().manual_seed(0)
    rows = {s.id: 2 * (len(s.chosen) + len(s.rejected)) for s in samples}
    logps = {name: -torch.rand(count, generator=generator, dtype=torch.float64) * 3 for name, count in rows.items()}
    return samples, logps


def summed(data, groups):
    samples, logps = data
    sums = MetricSums(NAMES)
    for group in groups:
        result, layout = one_result([samples[i] for i in group], logps)
        sums.add(result, layout)
    return sums.reduce()


def test_means_do_not_depend_on_the_batches(data):
    whole = summed(data, [range(7)])
    for groups in ([[0, 1, 2], [3], [4, 5, 6]], [[i] for i in range(7)]):
        parts = summed(data, groups)
        assert parts.means == pytest.approx(whole.means, rel=1e-12, abs=1e-9)
        assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
        assert (parts.num_samples, parts.num_tokens) == (7, whole.num_tokens)


def test_values_are_those_of_the_definition(data):
    samples, logps = data
    means = summed(data, [[0, 1, 2], [3, 4], [5, 6]]).means
    margins, chosen = [], []
    for sample in samples:
        cuts = [len(sample.chosen), len(sample.rejected)] * 2
        parts = logps[sample.id].split(cuts)
        averages = [BETA * part.mean().item() for part in parts]
        margins.append([averages[0] - averages[1], averages[2] - averages[3]])
        chosen.append([averages[0], averages[2]])
    for k, name in enumerate(NAMES):
        column = [row[k] for row in margins]
        assert means[f"rewards/margins/{name}"] == pytest.approx(sum(column) / 7)
        assert means[f"rewards/accuracies/{name}"] == pytest.approx(sum(m > 0 for m in column) / 7)
        assert means[f"rewards/chosen/{name}"] == pytest.approx(sum(row[k] for row in chosen) / 7)
    assert means["rewards/margins"] == pytest.approx(sum(map(sum, margins)) / 14)


def test_alpha_is_described_over_all_samples(data):
    samples, logps = data
    means = summed(data, [[0, 1], [2], [3, 4, 5, 6]]).means
    weights = one_result(samples, logps)[0].weights
    for k, name in enumerate(NAMES):
        assert means[f"amopo/alpha/{name}"] == pytest.approx(weights[:, k].mean().item())
        assert means[f"amopo/alpha_std/{name}"] == pytest.approx(weights[:, k].std(unbiased=False).item())
    entropy = -(weights * weights.log()).sum(1).mean().item()
    assert means["amopo/alpha_entropy"] == pytest.approx(entropy)


def test_the_names_are_complete(data):
    means = summed(data, [range(7)]).means
    both = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"]
    both += ["logps/chosen", "logps/rejected"]
    each = ["amopo/alpha", "amopo/alpha_std", "amopo/mu", "amopo/sigma"]
    expected = {*both, "amopo/alpha_entropy", *(f"{m}/{n}" for m in both + each for n in NAMES)}
    assert set(means) == expected
    assert all(math.isfinite(value) for value in means.values())


def test_a_filler_changes_nothing_but_keeps_the_vector(data):
    samples, logps = data
    sums = MetricSums(NAMES)
    filler, layout = one_result(samples[:1], logps)
    sums.add(filler, layout, num_samples=0)
    assert not sums.is_empty
    for group in ([0, 1, 2, 3], [4, 5, 6]):
        sums.add(*one_result([samples[i] for i in group], logps))
    got, expected = sums.reduce(), summed(data, [[0, 1, 2, 3], [4, 5, 6]])
    assert got == expected
    assert sums.is_empty
    with pytest.raises(ValueError, match="no batch was added"):
        sums.reduce()


def test_reduce_adds_up_the_ranks_in_one_vector(data):
    calls = []

    def all_reduce(vector):
        calls.append(vector)
        return vector * 2  # a second rank with the same sums

    samples, logps = data
    sums = MetricSums(NAMES)
    sums.add(*one_result(samples, logps))
    doubled, single = sums.reduce(all_reduce), summed(data, [range(7)])
    assert len(calls) == 1
    assert doubled.num_samples == 14
    assert doubled.means == pytest.approx(single.means)


class _NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read on the host"
        return func(*args, **(kwargs or {}))


def test_adding_reads_nothing_on_the_host(data):
    samples, logps = data
    result, layout = one_result(samples, logps)
    sums = MetricSums(NAMES)
    with _NoWaiting():
        sums.add(result, layout)
        sums.add(result, layout)
    with pytest.raises(AssertionError, match="read on the host"), _NoWaiting():
        result.loss.item()


def test_the_stopwatch_leaves_pauses_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch()

    def passes(seconds):
        now[0] += seconds

    watch.pause()  # before the start: nothing to leave out
    passes(100)
    watch.resume()
    watch.start()
    passes(2)
    watch.pause()
    passes(10)
    watch.pause()
    passes(10)
    watch.resume()
    passes(1)
    assert watch.read() == 3
    passes(4)
    watch.start()
    assert watch.read() == 4
    watch.reset()
    passes(50)
    watch.start()
    passes(1)
    assert watch.read() == 1
    assert Stopwatch().read() == 0


def signed(samples):
    """Signs so that one group has no sample with the second objective."""
    signs = [(1, 0), (-1, 0), (1, -1), (0, 1), (1, 0), (-1, -1), (1, 1)]
    return [
        TokenizedSample(s.prompts, s.chosen, s.rejected, s.id, given) for s, given in zip(samples, signs, strict=True)
    ]


def test_ties_are_left_out_of_an_objectives_means_whatever_the_batches(data):
    samples, logps = signed(data[0]), data[1]
    whole = summed((samples, logps), [range(7)])
    for groups in ([[0, 1], [2, 3], [4, 5, 6]], [[i] for i in range(7)]):
        parts = summed((samples, logps), groups)
        assert parts.means == pytest.approx(whole.means, rel=1e-12, abs=1e-9)
    for k, name in enumerate(NAMES):
        expected = []
        for sample in samples:
            sign = (sample.signs or (1, 1))[k]
            parts = logps[sample.id].split([len(sample.chosen), len(sample.rejected)] * 2)[2 * k : 2 * k + 2]
            if sign:
                expected.append(sign * BETA * (parts[0].mean() - parts[1].mean()).item())
        assert whole.means[f"rewards/margins/{name}"] == pytest.approx(sum(expected) / len(expected))
        assert whole.means[f"rewards/accuracies/{name}"] == pytest.approx(sum(m > 0 for m in expected) / len(expected))


def test_an_objective_without_a_sample_is_nan_and_left_out_of_the_mean(data):
    samples, logps = signed(data[0]), data[1]
    means = summed((samples, logps), [[0], [1, 4]]).means
    assert math.isnan(means["rewards/margins/brief"]) and math.isnan(means["amopo/alpha/brief"])
    assert means["rewards/margins"] == means["rewards/margins/help"]
    assert means["amopo/alpha/help"] == pytest.approx(1.0) and means["amopo/alpha_entropy"] == pytest.approx(0.0)
