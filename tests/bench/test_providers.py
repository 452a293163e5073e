"""What the benchmarks compare: the fp64 truth, the checks of providers, and that wrong ones are seen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from amopo_kernels import reference
from bench import test_objective as objective_bench
from bench.common import ours, peers  # noqa: F401  (they register providers)
from bench.common.baselines import stored_g
from bench.common.cases import HeadShape, make_case
from bench.common.providers import (
    PROVIDERS,
    SIMPO,
    NotMeasured,
    Outcome,
    Provider,
    errors_of,
    tokens_task,
    upstream_of,
    using_backend,
)
from bench.common.truth import over_limit, truth_of

SHAPE = HeadShape("test", 24, 32, 211)


@pytest.fixture(params=["peaked", "flat"])
def case(request):
    return make_case(SHAPE, torch.float32, "cpu", request.param, seed=3)


def full_truth(case, upstream=None):
    """Log-probs, dH and dW of the whole case, by fp64 autograd of the specification."""
    hidden, weight = (t.double().requires_grad_() for t in (case.hidden, case.weight))
    logps = reference.linear_logprobs(hidden, weight, case.targets)
    upstream = case.upstream.double() if upstream is None else upstream
    return logps.detach(), *torch.autograd.grad(logps, (hidden, weight), upstream)


def test_sampled_truth_is_the_full_one(case):
    truth = truth_of(case, sample_rows=7, sample_entries=40)
    logps, grad_hidden, grad_weight = full_truth(case)
    torch.testing.assert_close(truth.logps, logps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(truth.grad_hidden(case.upstream), grad_hidden[truth.rows], rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(truth.grad_weight(case.upstream), grad_weight[truth.entries], rtol=1e-9, atol=1e-14)
    assert 1 < len(truth.rows) <= 7 and set(case.targets[:20].tolist()) <= set(truth.entries.tolist())


def test_entropies_of_the_two_inputs():
    shape = HeadShape("test", 64, 128, 5003)
    assert 1.0 < make_case(shape, torch.bfloat16, "cpu", "peaked").entropy < 2.0
    assert make_case(shape, torch.bfloat16, "cpu", "flat").entropy > 0.9 * torch.log(torch.tensor(5003.0))


def test_the_same_case_twice():
    first, again = (make_case(SHAPE, torch.bfloat16, "cpu", "peaked") for _ in range(2))
    assert torch.equal(first.hidden, again.hidden) and torch.equal(first.targets, again.targets)


def test_upstream_of_the_pair_task_is_the_gradient_of_simpo(case):
    logps = full_truth(case)[0].requires_grad_()
    means = logps.view(case.sequences, case.length).mean(1)
    margin = SIMPO["beta"] * (means[0::2] - means[1::2]) - SIMPO["gamma"]
    loss = torch.nn.functional.softplus(-margin).mean()
    (exact,) = torch.autograd.grad(loss, logps)
    torch.testing.assert_close(upstream_of("pairs", case, logps.detach()), exact)


RUNNABLE = [
    name for name, provider in PROVIDERS.items()
    if provider.role != "floor" and not provider.compiled and "cpp" not in name
    and provider.missing(make_case(SHAPE, torch.float32, "cpu")) is None
]  # fmt: skip


@pytest.mark.parametrize("frozen", [False, True], ids=["full", "frozen"])
@pytest.mark.parametrize("name", RUNNABLE)
def test_every_provider_that_runs_here_computes_the_same_in_fp32(case, name, frozen):
    provider = PROVIDERS[name]
    try:
        outcome = provider.build(case, frozen)()
    except ImportError as error:
        pytest.skip(f"{name}: {error}")
    errors = errors_of(provider.task, case, truth_of(case), outcome)
    assert errors["logp_error"] < 2e-5 and errors["grad_hidden_error"] < 2e-5, errors
    assert ("grad_weight_error" in errors) != frozen
    assert errors.get("grad_weight_error", 0.0) < 2e-5 and over_limit(errors) == []


@pytest.mark.parametrize(
    "spoil, named",
    [
        (lambda o: Outcome(o.value + 1.0, o.grad_hidden, o.grad_weight), "logp_error"),
        (lambda o: Outcome(o.value * torch.nan, o.grad_hidden, o.grad_weight), "logp_error"),
        (lambda o: Outcome(o.value, o.grad_hidden * 1.2, o.grad_weight), "grad_hidden_error"),
        (lambda o: Outcome(o.value, o.grad_hidden, o.grad_weight * 0.0), "grad_weight_error"),
    ],
    ids=["log-probs", "NaN", "dH", "dW"],
)
def test_a_wrong_provider_is_over_the_limit(case, spoil, named):
    outcome = spoil(PROVIDERS["amopo_eager"].build(case, False)())
    assert over_limit(errors_of("tokens", case, truth_of(case), outcome)) == [named]


def test_the_floor_multiplies_the_numbers_of_the_case(case):
    """G is target-referenced: times 1 / (1 + S) it is softmax - onehot."""
    g = stored_g(case).double()
    logps = full_truth(case)[0]
    hidden, weight = case.hidden.double(), case.weight.double()
    exact = torch.softmax(hidden @ weight.T, 1) - torch.nn.functional.one_hot(case.targets, SHAPE.vocab)
    clear = logps > -39.0
    torch.testing.assert_close((g * logps.exp()[:, None])[clear], exact[clear], rtol=1e-3, atol=1e-6)
    assert PROVIDERS["products"].build(case, True)().value is None


def head_on(device: str, rows: int, dtype=torch.bfloat16) -> SimpleNamespace:
    """Shape, dtype and device of a case without its tensors."""
    return SimpleNamespace(shape=HeadShape("7b", rows, 3584, 152064), dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize("rows, spills", [(2048, False), (8192, True), (16384, True)])
def test_a_budget_that_keeps_all_is_a_line_where_the_default_spills(rows, spills):
    case = head_on("cuda", rows)
    assert ours.keeps_all(case, None) != spills
    missing = PROVIDERS["amopo_eager_kept"].missing(case)
    assert missing == (None if spills else "the default keeps all of G here")
    if spills:
        details = PROVIDERS["amopo_eager_kept"].details(case, False)
        budget = details["budget_bytes"]
        assert ours.keeps_all(case, budget) and not ours.keeps_all(case, budget - (64 << 20))
        assert budget > rows * 152064 * 2 and details["workspace_bytes"] > budget / 2
        assert PROVIDERS["amopo_eager"].details(case, False)["budget_bytes"] is None


def test_the_budget_that_keeps_all_computes_the_same_and_has_no_frozen_form(case):
    provider = PROVIDERS["amopo_eager_kept"]
    errors = errors_of("tokens", case, truth_of(case), provider.build(case, False)())
    assert max(errors["grad_hidden_error"], errors["grad_weight_error"]) < 2e-5
    with pytest.raises(NotMeasured, match="nothing to keep"):
        provider.build(case, True)


@pytest.mark.parametrize("part", ["mobt_gaussian", "step_gaussian", "mobt_mean", "step_mean"])
def test_the_objective_is_checked_with_its_noise(part, monkeypatch):
    batch = objective_bench.Batch(torch.device("cpu"))
    with using_backend("eager"):
        result = batch.function(part)()
    assert objective_bench._error(part, batch, result) < 1e-5
    monkeypatch.setattr(objective_bench, "SEED", 1)
    drawn_elsewhere = objective_bench._error(part, batch, result)
    assert (drawn_elsewhere > 1e-3) == part.endswith("gaussian")


def test_a_peer_that_is_not_installed_has_a_reason():
    missing = peers.needs("no_such_library_at_all")(make_case(SHAPE, torch.float32, "cpu"))
    assert missing == "no_such_library_at_all is not installed"


def test_a_provider_is_registered_once():
    from bench.common.providers import register

    with pytest.raises(ValueError, match="registered twice"):
        register("products", "floor", "products", "")
    assert isinstance(PROVIDERS["products"], Provider)


def test_products_counted_per_task():
    assert PROVIDERS["products"].products(False) == 3 and PROVIDERS["amopo_eager"].products(True) == 2


def test_tokens_task_leaves_the_frozen_weight_alone(case):
    outcome = tokens_task(lambda h, w: reference.linear_logprobs(h, w, case.targets), case, True)()
    assert outcome.grad_weight is None and outcome.grad_hidden.shape == case.hidden.shape
