"""Targets: which ratio is taken, and what is said where the bare products alone miss one."""

from __future__ import annotations

import pytest

from bench.common import targets
from bench.common.row_forms import FORMS, of_copy


def record(provider: str, seconds: float, role: str, task: str = "tokens", **info) -> dict:
    key = {"shape": "head", "dtype": "bfloat16", "inputs": "peaked", "provider": provider}
    right = {"grad_hidden_error": 0.002, "grad_weight_error": 0.001, "settings": "as it comes"}
    return {"key": key, "stats": {"median": seconds}, "info": {"role": role, "task": task, **right, **info}}


def results(records: list[dict], machine: dict, question: str = "head_full") -> dict:
    return {question: {"records": records, "runs": [{"machine": machine}]}}


CPU, GPU = {"device": "Box 9"}, {"device": "Card 9", "gpu": "Card 9"}


def rows(records, machine, question="head_full") -> dict[str, tuple]:
    found = targets.target_rows(results(records, machine, question), cuda="gpu" in machine)
    return {row[0].split(" (")[0]: row[2:] for row in found}


def test_the_fastest_of_ours_is_compared_with_the_fastest_products():
    records = [
        record("products", 1.0, "floor", "products"), record("products_fp32", 2.0, "floor", "products"),
        record("amopo_cpp", 1.2, "ours"), record("amopo_eager", 1.4, "ours"),
        record("amopo_cpp_simpo", 1.3, "ours", "pairs"), record("liger_simpo", 2.0, "peer", "pairs"),
        record("liger_simpo_one_chunk", 1.3 / 0.71, "peer", "pairs"), record("torch_lce", 1.25, "peer"),
        record("torch_lce_chunked", 9.0, "peer"),
    ]  # fmt: skip
    found = rows(records, CPU)
    assert found["full head to its three bare products"] == ("<= 1.25x", "1.20x", "yes")
    assert found["SimPO's loss to liger_simpo"] == ("<= 0.70x", "0.65x", "yes")
    places = {row[0].split(" (")[0]: row[1] for row in targets.target_rows(results(records, CPU), cuda=False)}
    assert places["SimPO's loss to liger_simpo"] == "head, peaked, amopo_cpp_simpo"
    assert places["full head to its three bare products"] == "head, peaked, amopo_cpp"
    assert found["SimPO's loss to liger_simpo_one_chunk"] == ("<= 0.70x", "0.71x", "no")
    said = "no: the bare products alone take 0.80x"
    assert found["full head to F.linear_cross_entropy"] == ("<= 0.75x", "0.96x", said)


def test_a_frozen_head_has_two_products():
    records = [record("products", 1.0, "floor", "products"), record("amopo_cpp", 1.31, "ours")]
    assert rows(records, CPU, "head_frozen") == {
        "frozen head to its two bare products": ("<= 1.30x", "1.31x", "no"),
    }


def test_on_a_gpu_speed_counts_over_peers_that_are_right():
    records = [
        record("products", 1.0, "floor", "products"), record("amopo_triton", 1.05, "ours"),
        record("wrong", 1.1, "peer", grad_hidden_error=0.5), record("pairs only", 1.15, "peer", "pairs"),
        record("right", 1.4, "peer"), record("easier", 1.0, "bound", "mean"),
        record("drops mass", 0.6, "bound", grad_weight_error=0.2),
    ]  # fmt: skip
    found = rows(records, GPU)
    assert found["full head to its three bare products"] == ("<= 1.10x", "1.05x", "yes")
    assert found["full head, speed over the fastest peer"] == (">= 1.25x", "1.33x", "yes")
    assert found["full head, speed over the best easier task"] == (">= 0.97x", "0.95x", "no")
    records[4] = record("right", 1.2, "peer")
    said = "no: the bare products alone reach 1.20x"
    assert rows(records, GPU)["full head, speed over the fastest peer"] == (">= 1.25x", "1.14x", said)


def test_memory_row_pass_and_objective():
    memory = [
        {"key": {"shape": "head", "frozen": False, "provider": name}, "stats": {"median": 1.0}, "info": info}
        for name, info in (
            ("64MB", {"of_workspace": 0.98, "of_floor": 2.1}), ("1GB", {"of_workspace": 1.06, "of_floor": 1.1}),
            ("floor", {"of_floor": 1.0}),
        )
    ]  # fmt: skip
    found = rows(memory, CPU, "memory")
    assert found["peak bytes to workspace_bytes, largest of 2 budgets"] == ("<= 1.05x", "1.06x", "no")
    assert found["time at a budget of 64 MB to the bare products"] == ("<= 2.00x", "2.10x", "no")
    form = FORMS["bf16_in_place"]
    passes = [
        {
            "key": {"form": "bf16", "provider": name},
            "stats": {"median": time},
            "info": of_copy(form, name, time, 1.0, 9),
        }
        for name, time in (("copy", 1.0), ("triton", 1.25), ("eager", 5.0))
    ]
    found = rows(passes, GPU, "row_pass")
    measured = "0.80x by state bytes (4 per logit); 1.20x by those asked for (6 per logit)"
    assert found["row pass, share of the bandwidth of a copy"] == (">= 0.85x", measured, "no")
    objective = [
        {"key": {"part": f"mobt_{weights}", "provider": "triton"}, "stats": {"median": time}, "info": {}}
        for weights, time in (("gaussian", 61e-6), ("mean", 59e-6))
    ]
    found = targets.target_rows(results(objective, GPU, "objective"), cuda=True)
    assert [row[1:] for row in found] == [
        ("B = 8, K = 4, gaussian weights", "<= 60 us", "61 us", "no"),
        ("B = 8, K = 4, mean weights", "<= 60 us", "59 us", "yes"),
    ]


def test_ours_is_judged_by_the_same_gradient_error_as_peers():
    records = [
        record("products", 1.0, "floor", "products"), record("amopo_triton", 1.05, "ours"),
        record("amopo_triton_input_logits", 1.02, "ours", grad_hidden_error=0.02),
    ]  # fmt: skip
    found = targets.target_rows(results(records, GPU), cuda=True)
    assert found[0][1:] == ("head, peaked, amopo_triton", "<= 1.10x", "1.05x", "yes")
    wrong = [records[0], records[2]]
    assert targets.target_rows(results(wrong, GPU), cuda=True) == [
        ("full head, gradient error", "head, peaked", "< 0.01", "2.0e-02", "no")
    ]


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_nothing_measured_nothing_said(machine):
    assert targets.target_section(results([record("products", 1.0, "floor")], machine)) == ""
