"""LLaMA-Factory's own command trains a tiny model; what it logged is read back."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llamafactory.hparams", reason="LLaMA-Factory is not installed here; run make test-llamafactory")

import torch  # noqa: E402
import yaml  # noqa: E402
from llamafactory.hparams import FinetuningArguments  # noqa: E402
from llamafactory.train.tuner import run_exp  # noqa: E402

from amopo import fused_loss  # noqa: E402
from amopo.integrations.llamafactory.arguments import AMoPOFinetuningArguments  # noqa: E402
from amopo.integrations.llamafactory.trainer import AMoPODPOTrainer  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples" / "llamafactory"
HELPSTEER2 = Path(os.environ.get("AMOPO_DATA", ROOT.parent / "shared" / "data"), "helpsteer2_sample100/grouped.jsonl")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What the example's command makes: a model and data."""
    folder = tmp_path_factory.mktemp("prepared")
    command = [sys.executable, "-P", EXAMPLES / "prepare.py", folder, "--count", "24"]
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    return folder


def train(example, prepared, out, **changes):
    """Run an example's YAML, smaller; gives its logged steps."""
    settings = yaml.safe_load((EXAMPLES / example).read_text())
    settings.update(
        model_name_or_path=str(prepared / "model"),
        dataset_dir=str(prepared / "data"),
        output_dir=str(out),
        logging_steps=1,
        max_steps=3,
        per_device_train_batch_size=2,
        plot_loss=False,
        use_cpu=True,
        disable_tqdm=True,
        overwrite_cache=True,
    )
    settings.update(changes)
    run_exp(settings)
    return json.loads((out / "trainer_state.json").read_text())["log_history"]


def test_amopo_trains_and_logs_every_objective(installed, prepared, tmp_path):
    history = train("amopo.yaml", prepared, tmp_path, eval_steps=3, gradient_accumulation_steps=1)
    steps = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    for entry in steps:
        alphas = [entry[f"amopo/alpha/{d}"] for d in ("helpfulness", "correctness")]
        assert sum(alphas) == pytest.approx(1.0, abs=1e-5) and all(0 < a < 1 for a in alphas)
        margins = [entry[f"rewards/margins/{d}"] for d in ("helpfulness", "correctness")]
        assert entry["rewards/margins"] == pytest.approx(sum(margins) / 2, abs=1e-5)
        assert entry["logps/chosen"] < 0 and math.isfinite(entry["loss"]) and entry["grad_norm"] > 0
        assert not [name for name in entry if "logits" in name]
    evaluation = next(entry for entry in history if "eval_loss" in entry)
    assert 0 <= evaluation["eval_rewards/accuracies/correctness"] <= 1


def test_training_raises_margins(installed, prepared, tmp_path):
    changes = {"max_steps": 12, "learning_rate": 2e-3, "warmup_ratio": 0.0, "eval_strategy": "no", "val_size": 0.0}
    history = train("amopo.yaml", prepared, tmp_path, max_samples=4, gradient_accumulation_steps=1, **changes)
    steps = [entry for entry in history if "loss" in entry]
    for name in ("rewards/margins/helpfulness", "rewards/margins/correctness"):
        assert steps[-1][name] > steps[0][name] + 0.5, [step[name] for step in steps]


@pytest.mark.parametrize(("loss", "kind"), [("simpo", "lora"), ("sigmoid", "full")])
def test_dpo_stage_logs_what_llamafactory_itself_logs(loss, kind, prepared, tmp_path):
    from amopo.integrations.llamafactory import install

    # Pairs in LLaMA-Factory's own format, so that it can be asked without amopo.
    rows = json.loads((prepared / "data" / "pairs.json").read_text())
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.json").write_text(
        json.dumps(
            [
                {"instruction": r["prompt"][0]["content"], **{s: r[s]["response"] for s in ("chosen", "rejected")}}
                for r in rows
            ]
        )
    )
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    info = {"rows": {"file_name": "rows.json", "ranking": True, "columns": columns}}
    (data / "dataset_info.json").write_text(json.dumps(info))
    histories = []
    for name in ("own", "fused"):
        changes = {"dataset": "rows", "pref_loss": loss, "finetuning_type": kind}
        folder = tmp_path / name
        if name == "own":
            histories.append(train_in(data, "simpo.yaml", prepared, folder, **changes))
        else:
            with install():
                histories.append(train_in(data, "simpo.yaml", prepared, folder, **changes))
    own, fused = histories
    for expected, entry in zip(own[:3], fused[:3], strict=True):
        names = [name for name in expected if name.startswith(("loss", "grad_norm", "rewards/", "logps/"))]
        assert len(names) == 8
        for name in names:
            assert entry[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-3), (entry["step"], name)


def train_in(data, example, prepared, out, **changes):
    linked = out.parent / f"{out.name}-prepared"
    linked.mkdir()
    (linked / "model").symlink_to(prepared / "model")
    (linked / "data").symlink_to(data)
    return train(example, linked, out, **changes)


