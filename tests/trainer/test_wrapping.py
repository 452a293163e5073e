"""Processes that torchrun started, and that nothing brings together, do not train apart without a word."""

import runpy

import pytest
import tiny_runs
import torch

import amopo
from amopo.packing import pack
from amopo.trainer import patch_forward, wrapping


def packed_call(model):
    batch = pack(tiny_runs.samples(2))
    return model(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)


def padded_call(model):
    ids = torch.tensor([[5, 6, 7]])
    return model(input_ids=ids, labels=ids)


@pytest.mark.parametrize(
    "install, call", [(patch_forward, packed_call), (amopo.patch, padded_call)], ids=["packed", "padded"]
)
def test_training_without_a_group_is_refused_where_torchrun_started_several_processes(install, call, monkeypatch):
    monkeypatch.setattr(wrapping, "_STARTED", 2)
    model = tiny_runs.qwen2()
    with install(model):
        with pytest.raises(RuntimeError, match="torchrun started 2 processes, but this one is in no .*group"):
            call(model)
        with torch.no_grad():
            alone = call(model)
        model.requires_grad_(False)
        assert call(model).equal(alone), "nothing trains"
        model.requires_grad_(True)
    with install(model, allow_unwrapped=True):
        assert call(model).equal(alone)


@pytest.mark.parametrize(
    "environment, count",
    [
        ({}, 1),
        ({"WORLD_SIZE": "2"}, 1),  # said by others too, who may mean something else
        ({"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}, 1),
        ({"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}, 2),
    ],
)
def test_torchrun_says_how_many_it_started(environment, count, monkeypatch):
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert runpy.run_path(wrapping.__file__)["_STARTED"] == count
