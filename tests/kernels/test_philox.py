"""Counter-based noise: the published known answers, independence of batching, and the right distribution."""

from __future__ import annotations

import math

import pytest
import torch

from amopo_kernels import reference
from amopo_kernels.philox import gaussian_noise, philox4x32

# Random123's kat_vectors, philox4x32 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_known_answers_of_random123(counter, key, expected):
    assert reference.philox4x32(counter, key) == expected
    assert tuple(philox4x32(torch.tensor(counter), key).tolist()) == expected


def test_batched_noise_equals_the_specification():
    ids = torch.tensor([0, 1, 2**33 + 5, 2**63 - 1, -1])
    for seed, step in ((0, 0), (2**64 - 1, 2**32 - 1), (1234567890123, 77)):
        noise = gaussian_noise(ids, 4, seed=seed, step=step)
        for b, sample in enumerate(ids.tolist()):
            for k in range(4):
                expected = reference.gaussian_noise(seed, step, sample, k)
                assert noise[b, k].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_step_may_be_a_tensor():
    ids = torch.arange(5)
    assert torch.equal(gaussian_noise(ids, 3, seed=1, step=torch.tensor(9)), gaussian_noise(ids, 3, seed=1, step=9))


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    ids = torch.randint(0, 2**40, (64,))
    whole = gaussian_noise(ids, 3, seed=5, step=2)
    order = torch.randperm(64)
    assert torch.equal(gaussian_noise(ids[order], 3, seed=5, step=2), whole[order])
    assert torch.equal(gaussian_noise(ids[10:11], 3, seed=5, step=2), whole[10:11])
    # further objectives do not change the first ones
    assert torch.equal(gaussian_noise(ids, 7, seed=5, step=2)[:, :3], whole)


def test_moments_and_independence():
    n = 200_000
    noise = gaussian_noise(torch.arange(n), 2, seed=3, step=1).reshape(n, 4)
    standard_error = 1.0 / math.sqrt(n)
    assert noise.mean(0).abs().max() < 5 * standard_error
    assert (noise.var(0) - 1.0).abs().max() < 8 * standard_error
    assert ((noise**4).mean(0) - 3.0).abs().max() < 50 * standard_error
    correlation = torch.corrcoef(noise.T) - torch.eye(4)
    assert correlation.abs().max() < 5 * standard_error
    assert noise.abs().max() < 5.78


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 2}])
def test_seed_and_step_change_the_noise(change):
    ids = torch.arange(100)
    base = gaussian_noise(ids, 2, **{"seed": 3, "step": 1})
    other = gaussian_noise(ids, 2, **{"seed": 3, "step": 1, **change})
    assert abs(float(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1])) < 0.3
    assert not torch.equal(base, other)
