"""PEFT on the lm_head: what is computed equals PEFT's own logits, and what would not is refused by name."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import amopo
from amopo.head import find_head, head_logps
from amopo.head_adapters import check_adapters
from amopo.trainer import AMoPOTrainer

peft = pytest.importorskip("peft")
sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("trainer", "kernels")]
import tiny_runs  # noqa: E402
from allocations import AllocationWatch, implementation_of  # noqa: E402

BODY = ["q_proj", "v_proj"]


def adapted(targets=("lm_head", *BODY), *, model=None, seed=0, **settings):
    """A PEFT model whose adapters are no longer zero."""
    model = tiny_runs.qwen2() if model is None else model
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), **settings))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2)
    return model


def batch():
    ids = torch.randint(3, 64, (3, 8), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :3] = -100
    return ids, labels


def check_against_own_logits(model, *, tolerance=1e-5):
    """Log-probs and the gradient of every parameter, against PEFT's logits; returns the names that get a gradient."""
    ids, labels = batch()
    direction = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    logits = model(input_ids=ids, use_cache=False).logits
    exact = torch.log_softmax(logits[:, :-1].double(), -1).gather(2, ids[:, 1:, None])[..., 0]
    expected = torch.cat([torch.zeros(3, 1), exact * (labels[:, 1:] != -100)], 1)
    (expected * direction).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with amopo.patch(model):
        got = model(input_ids=ids, labels=labels)
        (got * direction).sum().backward()
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= 10 * tolerance * gradient.norm() + 1e-9, name
    return set(found)


def on_head(names):
    return {name for name in names if "lm_head" in name}


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"lora_bias": True}, {"init_lora_weights": "gaussian"}], ids=str
)
def test_lora_on_the_head_equals_pefts_logits_in_values_and_gradients(settings):
    names = check_against_own_logits(adapted(**settings))
    expected = {"lora_A.default.weight", "lora_B.default.weight"} | (
        {"lora_B.default.bias"} if "lora_bias" in settings else set()
    )
    assert {name.split("lm_head.")[1] for name in on_head(names)} == expected


def test_lora_on_the_head_of_a_tied_model():
    model = adapted(model=tiny_runs.qwen2(tie_word_embeddings=True))
    assert len(on_head(check_against_own_logits(model))) == 2


def test_adapters_on_both_ends_of_a_tied_model_that_peft_ties_too():
    model = adapted(["embed_tokens", *BODY], model=tiny_runs.qwen2(tie_word_embeddings=True), ensure_weight_tying=True)
    assert on_head(check_against_own_logits(model))


def test_the_head_trained_whole_beside_adapters():
    names = check_against_own_logits(adapted(BODY, modules_to_save=["lm_head"]))
    assert on_head(names) == {"base_model.model.lm_head.modules_to_save.default.weight"}


@pytest.mark.parametrize("disabled", [False, True])
def test_hooks_of_pefts_wrapper_run_around_those_of_the_copy_in_it(disabled):
    """FSDP2 gathers the weight in the hooks of the module that is the unit, which may be the wrapper."""
    model = adapted(BODY, modules_to_save=["lm_head"])
    wrapper = find_head(model).lm_head
    copy = wrapper.original_module if disabled else wrapper.modules_to_save["default"]
    called = []
    for module in (wrapper, copy):
        module.register_forward_pre_hook(lambda module, arguments: called.append(module))
        module.register_forward_hook(lambda module, arguments, output: called.append(module))
    with model.disable_adapter() if disabled else contextlib.nullcontext():
        head_logps(wrapper, torch.randn(3, 32), torch.tensor([3, 4, 5]))
    assert called == [wrapper, copy, copy, wrapper]


