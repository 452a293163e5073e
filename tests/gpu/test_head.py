"""The head on a CUDA device against fp64, in every dtype and precision policy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from amopo_kernels import linear_logprobs, reference
from amopo_kernels.products import choose_products
from amopo_kernels.workspace import plan_workspace
from tests.gpu.conftest import DRY_RUN
from tests.gpu.head_cases import DeviceCase, make_case, plant_logps, relative_error

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}
# G of the cases here takes 1.03 MB in half precision and 2.06 MB in fp32: all of it is kept, or less than half.
BUDGETS = [None, 600_000]


@pytest.fixture(autouse=True)
def exact_fp32_products():
    """TF32 would be judged instead of the kernels."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def kept_rows(case: DeviceCase, budget: int | None, logits_dtype=None, softcap=None, compute=None) -> int:
    """Rows whose G stays from forward to backward; the others are rebuilt."""
    products = choose_products(compute or case.hidden.dtype, case.hidden.device, logits_dtype)
    shape = (*case.hidden.shape, case.weight.shape[0])
    return plan_workspace(
        shape, products, budget=budget, need_hidden_grad=True, need_weight_grad=True, softcap=softcap is not None,
        cast_weight=compute is not None, device_type=case.hidden.device.type,
    ).kept_rows  # fmt: skip


def check_budget(case: DeviceCase, budget: int | None, **options) -> None:
    """That "kept" keeps everything and "rebuilt" rebuilds most."""
    rows, kept = case.hidden.shape[0], kept_rows(case, budget, **options)
    assert kept == rows if budget is None else 0 < kept < rows / 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", BUDGETS, ids=["kept", "rebuilt"])
@pytest.mark.parametrize("logits_dtype", [None, "input"])
@pytest.mark.parametrize("transform", [{}, {"logit_scale": 0.6, "softcap": 3.0}], ids=["plain", "scale and softcap"])
def test_matches_fp64(device, dtype, budget, logits_dtype, transform):
    case = make_case(device, dtype)
    check_budget(case, budget, logits_dtype=logits_dtype, softcap=transform.get("softcap"))
    results = case.run(linear_logprobs, budget=budget, logits_dtype=logits_dtype, **transform)
    plain = case.converted(dtype).run(reference.linear_logprobs, **transform)
    for name, value, exact, yardstick in zip(("logp", "dH", "dW"), results, case.truth(**transform), plain):
        assert torch.isfinite(value).all(), name
        error, allowed = relative_error(value, exact), 1.5 * relative_error(yardstick, exact) + TOLERANCE[dtype]
        assert error <= allowed, f"{name}: error {error:.2e} against fp64, allowed {allowed:.2e}"


@pytest.mark.cuda_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_default_of_half_inputs_is_fp32_logits_from_the_product(device, dtype):
    assert choose_products(dtype, device, None).policy == "mixed"
    case = make_case(device, dtype, hidden=512, spread=3.0)
    exact = case.truth()[0]
    # tensor cores truncate what they add up: some 32 times 2^-24 of logits around 10
    assert (case.run(linear_logprobs)[0].double() - exact).abs().max() < 5e-5
    rounded = case.run(linear_logprobs, logits_dtype="input")[0]
    assert (rounded.double() - exact).abs().max() > 1e-4  # the difference is real


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", BUDGETS, ids=["kept", "rebuilt"])
def test_confident_and_hopeless_tokens_keep_their_gradient(device, dtype, budget):
    planted = [-1e-4, -20.0, -100.0, -1e-3]
    case = plant_logps(make_case(device, dtype), planted)
    truth = case.truth()
    assert truth[0][:4].tolist() == pytest.approx(planted, rel=0.25)
    logits_dtype = None if dtype == torch.float32 else torch.float32
    check_budget(case, budget, logits_dtype=logits_dtype)
    results = case.run(linear_logprobs, budget=budget, logits_dtype=logits_dtype)
    # cuBLAS may add up parts of a long sum in bf16; logits rounded to bf16 would be off by 2.9e-2
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 1.2e-2, torch.float16: 4e-3}[dtype]
    for row in range(4):
        assert relative_error(results[0][row], truth[0][row]) < 5e-5
        assert relative_error(results[1][row], truth[1][row]) < tolerance, f"dH of the row with logp {planted[row]}"
    assert relative_error(results[2], truth[2]) < tolerance


def test_flat_fp16_logits_over_a_full_vocabulary_do_not_overflow(device):
    rows, hidden, vocab = 5, 8, 152064
    case = DeviceCase(
        (torch.randn(rows, hidden, device=device) * 1e-3).half().requires_grad_(),
        (torch.randn(vocab, hidden, device=device) * 1e-3).half().requires_grad_(),
        torch.randint(0, vocab, (rows,), device=device),
        torch.randn(rows, dtype=torch.float64, device=device),
    )
    results, truth = case.run(linear_logprobs), case.truth()
    assert relative_error(results[0], truth[0]) < 1e-6
    for value, exact in zip(results[1:], truth[1:], strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=2e-3, atol=1.2e-7)


