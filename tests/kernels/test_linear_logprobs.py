"""Log-probs of a linear head: as accurate as plain PyTorch in the same dtype, judged against fp64."""

from __future__ import annotations

import pytest
import torch

from amopo_kernels import linear_logprobs, reference
from tests.kernels.head_cases import DTYPES, HeadCase, assert_no_worse, make_case, plant_logps, relative_error

# factor: our element-wise passes round in another order than PyTorch's; tol: what one rounding of a result costs.
TOLERANCE = {torch.float64: 4e-15, torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}
FACTOR = 1.5
SMALL_BUDGETS = [None, 200_000, 60_000]


def check(case: HeadCase, **options) -> None:
    results = case.converted(case.hidden.dtype).run(linear_logprobs, **options)
    expected = torch.float64 if case.hidden.dtype == torch.float64 else torch.float32
    assert results[0].dtype == expected
    assert [grad.dtype for grad in results[1:]] == [leaf.dtype for leaf in case.leaves()]
    assert_no_worse(case, results, factor=FACTOR, tol=TOLERANCE[case.hidden.dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", SMALL_BUDGETS)
@pytest.mark.parametrize("logits_dtype", [None, "input"])
def test_matches_fp64_whether_g_is_kept_or_rebuilt(dtype, budget, logits_dtype):
    check(make_case(dtype), budget=budget, logits_dtype=logits_dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", SMALL_BUDGETS)
@pytest.mark.parametrize(
    "transform",
    [
        {"bias": True},
        {"logit_scale": 0.37},
        {"softcap": 3.0},
        {"bias": True, "logit_scale": 1.7, "softcap": 5.0},
    ],
    ids=["bias", "scale", "softcap", "all"],
)
def test_bias_scale_and_softcap_match_fp64(dtype, budget, transform):
    check(make_case(dtype, **transform), budget=budget)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fp32_logits_are_exact_to_fp32_for_half_inputs(dtype):
    case = make_case(dtype, rows=64, hidden=48, vocab=3000)
    truth = case.converted(torch.float64).run(reference.linear_logprobs)[0]
    logps = linear_logprobs(case.hidden, case.weight, case.targets, logits_dtype=torch.float32)
    assert (logps.double() - truth).abs().max() < 5e-6  # bf16 logits: 1e-2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", [None, 60_000])
def test_confident_and_hopeless_tokens_keep_their_gradient(dtype, budget):
    planted = [-1e-4, -20.0, -100.0, -1e-3]
    case = plant_logps(make_case(dtype, rows=12), planted)
    truth = case.converted(torch.float64).run(reference.linear_logprobs)
    # rounding the inputs moves the planted values; they must still be where they are meant to be
    assert truth[0][:4].tolist() == pytest.approx(planted, rel=0.25)
    results = case.converted(dtype).run(linear_logprobs, budget=budget, logits_dtype=_exact_logits(dtype))
    # fp64: the truth itself is only this good, its log_softmax subtracts numbers near 30 to find 1e-4
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 3e-3}[dtype]
    for row in range(4):
        assert relative_error(results[0][row], truth[0][row]) < (1e-10 if dtype == torch.float64 else 2e-5)
        assert relative_error(results[1][row], truth[1][row]) < tolerance, f"dH of the row with logp {planted[row]}"
    assert relative_error(results[2], truth[2]) < tolerance


def _exact_logits(dtype):
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else None


def test_flat_fp16_logits_over_a_full_vocabulary_do_not_overflow():
    rows, hidden, vocab = 5, 8, 152064
    case = HeadCase(
        (torch.randn(rows, hidden) * 1e-3).half().requires_grad_(),
        (torch.randn(vocab, hidden) * 1e-3).half().requires_grad_(),
        torch.randint(0, vocab, (rows,)),
        torch.randn(rows, dtype=torch.float64),
    )
    results = case.converted(torch.float16).run(linear_logprobs)
    truth = case.converted(torch.float64).run(reference.linear_logprobs)
    assert relative_error(results[0], truth[0]) < 1e-6
    # most entries of dW lie below fp16's smallest number: its spacing (6e-8, else 2^-11 relative) is the bound
    for value, exact in zip(results[1:], truth[1:], strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=2e-3, atol=1.2e-7)


@pytest.mark.parametrize("coefficient", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("logits_dtype", [None, "input"])
@pytest.mark.parametrize("budget", [None, 300_000])
def test_fp16_gradients_of_small_coefficients_and_large_weights(coefficient, logits_dtype, budget):
    """A preference loss hands down about 1e-5 per token: 2^-12 of that is no fp16 number, nor is 2^12 * 8 * V."""
    case = make_case(torch.float16, rows=64, hidden=64, vocab=1000, bias=True)
    case.weight.data *= 8.0 / 0.5
    case.hidden.data *= 0.05
    case.upstream = torch.rand(64, dtype=torch.float64) * coefficient
    results = case.converted(torch.float16).run(linear_logprobs, logits_dtype=logits_dtype, budget=budget)
    truth = case.converted(torch.float64).run(reference.linear_logprobs)
    spacing = 2.0**-24  # of fp16 near zero: what rounding the result alone costs
    for name, value, exact in zip(("dH", "dW", "db"), results[1:], truth[1:], strict=True):
        allowed = 8e-3 * exact.norm() / exact.numel() ** 0.5 + spacing
        error = (value.double() - exact).square().mean().sqrt()
        assert torch.isfinite(value).all() and error <= allowed, f"{name}: {error:.1e}, allowed {allowed:.1e}"


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_row_and_one_row(rows, dtype):
    case = make_case(dtype, rows=rows)
    results = case.run(linear_logprobs)
    assert [tuple(t.shape) for t in results] == [(rows,), (rows, 24), (501, 24)]
    if rows == 0:
        assert results[2].abs().max() == 0  # the head still gets its (zero) gradient: collectives must run
    else:
        assert_no_worse(case, results, factor=FACTOR, tol=TOLERANCE[dtype])


@pytest.mark.parametrize("vocab", [1, 2, 63, 129, 1000])
def test_any_vocabulary_size(vocab):
    for budget in (None, max(40_000, vocab * 24 * 16)):
        check(make_case(torch.float32, vocab=vocab), budget=budget)


def test_int32_targets_and_strided_inputs():
    case = make_case(torch.float32)
    expected = case.run(linear_logprobs)
    padded_weight = torch.full((501, 40), float("nan"))
    padded_weight[:, :24] = case.weight.detach()
    weight = padded_weight[:, :24].requires_grad_()
    hidden = case.hidden.detach().T.contiguous().T.requires_grad_()
    assert not hidden.is_contiguous() and weight.stride() == (40, 1)
    strided = HeadCase(hidden, weight, case.targets.int(), case.upstream)
    for value, reference_value in zip(strided.run(linear_logprobs), expected, strict=True):
        torch.testing.assert_close(value, reference_value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [None, 60_000])
def test_second_backward_gives_the_same_gradient(budget):
    case = make_case(torch.float32)
    logps = linear_logprobs(case.hidden, case.weight, case.targets, budget=budget)
    first = torch.autograd.grad(logps, case.leaves(), case.upstream.float(), retain_graph=True)
    second = torch.autograd.grad(logps, case.leaves(), case.upstream.float())
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_results_are_bitwise_equal_from_run_to_run():
    case = make_case(torch.bfloat16, rows=100, vocab=2000)
    for a, b in zip(case.run(linear_logprobs), case.run(linear_logprobs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("budget", [None, 120_000])
@pytest.mark.parametrize("frozen", ["head", "body"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_frozen_head_or_body_gets_the_same_other_gradient(budget, frozen, dtype):
    case = make_case(dtype)
    full = case.run(linear_logprobs, budget=budget)
    (case.weight if frozen == "head" else case.hidden).requires_grad_(False)
    trained = case.hidden if frozen == "head" else case.weight
    logps = linear_logprobs(case.hidden, case.weight, case.targets, budget=budget)
    (gradient,) = torch.autograd.grad(logps, [trained], case.upstream.to(logps.dtype))
    expected = full[1] if frozen == "head" else full[2]
    assert relative_error(gradient, expected) < (1e-6 if dtype == torch.float32 else 5e-3)


def test_without_gradients_nothing_is_kept():
    case = make_case(torch.float32)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            logps = linear_logprobs(case.hidden, case.weight, case.targets)
        assert not logps.requires_grad and logps.grad_fn is None
    torch.testing.assert_close(logps, case.run(linear_logprobs)[0])


def test_frozen_head_saves_nothing_of_vocabulary_size():
    case = make_case(torch.float32)
    case.weight.requires_grad_(False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        linear_logprobs(case.hidden, case.weight, case.targets)
    assert saved and all(501 not in tensor.shape for tensor in saved if tensor.numel())


def test_the_parameter_itself_is_saved_for_backward():
    case = make_case(torch.float32)
    weight = torch.nn.Parameter(case.weight.detach())
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        linear_logprobs(case.hidden, weight, case.targets, budget=60_000)
    assert any(tensor is weight for tensor in saved)


@pytest.mark.parametrize("budget", [None, 120_000])
def test_autocast_with_fp32_master_weights(budget):
    case = make_case(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = case.run(linear_logprobs, budget=budget)
    truth = case.converted(torch.float64).run(reference.linear_logprobs)
    assert [t.dtype for t in results] == [torch.float32] * 3
    rounded = case.converted(torch.bfloat16).converted(torch.float64).run(reference.linear_logprobs)
    assert (results[0].double() - rounded[0]).abs().max() < 2e-2 if _native() else 5e-6
    assert relative_error(results[1], truth[1]) < 1e-2
    assert relative_error(results[2], truth[2]) < 1e-2


def _native() -> bool:
    from amopo_kernels.products import cpu_has_native

    return cpu_has_native(torch.bfloat16)


def test_gradcheck_of_reference_and_of_the_op():
    case = make_case(torch.float64, rows=4, hidden=3, vocab=7, bias=True, logit_scale=0.8, softcap=4.0)

    def call(function, **options):
        return lambda h, w, b: function(h, w, case.targets, bias=b, logit_scale=0.8, softcap=4.0, **options)

    inputs = (case.hidden, case.weight, case.bias)
    assert torch.autograd.gradcheck(call(reference.linear_logprobs), inputs)
    assert torch.autograd.gradcheck(call(linear_logprobs), inputs, nondet_tol=0.0)
    assert torch.autograd.gradcheck(call(linear_logprobs, budget=900), inputs)


def test_inf_in_a_masked_vocabulary_entry_is_a_zero_probability():
    case = make_case(torch.float32)
    bias = torch.zeros(501)
    bias[7] = -torch.inf
    targets = torch.where(case.targets == 7, 8, case.targets)
    logps = linear_logprobs(case.hidden, case.weight, targets, bias=bias)
    expected = reference.linear_logprobs(case.hidden.double(), case.weight.double(), targets, bias=bias.double())
    torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=1e-5)


BAD = [
    ({"targets": torch.zeros(3, dtype=torch.int64)}, ValueError, "37 rows of hidden but 3 targets"),
    ({"targets": torch.zeros(37)}, TypeError, "targets must be int32 or int64, got torch.float32"),
    ({"targets": torch.full((37,), 501)}, RuntimeError, r"outside the vocabulary \[0, 501\)"),
    ({"targets": torch.full((37,), -100)}, RuntimeError, r"outside the vocabulary \[0, 501\)"),
    ({"weight": torch.randn(501, 23)}, ValueError, "differ in hidden size"),
    ({"weight": torch.zeros(0)}, ValueError, "weight must have 2 dimension"),
    ({"weight": torch.zeros(0, 24)}, ValueError, "ZeRO-3"),
    ({"weight": torch.randn(501, 24).to(torch.bfloat16)}, TypeError, "cast one or call under torch.autocast"),
    ({"weight": torch.zeros(501, 24, dtype=torch.int8)}, TypeError, "quantised"),
    ({"hidden": torch.randn(2, 37, 24)}, ValueError, "hidden must have 2 dimension"),
    ({"hidden": torch.full((37, 24), float("nan"))}, RuntimeError, "hidden holds NaN or inf"),
    ({"hidden": torch.full((37, 24), float("inf"))}, RuntimeError, "hidden holds NaN or inf"),
    ({"weight": torch.full((501, 24), float("nan"))}, RuntimeError, "weight or bias holds NaN or inf"),
    ({"bias": torch.zeros(3)}, ValueError, r"bias must be \[V=501\]"),
    ({"softcap": -1.0}, ValueError, "softcap must be positive"),
    ({"logit_scale": float("nan")}, ValueError, "logit_scale must be a finite number"),
    ({"logits_dtype": torch.float16}, ValueError, "logits_dtype must be"),
    ({"budget": 100}, ValueError, r"budget=100 bytes is too small for one row.*need at least budget=\d+"),
    ({"budget": 0}, ValueError, "budget must be a positive number of bytes, got 0"),
    ({"budget": 1e9}, ValueError, "budget must be a positive number of bytes"),
    ({"lora": (torch.zeros(1), torch.zeros(1), 1.0)}, ValueError, r"lora A must be \[r, H\] and B"),
    ({"lora": (torch.zeros(2, 23), torch.zeros(501, 2), 1.0)}, ValueError, "do not fit hidden"),
    ({"lora": torch.zeros(1)}, TypeError, "lora must be a tuple"),
]


@pytest.mark.parametrize("change, error, message", BAD, ids=[m[:30] for _, _, m in BAD])
def test_bad_input_is_named(change, error, message):
    arguments = {
        "hidden": torch.randn(37, 24),
        "weight": torch.randn(501, 24),
        "targets": torch.randint(0, 501, (37,)),
        **change,
    }
    with pytest.raises(error, match=message):
        linear_logprobs(**arguments)


def test_one_infinite_weight_row_is_found():
    weight = torch.randn(501, 24)
    weight[77] = torch.inf
    with pytest.raises(RuntimeError, match="weight or bias holds NaN or inf"):
        linear_logprobs(torch.randn(37, 24), weight, torch.randint(0, 501, (37,)))
