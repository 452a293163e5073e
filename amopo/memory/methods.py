"""The same samples by other ways of computing their log-probs, side by side.

| method | tokens of the body | head, forward | head, backward beyond dW |
|---|---|---|---|
| released | N = 2K rows padded to the longest | 4 copies fp32 [N, V] | 3 copies fp32 [N, V] |
| plain bf16 | N | 2 copies bf16 [N, V] | 3 copies bf16 [N, V] |
| liger-like | N | chunk + 2 dW + dH | dH twice |
| amopo none, pair, tree | as packed | `head` | `head` |

released: fp32 logits, their log-softmax, its exponential, and the concatenation of chosen and rejected logits are alive
together in the forward. plain bf16: logits and log-softmax, both in the
dtype of the products (fp32 where the precision is fp32). The backward of either keeps the log-softmax
alone, the least that autograd can, and makes its gradient (zeros that the picked tokens are added to) and that of the
logits. liger-like: one pair of rows at a time (2 L tokens of L each) through bf16 logits, fp32 logits, fp32
log-softmax and the gradients of both, 16 bytes a logit; dW is made in the forward, with one more of its size for the
chunk's.
"""

from __future__ import annotations

import dataclasses

from amopo.memory.activations import Row
from amopo.memory.head import HeadMemory
from amopo.memory.plan import Plan, make_plan, plan_row
from amopo.memory.precision import numbers_of
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape
from amopo.memory.workload import padded

METHODS = ("released", "plain bf16", "liger-like", "amopo none", "amopo pair", "amopo tree")
_LIGER_LOGIT = 2 + 4 + 4 + 4 + 2


def plan_method(
    method: str,
    shape: ModelShape,
    sample: SampleShape,
    settings: RunSettings,
    *,
    context: int = 0,
    observed: bool = False,
) -> Plan:
    """Plan the samples by a method of `METHODS`; `context`, `observed`: as in `make_plan`.

    Raises:
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not known; known: {', '.join(METHODS)}")
    if method.startswith("amopo "):
        sample = dataclasses.replace(sample, sharing=method.removeprefix("amopo "))
        return make_plan(shape, sample, settings, context=context, observed=observed)
    rows, length = padded(sample)
    tokens = rows * length
    row = Row(tokens=tokens, rows=tokens, keys=tokens, paths=rows)
    numbers = numbers_of(settings.precision, settings.engine, lora=settings.lora is not None)
    item = numbers.compute
    logits, hidden = tokens * shape.vocab, item * tokens * shape.hidden
    if method == "released":
        head = HeadMemory(forward=16 * logits, kept=4 * logits, backward=12 * logits)
    elif method == "plain bf16":
        head = HeadMemory(forward=2 * item * logits, kept=item * logits, backward=3 * item * logits)
    else:
        chunk = 2 * length * shape.vocab * _LIGER_LOGIT
        weights = 2 * item * shape.vocab * shape.hidden
        head = HeadMemory(forward=chunk + weights + hidden, kept=weights // 2 + hidden, backward=2 * hidden)
    return plan_row(shape, row, sample, settings, context=context, observed=observed, head=head)
