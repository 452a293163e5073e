"""`amopo env`: attention per device, ranks, and what the environment asks for."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from amopo.packing import attention_backends
from amopo_kernels.backend import cpp_available


@pytest.mark.skipif(not cpp_available("cpu")[0], reason="the C++ operations were not built")
def test_the_attention_that_is_shown_is_the_one_that_a_layer_gets(monkeypatch):
    for name in ("AMOPO_ATTENTION", "AMOPO_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    for row in attention_backends.describe(["cpu"]):
        query = torch.zeros(1, 1, 128, dtype=getattr(torch, row["inputs"]))
        assert row["backend"] == attention_backends.choose_backend(
            nn.Identity(), query, query, window=None, softcap=None
        )
        assert row["backend"] == "cpp" and row["reason"] == "the first of its order"


@pytest.mark.parametrize("asked", ["eager", "triton"])
def test_without_the_compiled_operations_the_reason_says_so(asked, monkeypatch):
    monkeypatch.setenv("AMOPO_BACKEND", asked)
    for row in attention_backends.describe(["cpu"]):
        assert row["backend"] == "sdpa" and row["reason"] == f"not cpp: AMOPO_BACKEND={asked} leaves it out"
    monkeypatch.delenv("AMOPO_BACKEND")
    monkeypatch.setattr(attention_backends, "cpp_available", lambda device: (False, "they were not built; build them"))
    for row in attention_backends.describe(["cpu"]):
        assert row["backend"] == "sdpa" and row["reason"] == "not cpp: they were not built; build them"


def test_on_a_gpu_the_reason_names_what_came_before(monkeypatch):
    monkeypatch.setattr(attention_backends, "_capability", lambda device: (8, 0))
    monkeypatch.setattr(attention_backends, "_varlen_parameters", lambda: None)
    monkeypatch.setattr(attention_backends, "_is_there", lambda module: module == "flash_attn")
    rows = {row["inputs"]: row for row in attention_backends.describe(["cuda:1"])}
    assert rows["bfloat16"]["backend"] == "flash_attn" and "not varlen: torch" in rows["bfloat16"]["reason"]
    assert rows["float32"]["backend"] == "sdpa" and "fp16 and bf16" in rows["float32"]["reason"]
    assert rows["float32"]["device"] == "cuda:1"
    monkeypatch.setattr(attention_backends, "_capability", lambda device: (7, 5))
    assert {row["backend"] for row in attention_backends.describe(["cuda:1"])} == {"sdpa"}


def test_what_the_environment_asks_for_and_cannot_have_is_said(amopo, monkeypatch):
    monkeypatch.setenv("AMOPO_ATTENTION", "flash_attn")
    found = json.loads(amopo("env", "--json").out)
    assert {row["backend"] for row in found["attention"] if row["device"] == "cpu"} == {"none"}
    assert "cannot run here: it runs on CUDA" in amopo("env").out
    assert found["environment"]["AMOPO_ATTENTION"] == "flash_attn"
    monkeypatch.setenv("AMOPO_ATTENTION", "sdpa")
    assert "set by AMOPO_ATTENTION" in amopo("env").out
    monkeypatch.setenv("AMOPO_ATTENTION", "magic")
    assert "AMOPO_ATTENTION='magic' is not known" in amopo("env").one_line()


def test_text_and_json_say_the_same(amopo):
    text, found = amopo("env").out, json.loads(amopo("env", "--json").out)
    for package in ("torch", "transformers", "accelerate", "deepspeed", "trl", "peft"):
        assert found["versions"][package] in text and package in text
    for title in ("machine", "distributed", "environment"):
        for name, value in found[title].items():
            assert name in text and all(part in text for part in (value if isinstance(value, list) else [str(value)]))
    if torch.distributed.is_gloo_available():
        assert found["distributed"]["gloo"] == "there"
    assert ("none" in found["machine"]["accelerators"]) is not torch.cuda.is_available()


@pytest.mark.parametrize("name", ["operations", "head products", "attention"])
def test_every_choice_has_its_reason(amopo, name):
    rows = json.loads(amopo("env", "--json").out)[name]
    assert rows and all(row["reason"] for row in rows)
