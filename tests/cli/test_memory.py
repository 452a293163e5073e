"""`amopo memory`: the answer to "will it fit", in text and JSON, and one line for what cannot be answered."""

from __future__ import annotations

import json
import re

import pytest

from amopo.memory.plan import make_plan

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
        (("plan", "--model", "Qwen2.5-7B", "--gpu-memory", "0GB"), "--gpu-memory: '0GB' is 0 bytes"),
        (("plan", "--model", "Qwen2.5-7B", "--gpu-memory", "80XB"), "is not a size"),
        (
            ("plan", "--model", "Qwen2.5-7B", "--gpu-memory", "80"),
            "'80' is 80 bytes; give a positive number with a unit",
        ),
        (("plan", "--model", "Qwen2.5-7B", "--context", "-1"), "--context: '-1' is not a size"),
        (("plan", "--model", "Qwen2.5-7B", "--gpu-memory", "-80GB"), "--gpu-memory: '-80GB' is not a size"),
        (("plan", "--model", "Qwen2.5-7B", "--context", "-1GiB"), "--context: '-1GiB' is not a size"),
        (("plan", "--model", "Qwen2.5-7B", "--head-budget", "10"), "head_budget (10) is too small"),
        (("plan", "--model", "Qwen2.5-7B", "--accumulate", "0"), "accumulation must be a whole number"),
        (
            ("plan", "--model", "Qwen2.5-7B", "--gpus", "8", "--engine", "fsdp2", "--optimizer", "adamw8bit"),
            "adamw8bit does not run under fsdp2",
        ),
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


def test_methods_stand_side_by_side_with_what_each_holds(amopo):
    found = json.loads(amopo("memory", "plan", *CLUSTER, "--gpu-memory", "40GB", "--json").out)["methods"]
    held = [
        found[name]["largest_samples"] for name in ("released", "plain bf16", "amopo none", "amopo pair", "amopo tree")
    ]
    assert held == sorted(held) and held[0] < held[-1]
    assert found["released"]["fits"] is False and found["amopo pair"]["fits"] is True


def test_without_a_context_the_plan_is_of_tensors_alone(amopo):
    found = json.loads(amopo("memory", "plan", *CLUSTER, "--context", "0", "--json").out)
    assert found["phases"]["step"]["context"] == 0


def test_what_no_cluster_helps_says_why(amopo):
    outcome = amopo(
        "memory", "plan", "--model", "Qwen2.5-32B", "--engine", "ddp", "--gpus", "8", "--gpu-memory", "80GB", "--find"
    )
    assert "ddp holds all states on each; give --engine fsdp2 or zero3" in outcome.out
    outcome = amopo("memory", "plan", *CLUSTER, "--tokens", "900000", "--gpu-memory", "40GB", "--find")
    assert "lower --tokens" in outcome.out