@pytest.mark.parametrize(
    ("changes", "weights"), [({}, "mean"), ({"amopo_preset": "official"}, None), ({"pref_beta": 2.5}, "uniform")]
)
def test_amopo_loss_and_gradients_are_those_of_fused_loss(
    changes, weights, make_model, make_batch, make_trainer, gradients
):
    given = {"amopo_objectives": ["helpfulness", "correctness"], "amopo_weights": weights, **changes}
    given["amopo_scales"] = {"helpfulness": [0, 4], "correctness": [0, 4]}
    arguments = AMoPOFinetuningArguments(stage="amopo", finetuning_type="full", **given)
    batch, ids = make_batch(8), torch.tensor([11, 5])
    model = make_model()
    trainer = make_trainer(AMoPODPOTrainer, arguments, model=model)
    loss, metrics = trainer.get_batch_loss_metrics(model, {**batch, "amopo_sample_ids": ids})
    loss.backward()
    expected_model = make_model()
    hidden = expected_model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    expected = fused_loss(
        hidden,
        expected_model.lm_head,
        batch["labels"],
        num_objectives=2,
        order="sample_major",
        beta=arguments.pref_beta,
        weights=weights or "gaussian",
        preset=changes.get("amopo_preset"),
        sample_ids=ids,
        seed=5,
        step=0,
    )
    expected.loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    assert metrics["amopo/alpha/correctness"].item() == pytest.approx(expected.metrics["amopo/alpha"][1].item())
    theirs = gradients(expected_model)
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, theirs[name], atol=1e-6), name


def test_amopo_with_one_objective_and_no_template_is_llamafactorys_simpo(
    make_model, make_batch, make_trainer, gradients
):
    """The same rows in the order of the other collator: SimPO's own trainer is the independent truth."""
    from amopo.integrations.llamafactory.dpo import _CustomDPOTrainer

    batch = make_batch(6)
    rows = torch.arange(6).view(3, 2).t().flatten()  # sample by sample -> chosen first
    amopo = make_trainer(
        AMoPODPOTrainer,
        AMoPOFinetuningArguments(
            stage="amopo",
            finetuning_type="full",
            amopo_objectives="correctness",
            amopo_scales="correctness=0:4",
            pref_beta=2.0,
            simpo_gamma=0.7,
        ),
        model=make_model(),
    )
    loss, metrics = amopo.get_batch_loss_metrics(amopo.model, {**batch, "amopo_sample_ids": torch.arange(3)})
    loss.backward()
    simpo = make_trainer(
        _CustomDPOTrainer,
        FinetuningArguments(stage="dpo", pref_loss="simpo", finetuning_type="full", pref_beta=2.0, simpo_gamma=0.7),
        model=make_model(),
    )
    theirs, their_metrics = simpo.get_batch_loss_metrics(simpo.model, {k: v[rows] for k, v in batch.items()})
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert metrics["rewards/margins"].item() == pytest.approx(their_metrics["rewards/margins"], abs=1e-5)
    expected = gradients(simpo.model)
    for name, gradient in gradients(amopo.model).items():
        assert (gradient - expected[name]).abs().max() <= 1e-5 * max(1.0, expected[name].abs().max()), name


FROM_0_TO_4 = "helpfulness=0:4,correctness=0:4,coherence=0:4"


@pytest.mark.skipif(not HELPSTEER2.exists(), reason=f"{HELPSTEER2} is absent; name its folder's parent in AMOPO_DATA")
def test_real_helpsteer2_rows_train(installed, tmp_path):
    command = [sys.executable, "-P", EXAMPLES / "prepare.py", tmp_path / "in", "--preferences", HELPSTEER2]
    subprocess.run(
        [*command, "--objectives", "helpfulness,correctness,coherence", "--scales", FROM_0_TO_4],
        check=True,
        timeout=240,
        capture_output=True,
    )
    history = train(
        "amopo.yaml",
        tmp_path / "in",
        tmp_path / "out",
        amopo_objectives="helpfulness,correctness,coherence",
        amopo_scales=FROM_0_TO_4,
        amopo_template="rubric",
        cutoff_len=512,
        max_samples=8,
        eval_strategy="no",
        val_size=0.0,
        gradient_accumulation_steps=1,
    )
    steps = [entry for entry in history if "loss" in entry]
    assert len(steps) == 3 and all(math.isfinite(entry["loss"]) for entry in steps)
    assert all(f"rewards/margins/{d}" in steps[0] for d in ("helpfulness", "correctness", "coherence"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": "pairs", "amopo_objectives": "coherence", "amopo_scales": "coherence=0:4"},
            "no score for objective 'coherence'",
        ),
        ({"include_effective_tokens_per_second": True}, "include_effective_tokens_per_second"),
        ({"ignore_pad_token_for_loss": False}, "ignore_pad_token_for_loss"),
    ],
)
def test_runs_that_cannot_work_say_so(installed, changes, message, prepared, tmp_path):
    with pytest.raises(Exception, match=message):
        train("amopo.yaml", prepared, tmp_path, **changes)