@pytest.mark.cuda_only
@pytest.mark.parametrize("logits_dtype", [None, "input"])
def test_more_than_2_to_the_31_logits(device, logits_dtype):
    rows, hidden, vocab = 14_200, 64, 152_064
    assert rows * vocab > 2**31
    case = make_case(device, torch.bfloat16, rows, hidden, vocab)
    budget = 3 * 4 * rows * vocab  # everything is kept, in one piece
    results = case.run(linear_logprobs, budget=budget, logits_dtype=logits_dtype)
    last = slice(rows - 64, rows)
    weight = case.weight.detach().double()
    leaf = case.hidden.detach()[last].double().requires_grad_()
    exact = reference.linear_logprobs(leaf, weight, case.targets[last])
    (grad,) = torch.autograd.grad(exact, leaf, case.upstream[last])
    assert (results[0][last].double() - exact).abs().max() < (2e-5 if logits_dtype is None else 5e-2)
    assert relative_error(results[1][last], grad) < 1e-2
    # dW: the last entries of the vocabulary, from all rows
    log_mass = (case.hidden.detach().double() * weight[case.targets]).sum(1) - results[0].double()
    tail = torch.arange(vocab - 64, vocab, device=device)
    softmax = torch.exp(case.hidden.detach().double() @ weight[tail].T - log_mass[:, None])
    unit = (case.targets[:, None] == tail).double() - softmax
    assert relative_error(results[2][tail], (unit * case.upstream[:, None]).T @ case.hidden.detach().double()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frozen", ["head", "body"])
@pytest.mark.parametrize("budget", BUDGETS, ids=["kept", "rebuilt"])
def test_frozen_parts(device, dtype, frozen, budget):
    case = make_case(device, dtype)
    check_budget(case, budget)
    full = case.run(linear_logprobs, budget=budget)
    (case.weight if frozen == "head" else case.hidden).requires_grad_(False)
    gradient = case.run(linear_logprobs, budget=budget)[1]
    # Chunks of another size are other products: cuBLAS may add up in another order.
    assert relative_error(gradient, full[1 if frozen == "head" else 2]) < (3e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(device, rows):
    case = make_case(device, torch.bfloat16, rows=rows)
    results = case.run(linear_logprobs)
    assert [tuple(t.shape) for t in results] == [(rows,), (rows, 72), (4003, 72)]
    assert all(torch.isfinite(t).all() for t in results)


@pytest.mark.parametrize("budget", BUDGETS, ids=["kept", "rebuilt"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_bitwise_equal_from_run_to_run(device, dtype, budget, vocab):
    case = make_case(device, dtype, rows=300, vocab=vocab)
    budget = None if budget is None else 40 * vocab * 4
    check_budget(case, budget)
    for a, b in zip(case.run(linear_logprobs, budget=budget), case.run(linear_logprobs, budget=budget), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("budget", BUDGETS, ids=["kept", "rebuilt"])
def test_second_backward_gives_the_same_gradient(device, budget):
    case = make_case(device, torch.bfloat16)
    check_budget(case, budget)
    logps = linear_logprobs(case.hidden, case.weight, case.targets, budget=budget)
    first = torch.autograd.grad(logps, case.leaves(), case.upstream.float(), retain_graph=True)
    second = torch.autograd.grad(logps, case.leaves(), case.upstream.float())
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("budget", [None, 1_000_000], ids=["kept", "rebuilt"])  # the bf16 copy of the weight is in it
def test_autocast_with_fp32_master_weights(device, budget):
    case = make_case(device, torch.float32)
    options = {"budget": budget, "logits_dtype": torch.float32}  # CUDA's default; a CPU with bf16 units has another
    check_budget(case, compute=torch.bfloat16, **options)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        results = case.run(linear_logprobs, **options)
    assert [t.dtype for t in results] == [torch.float32] * 3
    rounded = case.converted(torch.bfloat16).truth()
    assert (results[0].double() - rounded[0]).abs().max() < 2e-5
    for value, exact in zip(results[1:], rounded[1:], strict=True):
        assert relative_error(value, exact) < 1e-2


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.bfloat16, 1.5e-2)], ids=str)
@pytest.mark.parametrize("train_weight", [True, False])
@pytest.mark.parametrize("budget", BUDGETS, ids=["kept", "rebuilt"])
def test_lora_on_the_head_equals_the_merged_weight(device, dtype, tol, train_weight, budget):
    case = make_case(device, dtype)
    a = (torch.randn(8, 72, device=device) * 0.3).to(dtype).requires_grad_()
    b = (torch.randn(4003, 8, device=device) * 0.3).to(dtype).requires_grad_()
    case.weight.requires_grad_(train_weight)
    leaves = [*case.leaves(), a, b]
    logps = linear_logprobs(case.hidden, case.weight, case.targets, lora=(a, b, 0.5), budget=budget)
    got = torch.autograd.grad(logps, leaves, case.upstream.float())
    copies = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in (case.hidden, case.weight, a, b)]
    h, w, a64, b64 = copies
    exact = reference.linear_logprobs(h, w + 0.5 * b64 @ a64, case.targets)
    truth = torch.autograd.grad(exact, [leaf for leaf in copies if leaf.requires_grad], case.upstream)
    assert relative_error(logps, exact) < tol
    for value, right in zip(got, truth, strict=True):
        assert relative_error(value, right) < tol


@pytest.mark.cuda_only
def test_tensors_on_a_device_that_is_not_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    case = make_case(torch.device("cuda", 1), torch.bfloat16)
    with torch.cuda.device(0):
        results = case.run(linear_logprobs, budget=BUDGETS[1])
    for value, exact in zip(results, case.truth(), strict=True):
        assert value.device.index == 1 and relative_error(value, exact) < 1e-2


@pytest.mark.cuda_only
def test_a_bad_target_never_reads_out_of_bounds():
    """In a process of its own: the assertion on the device ends every use of its context."""
    code = (
        "import torch; from amopo_kernels import linear_logprobs\n"
        "h, w = torch.randn(4, 8, device='cuda'), torch.randn(50, 8, device='cuda')\n"
        "linear_logprobs(h, w, torch.tensor([1, 2, 50, 3], device='cuda')); torch.cuda.synchronize()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode != 0 and "illegal memory access" not in done.stderr
    assert "device-side assert" in done.stderr


def test_the_dry_run_is_only_for_machines_without_cuda():
    assert not (DRY_RUN and torch.cuda.is_available())
