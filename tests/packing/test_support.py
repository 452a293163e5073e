"""Models that would let packed sequences see each other are refused by name, and found by trying."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from amopo.packing import attention
from amopo.packing.support import check_packed_row, check_packing_support, check_position_ids

transformers = pytest.importorskip("transformers")


class FakeModel(nn.Module):
    """A model that is nothing but its configuration."""

    def __init__(self, **config):
        super().__init__()
        self.config = SimpleNamespace(**{"_attn_implementation": "sdpa", "model_type": "fake", **config})


def tiny_llama(**changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **changes}))


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash_attention_2", "flash_attention_3", "amopo_tree"])
def test_ordinary_models_pass(implementation):
    model = FakeModel(
        _attn_implementation=implementation,
        layer_types=["full_attention", "sliding_attention"],
        rope_parameters={"rope_type": "yarn", "factor": 2.0},
    )
    check_packing_support(model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_attn_implementation": "flex_attention"}, "attn_implementation='flex_attention' is not known"),
        ({"_attn_implementation": None}, "attn_implementation=None is not known"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of type linear_attention let one sequence"),
        ({"layers_block_type": ["attention", "mamba"]}, "layers of type mamba let one sequence"),
        ({"layer_types": ["chunked_attention"]}, "layers of type chunked_attention"),
        ({"model_type": "mamba2"}, "model type 'mamba2' carries a recurrent state"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type='dynamic' changes with the longest sequence"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type='longrope' changes with the longest sequence"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "rope_type='dynamic'"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}, "multimodal rope"),
        ({"alibi": True}, "ALiBi counts distances along the whole row"),
        ({"is_encoder_decoder": True}, "it is an encoder-decoder model"),
        ({"output_router_logits": True}, "output_router_logits=True adds a router loss"),
    ],
)
def test_refusals_name_the_model_the_reason_and_the_remedy(config, message):
    with pytest.raises(ValueError, match=f"FakeModel cannot train on packed rows: .*{message}.*; "):
        check_packing_support(FakeModel(**config))


def test_a_module_without_configuration_is_refused():
    with pytest.raises(ValueError, match="Linear cannot train on packed rows: it has no .config"):
        check_packing_support(nn.Linear(1, 1))


def test_virtual_tokens_are_refused():
    model = FakeModel()
    model.peft_config = {"default": SimpleNamespace(is_prompt_learning=True)}
    with pytest.raises(ValueError, match="adapter 'default' puts virtual tokens before the row"):
        check_packing_support(model)


def test_real_refusals():
    check_packing_support(tiny_llama())
    with pytest.raises(ValueError, match="rope_type='dynamic'"):
        check_packing_support(tiny_llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))


def test_a_body_without_position_ids_is_refused():
    check_position_ids(tiny_llama().model)

    class NoPositions(nn.Module):
        def forward(self, input_ids): ...

    with pytest.raises(ValueError, match="its forward takes no position_ids"):
        check_position_ids(NoPositions())


@pytest.fixture(params=[False, True], ids=["rows without sharing", "tree"])
def shares(request):
    return request.param


def check(model, shares):
    before = attention.install(model) if shares else None
    try:
        check_packed_row(model.model, vocab_size=64, device="cpu", shares=shares)
    finally:
        if shares:
            attention.uninstall(model, before)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_packs_passes_and_is_left_as_it_was(implementation, dtype, shares):
    model = tiny_llama(attn_implementation=implementation).to(dtype)
    state = torch.get_rng_state()
    model.train()
    check(model, shares)
    assert model.model.training and model.config._attn_implementation == implementation
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_leak_between_sequences_is_found(dtype):
    model = tiny_llama().to(dtype)
    plain = model.model.forward

    def leaking(**kwargs):
        # A mask over the whole row turns transformers' search for sequences off.
        return plain(**{**kwargs, "attention_mask": torch.ones_like(kwargs["input_ids"])})

    model.model.forward = leaking
    with pytest.raises(ValueError, match="in a packed row differ from those of the sequence alone"):
        check(model, shares=False)


@pytest.mark.parametrize("what", ["positions", "mixing"])
def test_layers_that_look_beyond_a_path_are_found(what):
    model = tiny_llama()
    plain = model.model.layers[1].mlp.forward
    if what == "positions":
        model.model.layers[0].self_attn.is_causal = True
        original = model.model.forward

        def forward(**kwargs):
            kwargs.pop("position_ids", None)
            return original(**kwargs)

        model.model.forward = forward
    else:
        model.model.layers[1].mlp.forward = lambda x: plain(x) + x.roll(1, dims=1)
    with pytest.raises(ValueError, match="in a packed row differ from those of the sequence alone"):
        check(model, shares=True)


def test_broken_weights_are_called_broken(shares):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(ValueError, match="hidden states hold NaN or inf on a first try; the weights are broken"):
        check(model, shares)
