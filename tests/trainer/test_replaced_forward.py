"""A replaced forward stays with its model: nn.DataParallel cannot take it along, and removing it leaves nothing."""

import copy
import importlib
import pickle

import pytest
import tiny_runs
import torch
from torch import nn

import amopo
from amopo.trainer.forward import is_patched, patch_forward


@pytest.fixture
def replicated(monkeypatch):
    """What `nn.DataParallel` makes of a module for two devices, which here are both the CPU; its own code."""
    replicate = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(replicate, "_get_device_index", lambda device, optional: device)
    monkeypatch.setattr(
        replicate, "_broadcast_coalesced_reshape", lambda tensors, devices, detach: [tensors for _ in devices]
    )
    return lambda module: replicate.replicate(module, [0, 1])


@pytest.mark.parametrize("install", [patch_forward, amopo.patch], ids=["patch_forward", "patch"])
def test_a_patched_model_cannot_be_replicated_by_data_parallel(install, replicated):
    model = tiny_runs.qwen2()
    with install(model):
        copied = copy.deepcopy(model)
        for patched in (model, copied, nn.Sequential(model)):
            with pytest.raises(ValueError, match="nn.DataParallel cannot replicate a patched model.*one process per"):
                replicated(patched)
    with pytest.raises(ValueError, match="cannot replicate a patched model"):
        replicated(copied)
    ids = torch.tensor([[5, 6, 7]])
    replicas = replicated(model)
    assert len(replicas) == 2 and not is_patched(model)
    for replica in replicas:
        assert replica(input_ids=ids).logits.equal(model(input_ids=ids).logits)


def test_removing_one_patch_of_two_leaves_what_the_other_needs(replicated):
    model = tiny_runs.qwen2()
    before = dict(model.__dict__)
    inner = patch_forward(model)
    outer = amopo.patch(model)
    outer.remove()
    assert is_patched(model)
    with pytest.raises(ValueError, match="cannot replicate a patched model"):
        replicated(model)
    inner.remove()
    assert model.__dict__ == before, "nothing of ours stays on the instance"
    pickle.dumps(model)


def test_a_replacement_of_the_users_own_comes_back(replicated):
    model = tiny_runs.qwen2()
    called = []
    model._replicate_for_data_parallel = lambda: called.append(1) or nn.Module()
    with patch_forward(model), pytest.raises(ValueError, match="cannot replicate a patched model"):
        replicated(model)
    model._replicate_for_data_parallel()
    assert called == [1]
