"""Shapes count what transformers' own modules hold, and refuse what they cannot describe."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from amopo.memory.known_shapes import BUILT_IN, shape_of
from amopo.memory.shapes import FAMILIES, shape_from_config

# as the publishers' checkpoints state them; a tied weight counts once
PUBLISHED = {
    "Qwen2.5-0.5B": 494_032_768, "Qwen2.5-1.5B": 1_543_714_304, "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512, "Qwen2.5-14B": 14_770_033_664, "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-0.6B": 596_049_920, "Qwen3-1.7B": 1_720_574_976, "Qwen3-4B": 4_022_468_096, "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200, "Qwen3-32B": 32_762_123_264,
    "Llama-3-8B": 8_030_261_248, "Llama-3-70B": 70_553_706_496, "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496, "Llama-3.1-405B": 405_853_388_800, "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824, "Llama-3.3-70B": 70_553_706_496,
    "Mistral-7B": 7_248_023_552, "Mistral-Nemo": 12_247_782_400, "Mistral-Small": 23_572_403_200,
    "Gemma-2B": 2_506_172_416, "Gemma-7B": 8_537_680_896, "Gemma-2-2B": 2_614_341_888, "Gemma-2-9B": 9_241_705_984,
    "Gemma-2-27B": 27_227_128_320, "Gemma-3-1B": 999_885_952,
    # less the vision tower (416,866,032) and the projector (1152 (H + 1)): the text part is planned
    "Gemma-3-4B": 4_300_079_472 - 416_866_032 - 1152 * 2561,
    "Gemma-3-12B": 12_187_325_040 - 416_866_032 - 1152 * 3841,
    "Gemma-3-27B": 27_432_406_640 - 416_866_032 - 1152 * 5377,
}  # fmt: skip


def test_every_built_in_shape_has_its_published_number():
    assert PUBLISHED.keys() == BUILT_IN.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_number_of_parameters(name):
    assert BUILT_IN[name].parameters == PUBLISHED[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_modules(family):
    transformers = pytest.importorskip("transformers")
    from amopo.memory.configs import config_of

    shape = next(shape for shape in BUILT_IN.values() if shape.model_type == family)
    shape = dataclasses.replace(shape, layers=2)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config_of(shape))
        model.tie_weights()
    layer = model.get_decoder().layers[1] if hasattr(model, "get_decoder") else model.model.layers[1]
    assert shape.layer_parameters == sum(p.numel() for p in layer.parameters())
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    linears = {name.split(".")[-1]: module for name, module in layer.named_modules() if hasattr(module, "in_features")}
    assert {linear.name: (linear.inputs, linear.outputs, linear.bias) for linear in shape.linears} == {
        name: (module.in_features, module.out_features, module.bias is not None) for name, module in linears.items()
    }


def test_a_saved_configuration_gives_the_shape_of_its_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    from amopo.memory.configs import config_of

    for name in ("Qwen2.5-7B", "Qwen3-0.6B", "Gemma-3-1B", "Llama-3.2-1B"):
        config_of(BUILT_IN[name]).save_pretrained(tmp_path / name)
        for given in (tmp_path / name, tmp_path / name / "config.json"):
            found = shape_of(str(given))
            assert found.name == name and found.parameters == BUILT_IN[name].parameters
    assert transformers


@pytest.mark.parametrize(
    "given, name",
    [
        ("qwen2.5-32b", "Qwen2.5-32B"),
        ("Qwen/Qwen2.5-32B-Instruct", "Qwen2.5-32B"),
        ("Qwen/Qwen3-4B-Instruct-2507", "Qwen3-4B"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "Llama-3-8B"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "Mistral-7B"),
        ("mistralai/Mistral-Small-24B-Instruct-2501", "Mistral-Small"),
        ("google/gemma-3-27b-it", "Gemma-3-27B"),
    ],
)
def test_names_are_found_in_any_case_and_with_their_publisher(given, name):
    assert shape_of(given).name == name


@pytest.mark.parametrize("given", ["mistralai/Mistral-7B-v0.1", "Qwen2.5-32B-Instruct-AWQ", "Qwen3-30B-A3B"])
def test_a_name_whose_sizes_are_others_is_not_taken_for_its_neighbour(given):
    with pytest.raises(ValueError, match="neither a built-in shape"):
        shape_of(given)


def test_an_unknown_name_is_answered_with_what_comes_close():
    with pytest.raises(ValueError, match=r"'Qwen2.5-33B' is neither .*did you mean .*Qwen2.5-32B"):
        shape_of("Qwen2.5-33B")


def test_another_model_type_is_planned_as_llama_and_says_so():
    config = {
        "model_type": "olmo2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 100,
    }  # fmt: skip
    shape = shape_from_config(config, "mine")
    assert not shape.is_exact and shape.kv_heads == 4 and shape.head_dim == 16


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_experts": 8}, "mixtures of experts"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"intermediate_size": None}, "no intermediate_size"),
        ({"hidden_size": -64, "head_dim": 16}, "hidden_size must be a positive whole number, got -64"),
        ({"hidden_size": "64"}, "hidden_size must be a positive whole number, got '64'"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a positive whole number, got 0"),
        ({"num_key_value_heads": 1.5}, "num_key_value_heads must be a positive whole number"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
    ],
)
def test_what_cannot_be_planned_is_named(change, message):
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 100,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        shape_from_config({**config, **change}, "mine")


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not valid JSON"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="must hold a configuration"):
        shape_of(str(tmp_path))
