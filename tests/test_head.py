"""Reaching the lm_head: through the module, with its hooks, and refusing what would be silently wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amopo.head import find_head, head_logps
from amopo_kernels import reference

transformers = pytest.importorskip("transformers")


def rows_and_targets(hidden=16, vocab=40, n=9):
    return torch.randn(n, hidden, requires_grad=True), torch.randint(0, vocab, (n,))


def tiny(model_type="qwen2", **options):
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        **options,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def test_module_is_called_so_that_its_hooks_run_and_is_left_as_it_was():
    head = nn.Linear(16, 40)
    seen = []
    head.register_forward_pre_hook(lambda module, args: seen.append(("before", len(args))))
    head.register_forward_hook(lambda module, args, output: seen.append(("after", output.shape)))
    rows, targets = rows_and_targets()
    logps = head_logps(head, rows, targets)
    assert seen == [("before", 2), ("after", (9,))]
    assert "forward" not in head.__dict__ and head(rows).shape == (9, 40)
    exact = reference.linear_logprobs(rows.double(), head.weight.double(), targets, bias=head.bias.double())
    torch.testing.assert_close(logps.double(), exact, rtol=1e-5, atol=1e-6)


def test_module_is_restored_after_an_error():
    head = nn.Linear(16, 40)
    rows, targets = rows_and_targets()
    with pytest.raises(ValueError):
        head_logps(head, rows, targets, budget=1)
    assert "forward" not in head.__dict__


def test_no_rows_still_call_the_module():
    head = nn.Linear(16, 40)
    calls = []
    head.register_forward_pre_hook(lambda module, args: calls.append(1))
    logps = head_logps(head, torch.zeros(0, 16, requires_grad=True), torch.zeros(0, dtype=torch.int64))
    logps.sum().backward()
    assert calls and logps.shape == (0,) and float(head.weight.grad.abs().max()) == 0.0


def test_a_hook_that_casts_the_result_is_refused():
    head = nn.Linear(16, 40)
    head.register_forward_hook(lambda module, args, output: output.bfloat16())
    with pytest.raises(TypeError, match="came back from the lm_head as torch.bfloat16"):
        head_logps(head, *rows_and_targets())


@pytest.mark.parametrize(
    "model_type, options, expected",
    [
        ("qwen2", {}, (None, None)),
        ("cohere", {"logit_scale": 0.25}, (0.25, None)),
        ("granite", {"logits_scaling": 8.0}, (0.125, None)),
        ("gemma2", {"final_logit_softcapping": 5.0, "head_dim": 8}, (None, 5.0)),
    ],
)
def test_logit_transforms_of_real_architectures(model_type, options, expected):
    torch.manual_seed(0)
    model = tiny(model_type, **options).eval()
    head = find_head(model)
    assert (head.logit_scale, head.softcap) == expected
    tokens = torch.randint(0, 40, (2, 7))
    with torch.no_grad():
        exact = torch.log_softmax(model(tokens).logits[:, :-1].double(), -1)
        exact = exact.gather(2, tokens[:, 1:, None])[..., 0]
        hidden = head.body(tokens).last_hidden_state[:, :-1].reshape(-1, 16)
        logps = head_logps(
            head.lm_head, hidden, tokens[:, 1:].flatten(), logit_scale=head.logit_scale, softcap=head.softcap
        )
    torch.testing.assert_close(logps.view(2, 6).double(), exact, rtol=1e-5, atol=2e-6)


def test_models_and_heads_that_cannot_be_right_are_refused():
    with pytest.raises(ValueError, match="no output embeddings"):
        find_head(tiny().model)
    with pytest.raises(ValueError, match="router loss"):
        find_head(tiny("mixtral", num_local_experts=2, output_router_logits=True))
    with pytest.raises(ValueError, match="logit_scale=3.0 is not known for model type 'llama'"):
        find_head(tiny("llama", logit_scale=3.0))
    rows, targets = rows_and_targets()
    with pytest.raises(TypeError, match="without a weight tensor"):
        head_logps(nn.Identity(), rows, targets)
    with pytest.raises(TypeError, match="must be a module or a weight tensor"):
        head_logps("lm_head", rows, targets)
    head = nn.Linear(16, 40, bias=False)
    head.weight = nn.Parameter(torch.zeros(40, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match="quantised heads"):
        head_logps(head, rows, targets)
    with pytest.raises(ValueError, match="meta device"):
        head_logps(nn.Linear(16, 40, device="meta"), rows, targets)
    head = nn.Linear(16, 40, bias=False)
    head.weight = nn.Parameter(torch.zeros(0))
    with pytest.raises(ValueError, match="lm_head.weight has no elements here"):
        head_logps(head, rows, targets)


def test_a_head_with_a_forward_of_its_own_is_refused():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(TypeError, match=r"Scaled with a forward of its own \(Scaled.forward\)"):
        head_logps(Scaled(16, 40), *rows_and_targets())
    with pytest.raises(TypeError, match="forward of its own"):
        # as FSDP2 wraps a class: a subclass made at run time
        head = Scaled(16, 40)
        head.__class__ = type("FSDPScaled", (Scaled,), {})
        head_logps(head, *rows_and_targets())


def test_wrapped_plain_heads_are_fine():
    rows, targets = rows_and_targets()
    head = nn.Linear(16, 40)
    expected = head_logps(head, rows, targets)
    plain = head.forward
    head.forward = lambda x: plain(x)  # as accelerate does
    assert head_logps(head, rows, targets).equal(expected)
    del head.forward
    head.__class__ = type("FSDPLinear", (nn.Linear,), {"unshard": lambda self: None})
    assert head_logps(head, rows, targets).equal(expected)


def test_a_compiled_call_equals_a_plain_one_in_values_and_gradients():
    torch._dynamo.reset()
    rows, targets = rows_and_targets()
    head = nn.Linear(16, 40)
    plain = head_logps(head, rows, targets)
    expected = torch.autograd.grad(plain.sum(), [rows, head.weight])
    compiled = torch.compile(head_logps, backend="aot_eager", fullgraph=True)(head, rows, targets)
    torch.testing.assert_close(compiled, plain)
    torch.testing.assert_close(torch.autograd.grad(compiled.sum(), [rows, head.weight]), expected)


def test_weights_that_are_not_here_are_refused_with_what_to_do():
    rows, targets = rows_and_targets()
    head = nn.Linear(16, 40, bias=False)
    head.weight = nn.Parameter(torch.empty(0))
    with pytest.raises(ValueError, match="no elements here: its owner keeps it elsewhere, as ZeRO-3 does; call"):
        head_logps(head, rows, targets)
    head.weight.ds_id = 3  # what ZeRO-3 marks its parameters with
    with pytest.raises(ValueError, match="ZeRO-3 keeps it partitioned; call the model .*the engine of deepspeed"):
        head_logps(head, rows, targets)
    with pytest.raises(ValueError, match="meta device"):
        head_logps(nn.Linear(16, 40, device="meta"), rows, targets)