@pytest.mark.parametrize("kind, status", [("olmo2", 0), ("phi", 2)])
def test_other_families_are_planned_only_where_their_layers_are_as_large(amopo, tmp_path, kind, status):
    pytest.importorskip("transformers")
    sizes = {
        "model_type": kind, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 2048, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    outcome = amopo("memory", "plan", "--model", tmp_path)
    assert outcome.status == status
    assert ("is planned with Llama's layers" if status == 0 else "its layers are others and are not planned") in (
        outcome.out + outcome.err
    )


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


def test_a_context_of_nothing_is_a_context(amopo):
    found = json.loads(amopo("memory", "plan", *CLUSTER, "--context", "0", "--json").out)
    assert found["phases"]["step"]["context"] == 0


def options_in(message: str) -> list[tuple[str, float]]:
    """(flags, GiB) of the changes that a message lists."""
    listed = re.split(r"(?:would fit|take least): ", message)[-1]
    return [(label, float(gib)) for label, gib in re.findall(r"(--.+?) \(([\d.]+) GiB\)", listed)]


@pytest.mark.parametrize(
    "limit, words, labels",
    [
        ("1.5GiB", "These would fit: ", ["--lora 16"]),
        ("4GiB", "These would fit: ", ["--lora 16", "--precision bf16", "--checkpointing"]),
        ("1MiB", "would fit; these take least: ", ["--lora 16", "--precision bf16", "--checkpointing"]),
    ],
)
def test_what_a_profile_that_does_not_fit_proposes_fits_and_is_run_by_it(
    amopo, tmp_path, monkeypatch, limit, words, labels
):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    import torch

    import amopo.memory.profile as module

    began = []

    def full(shape, sample, settings, **_):
        began.append((settings, make_plan(shape, sample, settings).peak))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(module, "profile", full)
    arguments = ("--model", "Qwen2.5-0.5B", "--layers", "2", "--device", "cpu", "--out", tmp_path)
    message = amopo("memory", "profile", *arguments, "--gpu-memory", limit).one_line()
    found = options_in(message)
    assert words in message and [label for label, _ in found] == labels
    began.clear()
    for label, gib in found:  # the command takes it, and its plan is what was said
        amopo("memory", "profile", *arguments, *label.split())
        settings, peak = began.pop()
        assert (settings.engine, settings.gpus) == ("single", 1) and peak / (1 << 30) == pytest.approx(gib, abs=0.006)
        assert words.startswith("would") or gib <= float(limit.removesuffix("GiB"))


@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried to allocate 2.00 GiB.\nmore", "DefaultCPUAllocator: can't allocate memory"]
)
def test_a_profile_that_does_not_fit_says_what_would(amopo, tmp_path, monkeypatch, words):
    pytest.importorskip("transformers")
    import torch

    import amopo.memory.profile as module

    def full(*_, **__):
        raise (torch.OutOfMemoryError if "CUDA" in words else RuntimeError)(words)

    monkeypatch.setattr(module, "profile", full)
    arguments = ("--model", "Qwen2.5-0.5B", "--layers", "2", "--device", "cpu", "--out", tmp_path)
    outcome = amopo("memory", "profile", *arguments)
    message = outcome.one_line()
    assert outcome.status == 1 and words.split("\n")[0].rstrip(".") in message and "more" not in message
    assert "By the plan a row of 6400 tokens takes" in message and "These take least: " in message
    assert [label for label, _ in options_in(message)] == ["--lora 16", "--precision bf16", "--checkpointing"]
    monkeypatch.setattr(module, "profile", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a bug")))
    assert "RuntimeError: a bug" in amopo("memory", "profile", *arguments).one_line()


def test_the_overview_lists_the_commands(amopo):
    outcome = amopo("memory")
    assert outcome.status == 0 and "plan" in outcome.out and "simulate" in outcome.out


@pytest.fixture
def narrow(monkeypatch):
    """A machine on which rows of more than so many tokens do not fit, in training; the rows that were tried."""
    pytest.importorskip("transformers")
    import torch

    from amopo.trainer import AMoPOTrainer

    tried = []

    def of(most):
        run = AMoPOTrainer._run

        def limited(self, model, inputs, **options):
            tried.append(inputs["input_ids"].shape[1])
            if tried[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return run(self, model, inputs, **options)

        monkeypatch.setattr(AMoPOTrainer, "_run", limited)
        return tried

    return of


def test_training_that_does_not_fit_says_what_would_in_one_line(amopo, small, data, tmp_path, narrow):
    narrow(200)
    outcome = amopo("train", *small, "--data", data, "--objectives", "a,b", "--output-dir", tmp_path / "out", "--quiet")
    message = outcome.err.splitlines()[-1]
    assert outcome.status == 1 and "Traceback" not in outcome.err
    assert "out of memory in optimizer step 2: CUDA out of memory. Tried to allocate 2.00 GiB" in message
    assert "By the plan a row of" in message and message.count("MiB);") == 2 and "tokens_per_batch=64" in message


def test_auto_budget_makes_it_fit(amopo, small, data, tmp_path, narrow, caplog):
    tried = narrow(200)
    outcome = amopo(
        "train", *small, "--data", data, "--objectives", "a,b", "--output-dir", tmp_path / "out", "--auto-budget",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    failed = [tokens for tokens in tried if tokens > 200]
    assert len(failed) == 2  # 512, then 256; 128 fits, and nothing larger is tried again
    assert "going on with tokens_per_batch=128" in caplog.text
