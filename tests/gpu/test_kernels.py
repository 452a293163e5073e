"""Each Triton kernel on the device against its eager twin in fp64, with poisoned outputs."""

from __future__ import annotations

import math
import os

import pytest
import torch

from amopo_kernels import reference
from amopo_kernels.mobt_op import mobt_eager
from amopo_kernels.row_pass import FP16_SCALE, RowState, Transform
from amopo_kernels.row_pass import row_pass as eager_row_pass
from amopo_kernels.row_pass import tile_pass as eager_tile_pass
from tests.gpu.conftest import DRY_RUN
from tests.gpu.head_cases import relative_error

if DRY_RUN and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("the dry run of Triton kernels needs TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")
launch = pytest.importorskip("amopo_kernels.triton.launch")

FORMS = [
    (torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16),
]  # fmt: skip
# Beyond what rounding the exact G to its dtype costs. The interpreter truncates casts to bf16.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 3e-4 if not DRY_RUN else 8e-3, torch.float16: 1e-4}
TRANSFORMS = [Transform(), Transform(0.7, None), Transform(1.3, 8.0)]
ROWS = 24


def padded(rows: int, columns: int, dtype: torch.dtype, device) -> torch.Tensor:
    """NaN, with rows that stand apart as they do in a wider buffer."""
    return torch.full((rows, columns + 128 - columns % 128), torch.nan, dtype=dtype, device=device)[:, :columns]


def planted_logits(device, dtype, vocab) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ordinary logits; the first ones very confident, hopeless, or far beyond the clamp."""
    logits = torch.randn(ROWS, vocab, device=device) * 3.0
    targets = torch.randint(0, vocab, (ROWS,), device=device)
    targets[:2] = torch.tensor([0, vocab - 1], device=device)
    for row, value in enumerate((30.0, -20.0, -60.0, -100.0)):
        logits[row, targets[row]] = value
    stored = padded(ROWS, vocab, dtype, device)
    stored.copy_(logits)
    return stored, targets


def row_errors(stored: torch.Tensor, exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row: the relative error of what was stored, and what is allowed: 1.5 of the exact values' own rounding."""
    norm = exact.norm(dim=1).clamp_min(1e-30)
    rounding = (exact.to(stored.dtype).double() - exact).norm(dim=1) / norm
    return (stored.double() - exact).norm(dim=1) / norm, 1.5 * rounding + TOLERANCE[stored.dtype]


def exact_state(logits, targets, bias, transform):
    """log-probs, state and G of the eager form in fp64."""
    z = logits.double()
    logp, state = z.new_empty(len(z)), RowState.empty(len(z), torch.float64, z.device)
    out = torch.empty_like(z)
    eager_row_pass(
        z.clone(), targets, None if bias is None else bias.double(), transform,
        logp=logp, state=state, out=out, half_range=False, block_rows=ROWS,
    )  # fmt: skip
    return logp, state, out