@pytest.mark.parametrize("targets", [("lm_head", *BODY), BODY], ids=["lora", "whole"])
def test_disabled_adapters_give_the_base_model(targets):
    settings = {} if "lm_head" in targets else {"modules_to_save": ["lm_head"]}
    model = adapted(targets, **settings)
    if settings:
        find_head(model).lm_head.modules_to_save["default"].weight.data.normal_()
    ids, labels = batch()
    plain = tiny_runs.qwen2()
    with amopo.patch(model), amopo.patch(plain), torch.no_grad():
        adapter = model(input_ids=ids, labels=labels)
        with model.disable_adapter():
            base = model(input_ids=ids, labels=labels)
        expected = plain(input_ids=ids, labels=labels)
    torch.testing.assert_close(base, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(adapter, expected, atol=1e-3)


def test_the_active_adapter_of_two_is_used():
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["lm_head", *BODY]))
    torch.nn.init.normal_(find_head(model).lm_head.lora_B["other"].weight)
    for name in ("other", "default"):
        model.set_adapter(name)
        names = on_head(check_against_own_logits(model))
        assert names and all(f".{name}." in parameter for parameter in names)
        model.zero_grad()


def test_an_adapter_that_leaves_the_head_alone_uses_the_base_head():
    model = adapted()
    model.add_adapter("body", peft.LoraConfig(r=2, target_modules=BODY))
    model.set_adapter("body")
    assert not on_head(check_against_own_logits(model))


def test_merged_adapters_score_and_do_not_train_silently():
    model = adapted()
    model.merge_adapter()
    ids, labels = batch()
    with torch.no_grad():
        exact = torch.log_softmax(model(input_ids=ids).logits[:, :-1], -1).gather(2, ids[:, 1:, None])[..., 0]
        with amopo.patch(model):
            torch.testing.assert_close(model(input_ids=ids, labels=ids)[:, 1:], exact, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="merged adapter .'default'., which would not train.*unmerge_adapter"):
        amopo.patch(model)(input_ids=ids, labels=labels)


def test_adapters_in_fp32_on_a_bf16_model():
    model = adapted(model=tiny_runs.qwen2().bfloat16())
    assert find_head(model).lm_head.lora_A["default"].weight.dtype == torch.float32
    names = check_against_own_logits(model, tolerance=5e-2)
    assert len(on_head(names)) == 2


def test_dropout_of_the_head_adapter_is_refused_in_training_alone():
    model = adapted(lora_dropout=0.1)
    model.eval()
    check_against_own_logits(model)
    model.train()
    ids, labels = batch()
    with amopo.patch(model.eval()):
        model.train()
        with pytest.raises(ValueError, match=r"dropout on the head .adapter 'default', lora_dropout=0.1"):
            model(input_ids=ids, labels=labels)
    with pytest.raises(ValueError, match=r"lora_dropout=0.1.*set lora_dropout=0"):
        check_adapters(model.get_base_model().eval(), training=True)
    body = adapted(BODY, lora_dropout=0.1)
    check_adapters(body.get_base_model(), training=True)


def two_active():
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["lm_head"]))
    model.base_model.set_adapter(["default", "other"])
    return model


def tied(targets, **settings):
    return adapted(targets, model=tiny_runs.qwen2(tie_word_embeddings=True), **settings)


def ia3():
    config = peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[])
    return peft.get_peft_model(tiny_runs.qwen2(), config)


