"""The fused DPO stage gives LLaMA-Factory's own losses and gradients, and stores no logits."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("llamafactory.hparams", reason="LLaMA-Factory is not installed here; run make test-llamafactory")

from llamafactory.hparams import FinetuningArguments  # noqa: E402
from micro_batches_seen import check_reductions  # noqa: E402

from amopo.integrations.llamafactory.dpo import FusedDPOTrainer, _CustomDPOTrainer  # noqa: E402
from amopo.integrations.llamafactory.forward import label_logps, patch_logps  # noqa: E402

CASES = {
    "dpo": {"pref_loss": "sigmoid"},
    "dpo, smoothed": {"pref_loss": "sigmoid", "dpo_label_smoothing": 0.2},
    "dpo with an sft term": {"pref_loss": "sigmoid", "pref_ftx": 0.5},
    "dpo with a bco term": {"pref_loss": "sigmoid", "pref_bco_weight": 0.5},
    "kto": {"pref_loss": "kto_pair"},
    "dpo, length-desensitised": {"pref_loss": "sigmoid", "ld_alpha": 0.3},
    "hinge": {"pref_loss": "hinge"},
    "ipo": {"pref_loss": "ipo"},
    "simpo": {"pref_loss": "simpo", "simpo_gamma": 0.7, "pref_beta": 2.0},
    "orpo": {"pref_loss": "orpo"},
}


def loss_of(trainer, batch):
    trainer.model.train()
    return trainer.get_batch_loss_metrics(trainer.model, {k: v.clone() for k, v in batch.items()})


@pytest.mark.parametrize("case", CASES)
def test_loss_gradients_and_metrics_are_those_of_llamafactory(case, make_model, make_batch, make_trainer, gradients):
    arguments = FinetuningArguments(stage="dpo", finetuning_type="full", **CASES[case])
    batch, results = make_batch(6), {}
    for trainer_class in (_CustomDPOTrainer, FusedDPOTrainer):
        model = make_model()
        ref_model = make_model(seed=3) if arguments.use_ref_model else None
        trainer = make_trainer(trainer_class, arguments, model=model, ref_model=ref_model)
        loss, metrics = loss_of(trainer, batch)
        loss.backward()
        results[trainer_class] = loss.item(), metrics, gradients(model)
    (own, own_metrics, own_gradients), (fused, metrics, fused_gradients) = results.values()

    assert fused == pytest.approx(own, abs=1e-5, rel=1e-5)
    assert fused_gradients.keys() == own_gradients.keys() and own_gradients
    for name, expected in own_gradients.items():
        assert (fused_gradients[name] - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max()), name
    assert max(g.abs().max() for g in own_gradients.values()) > 1e-3  # there is something to compare
    assert metrics == pytest.approx(
        {name: value for name, value in own_metrics.items() if "logits/" not in name}, abs=1e-4, rel=1e-5
    )


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]], ids=["body", "head"])
def test_an_adapter_is_its_own_reference_model(make_model, make_batch, make_trainer, gradients, targets):
    from peft import LoraConfig, get_peft_model

    arguments = FinetuningArguments(stage="dpo", finetuning_type="lora", pref_loss="sigmoid")
    results = []
    for trainer_class in (_CustomDPOTrainer, FusedDPOTrainer):
        model = get_peft_model(make_model(), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        torch.manual_seed(4)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        trainer = make_trainer(trainer_class, arguments, model=model)
        loss, metrics = loss_of(trainer, make_batch(6))
        loss.backward()
        results.append((loss.item(), metrics["rewards/margins"], gradients(model)))
    (own, own_margin, own_gradients), (fused, margin, fused_gradients) = results

    assert fused == pytest.approx(own, abs=1e-5, rel=1e-5)
    assert abs(own_margin) > 1e-3 and margin == pytest.approx(own_margin, abs=1e-4, rel=1e-4)
    assert own_gradients and all("lora" in name for name in own_gradients)
    for name, expected in own_gradients.items():
        assert (fused_gradients[name] - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max()), name


def test_no_tensor_of_logits_is_made(make_batch, make_model):
    model, batch = make_model(), make_batch(6)
    patch_logps(model)
    labels = batch.pop("labels")
    assert _has_logits(lambda: model(**batch).logits, labels)
    assert not _has_logits(lambda: label_logps(model, batch, labels), labels)


def _has_logits(call, labels):
    """Whether a call made a tensor with a vocabulary for every position."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor))
            return result

    with Watch():
        call()
    return max(sizes) >= labels.numel() * 97


