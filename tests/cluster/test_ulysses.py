"""DeepSpeed's Ulysses: two ranks that share every sequence take the step that one process takes."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from launch import needs_deepspeed, run_ranks

from amopo import loss_from_logps, pack
from amopo.trainer import patch_forward

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900), needs_deepspeed]

if importlib.util.find_spec("deepspeed") is not None:
    import ulysses

STAGES = (1, 3)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ulysses")
    run_ranks("ulysses.py", directory, *(f"{kind},{stage}" for kind in ulysses.KINDS for stage in STAGES))
    return directory


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["packed", "padded", "prompt"])
def test_a_step_over_shared_sequences_is_that_of_one_process(kind, stage, directory):
    """However it is batched, one process runs it on a packed row."""
    network = ulysses.model()
    patch_forward(network)
    batch = pack(ulysses.samples(kind))
    logps = network(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)
    expected = loss_from_logps(logps, batch.layout, sample_ids=batch.sample_ids, **ulysses.LOSS)
    expected.loss.backward()
    ranks = [torch.load(directory / f"{kind},{stage}-{rank}.pt") for rank in range(2)]
    assert ranks[0]["alphas"].equal(ranks[1]["alphas"])
    for rank in ranks:
        torch.testing.assert_close(rank["loss"], expected.loss.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rank["alphas"], expected.weights, rtol=1e-5, atol=1e-6)
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(rank["gradients"][name], parameter.grad, rtol=1e-5, atol=1e-5)
            stepped = parameter.detach() - ulysses.LEARNING_RATE * parameter.grad
            torch.testing.assert_close(rank["weights"][name], stepped, rtol=1e-5, atol=1e-5)
