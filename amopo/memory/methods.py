"""The same samples by other ways of computing their log-probs, side by side.

| method | tokens of the body | head, forward | head, backward beyond dW |
|---|---|---|---|
| released | N = 2K rows padded to the longest | 4 copies fp32 [N, V] | 6 copies fp32 [N, V] |
| plain bf16 | N | 2 copies bf16 [N, V] | 4 copies bf16 [N, V] |
| liger-like | N | chunk + 2 dW + dH | dH twice |
| amopo none, pair, tree | as packed | `head` | `head` |

released: fp32 logits, their log-softmax, its exponential, and the concatenation of chosen and rejected logits stay
alive; the backward adds the gradients of the last two operations. plain bf16: logits and log-softmax in bf16, and two
gradients. liger-like: one pair of rows at a time (2 L tokens of L each) through bf16 logits, fp32 logits, fp32
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
    method: str, shape: ModelShape, sample: SampleShape, settings: RunSettings, *, context: int = 0
) -> Plan:
    """Plan the samples by a method of `METHODS`."""
    if method.startswith("amopo "):
        return make_plan(
            shape, dataclasses.replace(sample, sharing=method.removeprefix("amopo ")), settings, context=context
        )
    rows, length = padded(sample)
    tokens = rows * length
    row = Row(tokens=tokens, rows=tokens, keys=tokens, paths=rows)
    numbers = numbers_of(settings.precision, settings.engine, lora=settings.lora is not None)
    logits, hidden = tokens * shape.vocab, numbers.compute * tokens * shape.hidden
    if method == "released":
        head = HeadMemory(forward=16 * logits, kept=16 * logits, backward=24 * logits)
    elif method == "plain bf16":
        head = HeadMemory(forward=4 * logits, kept=4 * logits, backward=8 * logits)
    elif method == "liger-like":
        chunk = 2 * length * shape.vocab * _LIGER_LOGIT
        weights = 2 * numbers.compute * shape.vocab * shape.hidden
        head = HeadMemory(forward=chunk + weights + hidden, kept=weights // 2 + hidden, backward=2 * hidden)
    else:
        raise ValueError(f"method {method!r} is not known; known: {', '.join(METHODS)}")
    return plan_row(shape, row, sample, settings, context=context, head=head)