@pytest.mark.parametrize("source, stored", FORMS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("transform", TRANSFORMS, ids=["plain", "scale", "softcap"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_row_pass(device, vocab, source, stored, transform, with_bias):
    logits, targets = planted_logits(device, source, vocab)
    bias = torch.randn(vocab, device=device) if with_bias else None
    logp, state, g = exact_state(logits, targets, bias, transform)
    out = logits if source == stored else padded(ROWS, vocab, stored, device)
    half = stored == torch.float16
    got = torch.full((ROWS,), torch.nan, device=device)
    got_state = RowState(*(torch.full((ROWS,), torch.nan, device=device) for _ in range(3)))
    launch.row_pass(logits, targets, bias, transform, logp=got, state=got_state, out=out, half_range=half, block_rows=1)
    assert ((got.double() - logp).abs() / logp.abs().clamp_min(1e-6)).max() < 2e-5
    torch.testing.assert_close(got_state.reference.double(), state.reference, rtol=1e-5, atol=1e-5)
    # G scales with 1 / factor, which is judged with it: what the products see is factor * G
    exact = g * state.factor[:, None] * (FP16_SCALE if half else 1.0)
    ours = out.double() if half else out.double() * got_state.factor.double()[:, None]
    norm = exact.norm(dim=1).clamp_min(1e-30)
    errors, allowed = (ours - exact).norm(dim=1) / norm, row_errors(out, exact if half else g)[1]
    allowed = allowed + (2e-5 if transform.softcap else 0.0)
    worst = int((errors / allowed).argmax())
    assert (errors <= allowed).all(), f"row {worst}: {errors[worst]:.2e}, allowed {allowed[worst]:.2e}"


@pytest.mark.parametrize("source, stored", FORMS, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_flat_logits_over_a_full_vocabulary(device, source, stored):
    """fp16 holds neither a flat row's sum of 152063 nor, unscaled, its probability of 6.6e-6."""
    vocab, targets = 152_064, torch.tensor([0, 77_777, 152_063], device=device)
    logits = torch.full((3, vocab), 3.25, device=device).to(source)
    out = logits if source == stored else torch.full((3, vocab), torch.nan, dtype=stored, device=device)
    half = stored == torch.float16
    logp = torch.full((3,), torch.nan, device=device)
    state = RowState(*(torch.full((3,), torch.nan, device=device) for _ in range(3)))
    launch.row_pass(logits, targets, None, Transform(), logp=logp, state=state, out=out, half_range=half, block_rows=1)
    assert (logp.double() + math.log(vocab)).abs().max() < 1e-5
    ours = out.double() * ((1.0 / FP16_SCALE) if half else state.factor.double()[:, None])
    exact = torch.full((3, vocab), 1.0 / vocab, dtype=torch.float64, device=device)
    exact[torch.arange(3, device=device), targets] -= 1.0
    torch.testing.assert_close(ours, exact, rtol=1e-3 if half else 8e-3, atol=0.0)


@pytest.mark.cuda_only
@pytest.mark.parametrize("source, stored", FORMS, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_rows_beyond_2_to_the_31_logits(device, source, stored):
    """The last rows of a buffer stand where a 32-bit offset cannot point."""
    rows, vocab = 14_200, 152_064
    assert rows * vocab > 2**31
    logits = torch.zeros(rows, vocab, dtype=source, device=device)
    logits[-ROWS:], targets = planted_logits(device, source, vocab)
    logp, state, g = exact_state(logits[-ROWS:].clone(), targets, None, Transform())
    out = logits if source == stored else torch.empty(rows, vocab, dtype=stored, device=device)
    everywhere = torch.cat([targets.new_zeros(rows - ROWS), targets])
    got, got_state = torch.empty(rows, device=device), RowState.empty(rows, torch.float32, device)
    half = stored == torch.float16
    launch.row_pass(
        logits, everywhere, None, Transform(), logp=got, state=got_state, out=out, half_range=half, block_rows=1
    )
    assert ((got[-ROWS:].double() - logp).abs() / logp.abs().clamp_min(1e-6)).max() < 2e-5
    exact = g * state.factor[:, None] * (FP16_SCALE if half else 1.0)
    ours = out[-ROWS:].double() * (1.0 if half else got_state.factor[-ROWS:].double()[:, None])
    assert relative_error(ours, exact) < 1e-2
    assert (got[:-ROWS].double() + math.log(vocab)).abs().max() < 1e-5  # flat rows


@pytest.mark.parametrize("source, stored", FORMS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("transform", TRANSFORMS, ids=["plain", "scale", "softcap"])
def test_tile_pass(device, vocab, source, stored, transform):
    logits, targets = planted_logits(device, source, vocab)
    bias = torch.randn(vocab, device=device)
    _, exact, _ = exact_state(logits, targets, bias, transform)
    state = RowState(*(field.float() for field in exact))
    half = stored == torch.float16
    start, stop = vocab // 3, vocab // 3 + 777
    tile = logits[:, start:stop]
    truth = torch.empty(ROWS, stop - start, dtype=torch.float64, device=device)
    eager_tile_pass(
        tile.double(), targets - start, bias[start:stop].double(), transform,
        state=RowState(*(field.double() for field in state)), out=truth, half_range=half, block_rows=ROWS,
    )  # fmt: skip
    out = padded(ROWS, stop - start, stored, device)
    launch.tile_pass(
        tile, targets - start, bias[start:stop].contiguous(), transform,
        state=state, out=out, half_range=half, block_rows=1,
    )  # fmt: skip
    errors, allowed = row_errors(out, truth)
    assert (errors <= allowed + 5e-5).all(), f"{(errors / allowed).max():.2f} of what is allowed"


@pytest.mark.parametrize("lengths", [[1, 500, 3, 77, 1, 1, 2000], [1], [513, 512, 511]], ids=str)
def test_sequence_stats_and_expand(device, lengths):
    offsets = torch.tensor([0, *lengths], device=device).cumsum(0)
    logps = -torch.rand(int(offsets[-1]), device=device).exponential_()
    for value, exact in zip(
        launch.sequence_stats(logps, offsets), reference.sequence_stats(logps.double(), offsets), strict=True
    ):
        torch.testing.assert_close(value.double(), exact, rtol=2e-6, atol=1e-7)
    values = torch.randn(len(lengths), device=device)
    spread = launch.expand_segments(values, offsets[:-1], offsets[1:], int(offsets[-1]))
    assert torch.equal(spread, values.repeat_interleave(torch.tensor(lengths, device=device)))


# As an argument of a kernel a number is 32 or 64 bits wide, signed, and a constant where it is 1.
SEEDS = [0, 1, -7, 77, 2**31, 2**32 + 5, -(2**63) + 11]


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_of_any_seed(device, seed):
    check_mobt(device, 2, "union", "gaussian", seed)


@pytest.mark.parametrize("objectives", [1, 3, 64])
@pytest.mark.parametrize("pooled", ["union", "sum"])
@pytest.mark.parametrize("weights", ["gaussian", "mean", "uniform"])
def test_mobt(device, objectives, pooled, weights):
    check_mobt(device, objectives, pooled, weights, seed=5)


@pytest.mark.parametrize("objectives", [2, 3, 64])
@pytest.mark.parametrize("weights", ["gaussian", "mean", "uniform"])
def test_mobt_with_absent_objectives(device, objectives, weights):
    check_mobt(device, objectives, "union", weights, seed=5, masked=True)


def check_mobt(device, objectives, pooled, weights, seed, masked=False):
    samples = 3
    lengths = torch.randint(1, 90, (samples * objectives * 2,), device=device)
    edges = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    starts, stops = (e.view(samples, objectives, 2).contiguous() for e in (edges[:-1], edges[1:]))
    logps = -torch.empty(int(edges[-1]), device=device).exponential_()
    options = {
        "weights": weights, "given": None, "sample_ids": torch.randint(0, 2**62, (samples,), device=device),
        "seed": seed, "step": torch.full((), 7, dtype=torch.int64, device=device), "beta": 0.8, "gamma": 0.3,
        "pooled": pooled, "present": None,
    }  # fmt: skip
    if masked:
        options["present"] = torch.rand(samples, objectives, device=device) < 0.5
        options["present"][:, -1] = True
    got = launch.mobt(logps, starts, stops, **options)
    exact = mobt_eager(logps.double(), starts, stops, **options)
    for name, value, right in zip(
        ("losses", "weights", "coefficients", "sums", "lengths", "logged"), got, exact, strict=True
    ):
        torch.testing.assert_close(
            value.double(), right.double(), rtol=2e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gather_and_scatter_add_duplicates_in_fp32(device, dtype):
    if DRY_RUN and dtype == torch.bfloat16:
        pytest.skip("the interpreter truncates casts to bf16")
    source, columns = torch.randn(40, 1333, device=device).to(dtype), 1333
    index = torch.randint(0, 40, (300,), device=device)
    assert torch.equal(launch.gather_rows(source, index), source[index])
    gradient = torch.randn(300, columns, device=device).to(dtype)
    positions = index.argsort(stable=True)
    counts = torch.bincount(index, minlength=40)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    got = launch.scatter_rows(gradient, positions, offsets)
    exact = torch.zeros(40, columns, dtype=torch.float64, device=device).index_add_(0, index, gradient.double())
    assert relative_error(got, exact) < {torch.float32: 1e-6, torch.bfloat16: 2.5e-3, torch.float16: 3e-4}[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scale_rows_rounds_once(device, dtype):
    if DRY_RUN and dtype == torch.bfloat16:
        pytest.skip("the interpreter truncates casts to bf16")
    x = torch.randn(50, 1000, device=device).to(dtype)
    scale = torch.randn(50, device=device)
    got = launch.scale_rows(x, scale, -0.5, torch.full_like(x, torch.nan))
    exact = (x.float() * (-0.5 * scale)[:, None]).to(dtype)
    torch.testing.assert_close(got, exact, rtol=1e-6, atol=0.0)