def test_plain_calls_and_generation_are_untouched(make_model, make_batch):
    model, batch = make_model().eval(), make_batch(4)
    before = model(input_ids=batch["input_ids"]).logits
    handle = patch_logps(model)
    assert torch.equal(model(input_ids=batch["input_ids"]).logits, before)
    assert model.generate(batch["input_ids"][:1], max_new_tokens=2, do_sample=False).shape[1] == 15
    assert patch_logps(model) is handle
    with pytest.raises(ValueError, match="nn.DataParallel cannot replicate a patched model"):
        model._replicate_for_data_parallel()  # as torch.nn.parallel.replicate does
    handle.remove()
    assert "forward" not in model.__dict__
    handle.remove()
    assert model._replicate_for_data_parallel() is not model


@pytest.mark.parametrize("given, expected", [({}, [True]), ({"sync_each_batch": False}, [])])
def test_gradients_are_reduced_in_every_micro_batch_under_fsdp2(make_trainer, given, expected, monkeypatch):
    """transformers has told FSDP2 not to, by the time it calls `training_step`."""
    trainer = make_trainer(FusedDPOTrainer, FinetuningArguments(stage="dpo", pref_loss="simpo"))
    trainer.args.accelerator_config.gradient_accumulation_kwargs = given
    check_reductions(trainer, monkeypatch, switched=expected)


def test_another_engine_than_one_of_data_parallelism_is_refused(make_trainer, monkeypatch):
    monkeypatch.setattr(FusedDPOTrainer, "get_sp_size", lambda self: 2)
    with pytest.raises(ValueError, match=r"FusedDPOTrainer does not support sequence parallelism \(size 2\)"):
        make_trainer(FusedDPOTrainer, FinetuningArguments(stage="dpo", pref_loss="simpo"))


def test_a_copy_of_a_patched_model_runs_its_own_weights(make_model, make_batch):
    model, batch = make_model(), make_batch(4)
    patch_logps(model)
    labels = batch.pop("labels")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(2.0)
    ours, theirs = label_logps(model, batch, labels)[0], label_logps(other, batch, labels)[0]
    assert (ours - theirs).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"), [({"lora_dropout": 0.1}, "dropout on the head"), ({"use_dora": True}, "DoRA")]
)
def test_an_adapter_on_the_head_that_would_be_computed_wrongly_is_refused(make_model, make_trainer, changes, message):
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM", **changes)
    model = get_peft_model(make_model(), settings).eval()  # what fails in training raises in any mode
    arguments = FinetuningArguments(stage="dpo", finetuning_type="lora", pref_loss="simpo")
    with pytest.raises(ValueError, match=message):
        make_trainer(FusedDPOTrainer, arguments, model=model)


@pytest.mark.parametrize(
    "where", [{"target_modules": ["q_proj", "embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}]
)
def test_an_adapter_that_a_tied_head_would_not_see_is_refused(make_model, make_trainer, where):
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **where})
    model = get_peft_model(make_model(tie_word_embeddings=True), settings)
    arguments = FinetuningArguments(stage="dpo", finetuning_type="lora", pref_loss="simpo")
    with pytest.raises(ValueError, match="input embeddings carry an adapter"):
        make_trainer(FusedDPOTrainer, arguments, model=model)


def test_gradients_that_no_wrapper_would_reduce_are_refused(make_model, make_batch):
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    model, batch = make_model(), make_batch(4)
    patch_logps(model)
    labels = batch.pop("labels")
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with pytest.raises(RuntimeError, match="2 ranks outside of any wrapper"):
            label_logps(model, batch, labels)
        with torch.no_grad():
            label_logps(model, batch, labels)  # as a reference model runs
        label_logps(torch.nn.parallel.DistributedDataParallel(model), batch, labels)
    finally:
        dist.destroy_process_group()


def test_a_head_that_does_more_than_a_product_is_refused(make_model, make_trainer):
    model = make_model()
    forward = type(model).forward

    def scaled(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    model.forward = scaled.__get__(model)
    arguments = FinetuningArguments(stage="dpo", finetuning_type="full", pref_loss="simpo")
    with pytest.raises(ValueError, match="logits in a way that is not supported"):
        make_trainer(FusedDPOTrainer, arguments, model=model)
