"""The same model has the same identity; whatever would train differently shows by name."""

import pytest
import tiny_runs
import torch

from amopo.trainer.identity import model_identity

peft = pytest.importorskip("peft")


def lora(seed=0, *, model=None, **changes):
    settings = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"], **changes}
    return peft.get_peft_model(model or tiny_runs.qwen2(seed), peft.LoraConfig(**settings))


def differing(one, other):
    one, other = model_identity(one), model_identity(other)
    return {name for name in one if one[name] != other[name]}


def test_the_same_model_set_up_again_is_the_same():
    assert not differing(tiny_runs.qwen2(), tiny_runs.qwen2())
    torch.manual_seed(1)
    first = lora()
    torch.manual_seed(2)
    assert not differing(first, lora(target_modules=["v_proj", "q_proj"])), "initial adapters do not count"


def test_trained_values_do_not_count():
    assert not differing(tiny_runs.qwen2(0), tiny_runs.qwen2(1))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"lora_alpha": 8}, {"peft"}),
        ({"lora_dropout": 0.1}, {"peft"}),
        ({"r": 4}, {"peft", "trainable_parameters", "dtypes"}),
        # a layer without an adapter has another name, so its frozen weight does
        (
            {"target_modules": ["q_proj"]},
            {"peft", "trainable_parameters", "trainable_names", "dtypes", "frozen_weights"},
        ),
    ],
)
def test_adapter_settings_show(changes, names):
    assert differing(lora(), lora(**changes)) == names


def test_other_base_weights_under_an_adapter_show():
    assert differing(lora(0), lora(1)) == {"frozen_weights"}
    changed = lora(0)
    with torch.no_grad():
        changed.get_base_model().lm_head.weight[3, 5] += 1e-3
    assert differing(lora(0), changed) == {"frozen_weights"}


def test_an_adapter_where_there_was_none_shows():
    assert "peft" in differing(tiny_runs.qwen2(), lora())
    assert model_identity(tiny_runs.qwen2())["peft"] == {}


def test_what_frees_memory_or_names_places_does_not_show():
    model = tiny_runs.qwen2(attn_implementation="eager")
    model.config.use_cache = False
    model.config._name_or_path = "elsewhere"
    model.gradient_checkpointing_enable()
    assert not differing(tiny_runs.qwen2(), model)


def test_the_digest_does_not_depend_on_how_the_sum_is_taken():
    torch.set_num_threads(1)
    one = model_identity(lora())
    torch.set_num_threads(2)
    two = model_identity(lora())
    torch.set_num_threads(1)
    assert one == two
