"""The C++ operations against fp64 truth, for the CPU capability that runs and for the one that runs everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amopo_kernels import cpp, reference
from amopo_kernels.row_pass import CLAMP, FP16_SCALE, RowState, Transform, gradient_factor

BUILT, REASON = cpp.available()
pytestmark = pytest.mark.skipif(not BUILT, reason=REASON)

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# (dtype of the logits, dtype of G, in place)
FORMS = [(FP32, FP32, True), (FP32, FP32, False), (FP32, BF16, False), (FP32, FP16, False)]
FORMS += [(BF16, BF16, True), (BF16, BF16, False), (FP16, FP16, True), (FP16, FP16, False)]
PLANTED = [-1e-4, -20.0, -100.0]
PLAIN = Transform()
CAPPED = Transform(scale=0.7, softcap=30.0)
EPS = {FP32: 3e-7, BF16: 2.0**-8, FP16: 2.0**-11}


def transformed(logits: Tensor, bias: Tensor | None, transform: Transform) -> Tensor:
    z = logits if bias is None else logits + bias.to(logits.dtype)
    z = z if transform.scale is None else z * transform.scale
    return z if transform.softcap is None else transform.softcap * torch.tanh(z / transform.softcap)


def fp64_gradient(logits: Tensor, targets: Tensor, bias: Tensor | None, transform: Transform) -> tuple[Tensor, Tensor]:
    """log-prob of the target, and `d(-logp) / d(scale * (logits + bias))`, without `softmax - 1`."""
    z = transformed(logits.double(), bias, transform)
    column = targets[:, None]
    others = z.scatter(1, column, -torch.inf)
    top = torch.maximum(z.amax(1, keepdim=True), torch.tensor(-1e300, dtype=torch.float64))
    exponentials, own = torch.exp(others - top), torch.exp(z.gather(1, column) - top)
    mass = exponentials.sum(1, keepdim=True)
    odds = mass / own
    logp = torch.where(odds < 1e300, -torch.log1p(odds), z.gather(1, column) - top - torch.log(own + mass))
    gradient = (exponentials / (own + mass)).scatter(1, column, -mass / (own + mass))
    if transform.softcap is not None:
        gradient = gradient * (1.0 - (z / transform.softcap).square())
    return logp[:, 0], gradient


def plain_logps(logits: Tensor, targets: Tensor, bias: Tensor | None, transform: Transform) -> Tensor:
    """Plain PyTorch in fp32: the yardstick."""
    return transformed(logits.float(), bias, transform).log_softmax(1).gather(1, targets[:, None])[:, 0]


class Result:
    def __init__(self, logits: Tensor, out: Tensor | None, half_range: bool):
        self.logp = torch.full((logits.shape[0],), torch.nan)
        self.state = RowState(*(torch.full_like(self.logp, torch.nan) for _ in range(3)))
        self.out, self.half_range = out, half_range

    @property
    def gradient(self) -> Tensor:
        return self.out.double() * gradient_factor(self.state, self.half_range)[:, None].double()


def run(logits, targets, out_dtype=None, in_place=False, bias=None, transform=PLAIN, half_range=False) -> Result:
    """Row pass over a copy of the logits in a buffer with padded rows; every output is poisoned with NaN."""
    rows, vocab = logits.shape
    held = torch.full((rows, vocab + 3), torch.nan, dtype=logits.dtype)[:, :vocab]
    held.copy_(logits)
    if in_place:
        out = held
    else:
        out = None if out_dtype is None else torch.full((rows, vocab + 5), torch.nan, dtype=out_dtype)[:, :vocab]
    result = Result(held, out, half_range)
    cpp.row_pass(held, targets, bias, transform, logp=result.logp, state=result.state, out=out, half_range=half_range)
    if not in_place:
        assert torch.equal(held.nan_to_num(9e3), logits.nan_to_num(9e3)), "the logits were written to"
    return result


def planted_logits(rows: int, vocab: int, dtype: torch.dtype, transform: Transform) -> tuple[Tensor, Tensor]:
    """Random logits whose first targets have the log-probs PLANTED (as far as softcap and dtype allow)."""
    logits, targets = torch.randn(rows, vocab, dtype=torch.float64), torch.randint(0, vocab, (rows,))
    for row, logp in enumerate(PLANTED[:rows]):
        others = torch.cat([logits[row, : targets[row]], logits[row, targets[row] + 1 :]])
        value = torch.logsumexp(others, 0) + logp - torch.log(-torch.expm1(torch.tensor(logp, dtype=torch.float64)))
        logits[row, targets[row]] = value
    if transform.softcap is not None:
        logits.clamp_(-60.0, 60.0)
    return logits.to(dtype), targets


def relative(value: Tensor, exact: Tensor) -> float:
    return float(((value.double() - exact) / exact).abs().max())


@pytest.mark.parametrize("dtype, out_dtype, in_place", FORMS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("transform", [PLAIN, Transform(scale=0.7), CAPPED])
@pytest.mark.parametrize("vocab", [3, 64, 1037])
def test_row_pass_is_no_worse_than_plain_pytorch(dtype, out_dtype, in_place, biased, transform, vocab):
    logits, targets = planted_logits(13, vocab, dtype, transform)
    bias = torch.randn(vocab) * 0.1 if biased else None
    half_range = out_dtype == FP16
    result = run(logits, targets, out_dtype, in_place, bias, transform, half_range)
    exact, gradient = fp64_gradient(logits, targets, bias, transform)
    if transform is PLAIN and not biased and vocab > 3:
        assert torch.allclose(exact[:3], torch.tensor(PLANTED, dtype=torch.float64), rtol=0.3)
    allowed = 1.5 * relative(plain_logps(logits, targets, bias, transform), exact) + 1e-6
    assert relative(result.logp, exact) <= allowed
    # Every row of the gradient on its own: the confident one is as exact as the others. fp16 loses what is below its
    # range, 2^-24 of 2^12.
    floor = 2.0**-36 * vocab**0.5 if half_range else 1e-30
    error, size = (result.gradient - gradient).norm(dim=1), gradient.norm(dim=1)
    assert (error <= (EPS[out_dtype] + 2e-6) * size + floor).all()


def test_logp_of_fp32_logits_is_good_to_1e_6():
    """fp32 logits around 10 are themselves exact to 1e-6 in the difference; planted values keep their digits."""
    logits, targets = planted_logits(64, 50_021, FP32, PLAIN)
    exact, _ = fp64_gradient(logits, targets, None, PLAIN)
    assert relative(run(logits, targets).logp, exact) < 1e-6
    assert relative(run(logits, targets, BF16).logp, exact) < 1e-6


@pytest.mark.parametrize("dtype, out_dtype, in_place", FORMS)
def test_flat_logits_of_a_wide_vocabulary(dtype, out_dtype, in_place):
    """152064 equal logits: fp16 cannot hold their sum, and a sum that drifts shows."""
    logits = torch.full((3, 152_064), 3.3).to(dtype)
    half_range = out_dtype == FP16
    result = run(logits, torch.tensor([0, 77_777, 152_063]), out_dtype, in_place, half_range=half_range)
    exact, gradient = fp64_gradient(logits, torch.tensor([0, 77_777, 152_063]), None, PLAIN)
    assert relative(result.logp, exact) < 1e-7
    tol = 1e-3 if half_range else EPS[out_dtype]  # 2^12 / 152064 lies among fp16's subnormals' neighbours
    assert relative(result.gradient, gradient) <= tol


def test_sums_do_not_drift():
    """Equal terms are rounded in the same direction: 0.3 added 152063 times by one fp32 accumulator is off by 1e-3."""
    logits = torch.full((1, 152_064), 0.3).log()
    logits[0, 5] = 0.0
    mass = run(logits, torch.tensor([5])).state.mass
    exact = logits.double()[0, 6].exp() * 152_063
    assert abs(float(mass) / float(exact) - 1.0) < 1e-6


@pytest.mark.parametrize("dtype, out_dtype, in_place", FORMS)
def test_one_row_is_shared_by_all_threads_and_keeps_its_bits(dtype, out_dtype, in_place):
    logits = (torch.randn(1, 70_001) * 4).to(dtype)
    logits[0, 40_000] = -50.0  # clamped
    for target in (0, 16_384, 40_000, 70_000):
        results = []
        threads = torch.get_num_threads()
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                results.append(run(logits, torch.tensor([target]), out_dtype, in_place, half_range=out_dtype == FP16))
        finally:
            torch.set_num_threads(threads)
        for name in ("logp", "out"):
            assert torch.equal(getattr(results[0], name), getattr(results[1], name))
        assert all(torch.equal(a, b) for a, b in zip(results[0].state, results[1].state, strict=True))


def test_state_of_clamped_and_unclamped_rows():
    logits = torch.tensor([[0.0, 100.0, 99.0], [5.0, 4.0, 3.0]])
    state = run(logits, torch.tensor([0, 0]), FP32).state
    assert state.reference.tolist() == [100.0 - CLAMP, 5.0]
    total = torch.exp(logits.double() - state.reference.double()[:, None])
    torch.testing.assert_close(state.mass.double(), total[:, 1:].sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(state.factor.double(), 1.0 / total.sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype, out_dtype, in_place", FORMS)
@pytest.mark.parametrize("place", [0, 3, 12, 20, 21])
def test_nan_in_a_row_is_nan_in_its_logp_alone(dtype, out_dtype, in_place, place):
    logits = torch.randn(3, 22).to(dtype)
    logits[1, place] = torch.nan
    logp = run(logits, torch.tensor([3, 3, 3]), out_dtype, in_place, half_range=out_dtype == FP16).logp
    assert logp.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype, out_dtype, in_place", FORMS)
def test_masked_logits_have_no_gradient(dtype, out_dtype, in_place):
    logits = torch.randn(2, 45).to(dtype)
    logits[:, 5:30] = -torch.inf
    result = run(logits, torch.tensor([0, 44]), out_dtype, in_place, half_range=out_dtype == FP16)
    exact, _ = fp64_gradient(logits, torch.tensor([0, 44]), None, PLAIN)
    assert relative(result.logp, exact) < 1e-6
    assert (result.out[:, 5:30] == 0).all() and result.out.isfinite().all()


def test_infinities_follow_log_softmax():
    rows = torch.tensor([[-torch.inf, 1.0, 2.0], [-torch.inf] * 3, [torch.inf, 1.0, 2.0], [1.0, torch.inf, 2.0]])
    for form in ({}, {"out_dtype": FP32}, {"in_place": True}):
        result = run(rows, torch.zeros(4, dtype=torch.int64), **form)
        assert result.logp[0] == -torch.inf and result.logp[1:].isnan().all()
        if result.out is not None:
            assert result.out[0].isfinite().all()


@pytest.mark.parametrize("dtype, out_dtype, in_place", FORMS)
def test_no_rows_and_one_column(dtype, out_dtype, in_place):
    empty = run(torch.zeros(0, 7, dtype=dtype), torch.zeros(0, dtype=torch.int64), out_dtype, in_place)
    assert empty.logp.shape == (0,)
    single = run(torch.full((2, 1), 3.0, dtype=dtype), torch.zeros(2, dtype=torch.int64), out_dtype, in_place)
    assert single.logp.tolist() == [0.0, 0.0] and single.out.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("dtype, out_dtype, in_place", FORMS)
@pytest.mark.parametrize("transform", [PLAIN, CAPPED])
def test_tiles_put_together_are_the_whole(dtype, out_dtype, in_place, transform):
    logits, targets = planted_logits(9, 301, dtype, transform)
    bias, half_range = torch.randn(301), out_dtype == FP16
    whole = run(logits, targets, out_dtype, False, bias, transform, half_range)
    pieces = []
    for start, stop in ((0, 100), (100, 101), (101, 301)):
        tile = logits[:, start:stop].contiguous() if in_place else logits[:, start:stop]
        out = tile if in_place else torch.full(tile.shape, torch.nan, dtype=out_dtype)
        cpp.tile_pass(
            tile, targets - start, bias[start:stop], transform, state=whole.state, out=out, half_range=half_range
        )
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), whole.out, rtol=EPS[out_dtype] * 2, atol=0)


def test_half_range_scale_is_that_of_the_eager_form():
    result = run(torch.zeros(1, 4, dtype=FP16), torch.tensor([2]), FP16, half_range=True)
    assert result.out.tolist() == [[FP16_SCALE / 4, FP16_SCALE / 4, -FP16_SCALE * 3 / 4, FP16_SCALE / 4]]


@pytest.mark.parametrize(
    "logits, targets, options, error, message",
    [
        (torch.zeros(2, 3, dtype=torch.float64), [0, 0], {}, TypeError, "float64"),
        (torch.zeros(2, 3), [0, 3], {}, IndexError, r"targets\[1\] = 3 is outside the vocabulary \[0, 3\)"),
        (torch.zeros(2, 3), [-1, 0], {}, IndexError, r"targets\[0\] = -1"),
        (torch.zeros(2, 3), [0], {}, ValueError, r"targets must be \[2\]"),
        (torch.zeros(2, 3, dtype=BF16), [0, 0], {"out_dtype": FP32}, TypeError, "out must be"),
        (torch.zeros(2, 3), [0, 0], {"bias": torch.zeros(2)}, ValueError, r"bias must be \[3\]"),
        (torch.zeros(2, 3), [0, 0], {"transform": Transform(softcap=-1.0)}, ValueError, "softcap must be positive"),
    ],
)
def test_bad_input_is_named(logits, targets, options, error, message):
    with pytest.raises(error, match=message):
        run(logits, torch.tensor(targets), **options)


def test_columns_must_be_adjacent_and_out_must_not_half_overlap():
    state, targets = RowState(*torch.zeros(3, 4)), torch.zeros(4, dtype=torch.int64)
    options = {"logp": torch.zeros(4), "state": state, "half_range": False}
    with pytest.raises(ValueError, match="unit column stride"):
        cpp.row_pass(torch.zeros(3, 4).t(), targets, None, PLAIN, out=None, **options)
    memory = torch.zeros(40)
    with pytest.raises(RuntimeError, match="memory"):
        cpp.row_pass(memory[:20].view(4, 5), targets, None, PLAIN, out=memory[3:23].view(4, 5), **options)


@pytest.mark.skipif("AMOPO_CAPABILITY_RUN" in os.environ, reason="this is that run")
@pytest.mark.skipif(BUILT and REASON == "DEFAULT", reason="DEFAULT is what runs here")
def test_everything_holds_for_the_capability_that_runs_everywhere():
    """The suites of the C++ operations again, in a process where torch chooses DEFAULT."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(Path(__file__).with_name(name)) for name in ("test_cpp.py", "test_operations.py")]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "AMOPO_CAPABILITY_RUN": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "kernels")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.skipif("AMOPO_CAPABILITY_RUN" not in os.environ, reason="only where another capability is asked for")
def test_the_capability_asked_for_runs():
    assert REASON == os.environ["ATEN_CPU_CAPABILITY"].upper()


def test_reference_is_the_truth_used_here():
    """fp64_gradient against autograd through the specification."""
    logits = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 9, (5,))
    eye = torch.eye(9, dtype=torch.float64)
    logps = reference.linear_logprobs(logits, eye, targets, softcap=2.0)
    (exact,) = torch.autograd.grad(-logps.sum(), logits)
    value, gradient = fp64_gradient(logits.detach(), targets, None, Transform(softcap=2.0))
    torch.testing.assert_close(value, logps.detach())
    torch.testing.assert_close(gradient, exact)