REFUSED = {
    "dora": (lambda: adapted(use_dora=True), r"DoRA on the head .adapter 'default', DoraLinearVariant"),
    "two active": (two_active, r"2 active adapters .default, other.*set_adapter"),
    "not lora": (ia3, r"an adapter that is not LoRA .peft.tuners.ia3.layer.Linear."),
    "lora on the parameter": (lambda: adapted([], target_parameters=["lm_head.weight"]), "not LoRA .*ParamWrapper"),
    "embedding tied to the head": (lambda: tied(["embed_tokens"]), "input embeddings carry an adapter .Embedding."),
    "embedding trained whole, tied": (
        lambda: tied(BODY, modules_to_save=["embed_tokens"]),
        r"input embeddings carry an adapter .ModulesToSaveWrapper.*ensure_weight_tying",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused_by_name(name, tmp_path):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        amopo.patch(make())
    with pytest.raises(ValueError, match=message):
        AMoPOTrainer(make(), tiny_runs.config(tmp_path), train_dataset=tiny_runs.samples(2))


def test_single_tokens_trained_at_both_ends_of_a_tied_model_are_refused():
    with pytest.raises(TypeError, match="TrainableTokensWrapper with a forward of its own"):
        amopo.patch(tied(BODY, trainable_token_indices={"embed_tokens": [3, 4]}))


def test_untied_embeddings_may_carry_an_adapter():
    check_against_own_logits(adapted(["embed_tokens", *BODY]))


def test_a_mixed_batch_of_adapters_is_refused():
    model = adapted()
    ids, labels = batch()
    with amopo.patch(model.eval()), pytest.raises(ValueError, match="adapter_names, which the fused head does not"):
        model(input_ids=ids, labels=labels, adapter_names=["default", "default", "__base__"])


def test_hooks_of_every_module_on_the_way_run():
    """Sharded training gathers weights in them: of the adapter layer, A, B and the head beneath."""
    model = adapted()
    head = find_head(model).lm_head
    seen = []
    for name, module in [
        ("layer", head),
        ("a", head.lora_A["default"]),
        ("b", head.lora_B["default"]),
        ("base", head.base_layer),
    ]:
        module.register_forward_pre_hook(lambda m, args, name=name: seen.append(name))
    head_logps(head, torch.randn(5, 32), torch.randint(0, 64, (5,)))
    assert seen == ["layer", "a", "b", "base"]
    assert all("forward" not in module.__dict__ for module in head.modules())


class MatrixProducts(TorchDispatchMode):
    """Multiply-adds of all matrix products, our own operators looked into."""

    def __init__(self):
        super().__init__()
        self.multiply_adds = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        implementation = implementation_of(func)
        if implementation is not None:
            with self:
                return implementation(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_", "mv"):
            a, b = args[-2:] if name in ("mm", "mv") else args[1:3]
            self.multiply_adds += a.numel() * (b.shape[1] if b.dim() == 2 else 1)
        return func(*args, **(kwargs or {}))


def head_step(model, rows, targets):
    with MatrixProducts() as counter, AllocationWatch(*model.parameters(), rows) as watch:
        head_logps(find_head(model).lm_head, rows, targets).sum().backward()
    return counter.multiply_adds, watch


def test_a_frozen_head_costs_no_weight_gradient():
    """4NVH and nothing of the weight's size with adapters on the body; 6NVH where the head trains."""
    n, h, v = 48, 32, 2048
    rows = torch.randn(n, h, requires_grad=True)
    targets = torch.randint(0, v, (n,))
    nvh = n * h * v

    frozen = adapted(BODY, model=tiny_runs.qwen2(vocab_size=v))
    cost, watch = head_step(frozen, rows, targets)
    assert 2 * cost == 4 * nvh
    assert find_head(frozen).lm_head.weight.grad is None
    dense = head_step(tiny_runs.qwen2(vocab_size=v), rows, targets)[0]
    assert 2 * dense == 6 * nvh

    head = adapted(["lm_head"], model=tiny_runs.qwen2(vocab_size=v))
    cost, watch = head_step(head, rows, targets)
    low_rank = n * 4 * (v + h)
    assert 4 * nvh < 2 * cost <= 4 * nvh + 10 * low_rank
    assert find_head(head).lm_head.weight.grad is None
    grads = [p.grad for p in find_head(head).lm_head.parameters() if p.grad is not None]
    assert sorted(tuple(g.shape) for g in grads) == [(4, h), (v, 4)]


def test_the_trainer_trains_an_adapter_on_the_head_and_its_metrics_say_so(tmp_path):
    model = adapted()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = AMoPOTrainer(
        model,
        tiny_runs.config(tmp_path, num_train_epochs=8, learning_rate=1e-2, self_check=True),
        train_dataset=tiny_runs.samples(6),
    )
    trainer.train()
    margins = [log["rewards/margins"] for log in trainer.state.log_history if "rewards/margins" in log]
    assert margins[-1] > margins[0] + 0.1
    changed = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    assert changed == {name for name in before if "lora_" in name} and len(on_head(changed)) == 2
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(tiny_runs.qwen2(), tmp_path / "adapter")
    ids, labels = batch()
    with amopo.patch(model.eval()), amopo.patch(loaded), torch.no_grad():
        torch.testing.assert_close(
            loaded(input_ids=ids, labels=labels), model(input_ids=ids, labels=labels), rtol=1e-5, atol=1e-5
        )
