"""What `track` measures is what was held: known sizes, phases, and the plan on a real model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from amopo.memory import track
from amopo.memory.known_shapes import BUILT_IN
from amopo.memory.plan import make_plan
from amopo.memory.settings import RunSettings, SampleShape
from amopo_kernels.backend import cpp_available

MIB = 1 << 20
SAMPLE = SampleShape(objectives=2, prompt=40, template=8, chosen=48, rejected=32, samples=4)


def test_known_tensors_give_known_peaks():
    weight = nn.Parameter(torch.zeros(256, 1024))  # 1 MiB
    optimizer = torch.optim.SGD([weight], lr=0.1)
    model = nn.Module()
    model.weight = weight
    with track(model, optimizer) as memory:
        for _ in range(3):
            doubled = weight * 2  # 1 MiB
            loss = (doubled * doubled).sum()  # 1 MiB, gone after the sum
            del doubled
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(memory.steps) == 3
    # weight, twice the weight, its square
    assert memory.peaks["forward"] == pytest.approx(3 * MIB, abs=64)
    # weight and gradient
    assert memory.peaks["step"] == pytest.approx(2 * MIB, abs=64)
    assert memory.peaks["backward"] >= 3 * MIB and "head" not in memory.peaks
    assert [phase for _, phase, _ in memory.timeline][0] == "forward"


def test_what_is_released_is_not_counted():
    with track(device="cpu") as memory:
        for _ in range(4):
            torch.zeros(MIB // 4)
    assert memory.meter.live() == 0 and memory.meter.peak() == MIB


def test_a_storage_that_is_given_another_size_counts_as_that():
    """As FSDP does with gathered weights; nothing else sees it."""
    gathered = torch.zeros(MIB // 4)
    resize = torch.UntypedStorage.resize_
    with track(device="cpu") as memory:
        memory.meter.see(gathered)
        gathered.untyped_storage().resize_(0)
        assert memory.meter.live() == 0
        gathered.untyped_storage().resize_(2 * MIB)
        assert memory.meter.live() == memory.meter.peak() == 2 * MIB
    assert torch.UntypedStorage.resize_ is resize


def test_a_rank_holds_its_piece_of_a_sharded_weight_and_no_more():
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (4,))
        model = nn.Module()
        model.weight = nn.Parameter(DTensor.from_local(torch.zeros(MIB // 4), mesh, [Shard(0)]))
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        with track(model, optimizer) as memory:
            assert memory.meter.live() == MIB
            for _ in range(2):
                (model.weight * 2).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            assert memory.meter.live() == pytest.approx(3 * MIB, abs=64)  # and two moments
    finally:
        dist.destroy_process_group()


def test_the_gradient_state_that_was_there_before_is_counted():
    weight = nn.Parameter(torch.zeros(MIB // 4))
    weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    model = nn.Module()
    model.weight = weight
    with track(model, optimizer) as memory:
        pass
    assert memory.meter.live() == pytest.approx(4 * MIB, abs=64)


def test_a_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    with pytest.raises(ValueError, match="no CUDA device; leave device out"):
        track(device="cuda:0")


def measured(shape, sample, **settings):
    pytest.importorskip("transformers")
    from amopo.memory.profile import profile
    from amopo.trainer.forward import patch_forward

    return profile(shape, sample, RunSettings(device="cpu", **settings), patch=patch_forward, steps=2)


def small(**changes):
    sizes = {
        "layers": 4, "hidden": 320, "intermediate": 1024, "heads": 5, "kv_heads": 1, "head_dim": 64, "vocab": 4096,
    }  # fmt: skip
    return dataclasses.replace(BUILT_IN["Qwen2.5-7B"], **{**sizes, **changes})


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
def test_the_plan_is_within_ten_per_cent_of_real_steps_in_every_phase(sharing, checkpointing):
    sample = dataclasses.replace(SAMPLE, sharing=sharing)
    found = measured(small(), sample, precision="fp32", checkpointing=checkpointing)
    agrees(found)


def agrees(found):
    assert set(found.peaks) == {"forward", "head", "backward", "step"}
    assert found.plan.peak == pytest.approx(found.peak, rel=0.10)
    for phase, peak in found.peaks.items():
        assert found.plan.total(phase) == pytest.approx(peak, rel=0.10), phase


@pytest.mark.parametrize(
    "precision, checkpointing", [("fp32", True), pytest.param("mixed", False, marks=pytest.mark.slow)]
)
def test_so_it_is_for_a_model_of_a_hundred_million_parameters(precision, checkpointing):
    """The model of docs/memory.md, with one sample in the row."""
    shape = small(layers=12, hidden=640, intermediate=1792, heads=10, kv_heads=2, vocab=32000)
    assert 90e6 < shape.parameters < 110e6
    sample = dataclasses.replace(SAMPLE, samples=1)
    found = measured(shape, sample, precision=precision, checkpointing=checkpointing)
    agrees(found)
    if found.resident:  # what is held is in memory, with Python and torch beside it
        assert found.resident["step"] >= found.peaks["step"] and found.resident_before > 0


def test_a_plan_for_the_cpu_knows_which_attention_runs_there(monkeypatch):
    def activations(**device):
        return make_plan(small(), SAMPLE, RunSettings(precision="fp32", **device)).phases["forward"]["activations"]

    compiled, cuda = activations(device="cpu"), activations()
    monkeypatch.setenv("AMOPO_ATTENTION", "sdpa")  # keeps its outputs twice, and a mask
    assert activations(device="cpu") > cuda
    assert compiled == (cuda if cpp_available("cpu")[0] else activations(device="cpu"))


def test_the_allocators_largest_reservation_outlives_the_phases(monkeypatch):
    """CUDA resets all of its peaks together; a device is stood in for by its counters."""
    from amopo.memory.meters import CudaMeter

    counters = {"now": 0, "peak": 0}

    def hold(size):
        counters["now"] = size
        counters["peak"] = max(counters["peak"], size)

    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: counters["peak"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: counters["peak"] // 2)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: counters.update(peak=counters["now"]))
    meter, inner = CudaMeter(torch.device("cuda", 0)), CudaMeter(torch.device("cuda", 0))
    hold(100)
    hold(20)
    meter.restart()
    assert meter.peak() == 10 and meter.reserved() == 100
    hold(300)
    assert meter.peak() == 150  # read before another one restarts
    hold(20)
    inner.restart()
    assert meter.reserved() == 300 and meter.peak() == 10
