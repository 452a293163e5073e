"""`amopo memory`: the answer to "will it fit", in text and JSON, and one line for what cannot be answered."""

from __future__ import annotations

import json

import pytest

CLUSTER = ("--model", "Qwen2.5-32B", "--gpus", "32", "--engine", "fsdp2", "--checkpointing")


def test_a_plan_says_whether_it_fits_and_what_would(amopo):
    outcome = amopo("memory", "plan", *CLUSTER, "--gpu-memory", "80GB", "--find")
    assert outcome.status == 0, outcome.err
    for words in ("32.76 billion parameters", "\nfits: ", "largest token budget: ", "smallest cluster: ", "amopo tree"):
        assert words in outcome.out


def test_json_is_one_object_in_bytes(amopo):
    outcome = amopo("memory", "plan", *CLUSTER, "--gpu-memory", "20GB", "--json")
    found = json.loads(outcome.out)
    assert found["fits"] is False and found["gpu_memory"] == 20 * 10**9
    assert found["peak"] == max(sum(phase.values()) for phase in found["phases"].values())
    assert found["phases"]["step"]["context"] == 1 << 30
    assert found["changes"][0]["freed"] == max(change["freed"] for change in found["changes"])


def test_a_larger_gpu_holds_a_larger_budget(amopo):
    budgets = [
        json.loads(amopo("memory", "plan", *CLUSTER, "--gpu-memory", size, "--json").out)["largest_tokens"]
        for size in ("40GB", "80GB", "141GB")
    ]
    assert 0 < budgets[0] < budgets[1] < budgets[2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("plan",), "amopo memory plan needs --model"),
        (("plam", "--model", "x"), "did you mean plan?"),
        (("plan", "--model", "Qwen9"), "--model: model 'Qwen9' is neither a built-in shape"),
        (("plan", "--model", "Qwen2.5-7B", "--engine", "zero9"), "known: single, ddp, fsdp2, zero3"),
        (("plan", "--model", "Qwen2.5-7B", "--gpus", "12"), "12 GPUs are not a whole number of nodes of 8"),
        (("plan", "--model", "Qwen2.5-7B", "--gpus", "-1"), "gpus must be a whole number of at least 1"),
        (("plan", "--model", "Qwen2.5-7B", "--gpus", "8", "--engine", "single"), "runs on one GPU, not on 8"),
        (("plan", "--model", "Qwen2.5-7B", "--offload", "all"), "does not offload"),
        (("plan", "--model", "Qwen2.5-7B", "--tokens", "-1"), "tokens must be a whole number"),
        (("plan", "--model", "Qwen2.5-7B", "--tokens", "100"), "does not hold one sample"),
        (("plan", "--model", "Qwen2.5-7B", "--gpu-memory", "0GB"), "--gpu-memory: '0GB' is not a size"),
        (("plan", "--model", "Qwen2.5-7B", "--gpu-memory", "80XB"), "is not a size"),
        (("plan", "--model", "Qwen2.5-7B", "--find"), "give --gpu-memory"),
        (("plan", "--model", "Qwen2.5-7B", "--lora", "0"), "lora must be a whole number"),
        (("plan", "--model", "Qwen2.5-7B", "--sharing", "all"), "sharing"),
        (("simulate", "--model", "Qwen2.5-7B", "--gpus", "8", "--engine", "zero3"), "zero3 cannot be simulated"),
        (("simulate", "--model", "Qwen2.5-7B", "--layers", "0"), "--layers must be at least 1"),
        (("simulate", "--model", "Qwen2.5-7B", "--optimizer", "adamw8bit"), "adamw8bit cannot be simulated"),
        (
            ("simulate", "--model", "Qwen2.5-7B", "--gpus", "8", "--engine", "fsdp2", "--offload", "all"),
            "--offload: all cannot be simulated",
        ),
        (("simulate", "--model", "Gemma-2-9B"), "attention with a softcap (Gemma-2-9B) cannot be simulated"),
    ],
)
def test_bad_input_is_one_line(amopo, arguments, message):
    if arguments[0] == "simulate":
        pytest.importorskip("transformers")
    outcome = amopo("memory", *arguments)
    assert message in outcome.one_line()


def test_a_simulation_stands_beside_its_plan(amopo):
    pytest.importorskip("transformers")
    outcome = amopo(
        "memory", "simulate", "--model", "Qwen2.5-0.5B", "--layers", "2", "--gpus", "8", "--tokens", "3200", "--json"
    )
    assert outcome.status == 0, outcome.err
    peak = json.loads(outcome.out)["peak"]
    assert peak["planned"] == pytest.approx(peak["simulated"], rel=0.05)


def test_a_plan_can_be_drawn(amopo, tmp_path):
    pytest.importorskip("matplotlib")
    outcome = amopo("memory", "plan", *CLUSTER, "--gpu-memory", "80GB", "--picture", tmp_path / "plan.png")
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_profile_measures_a_saved_shape(amopo, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    sizes = {
        "model_type": "qwen2", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    lengths = ("--objectives", "2", "--prompt", "24", "--template", "4", "--chosen", "20", "--rejected", "16")
    out = tmp_path / "out"
    outcome = amopo(
        "memory", "profile", "--model", tmp_path, *lengths, "--tokens", "512", "--precision", "fp32", "--device", "cpu",
        "--steps", "2", "--out", out,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    found = json.loads((out / "profile.json").read_text())
    assert found["device"] == "cpu" and found["measured"].keys() == {"forward", "head", "backward", "step"}
    peak = max(sum(part.values()) for part in found["planned"].values())
    assert peak == pytest.approx(max(found["measured"].values()), rel=0.10)
    assert (out / "profile.png").is_file() and (out / "profile.html").is_file()
    message = amopo("memory", "profile", "--model", tmp_path, "--device", "cpu", "--snapshot", "--out", out).one_line()
    assert "leave --snapshot out on a CPU" in message


def test_the_overview_lists_the_commands(amopo):
    outcome = amopo("memory")
    assert outcome.status == 0 and "plan" in outcome.out and "simulate" in outcome.out
