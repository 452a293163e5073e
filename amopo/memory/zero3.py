"""Which weights ZeRO-3 has gathered at which point of a step: DeepSpeed's own bookkeeping, walked on paper.

`gathered(shape, ...)` -> bytes at each point of a step, beyond a rank's partitions: "entering layers", "layer forward",
"entering head", "head forward", "head backward", "head reduced", for each layer from 0 "layer 0 mlp", "layer 0
attention", "layer 0 end" of its backward, and "embedding".

Every module with weights of its own fetches them before it runs and gives them up afterwards
(`PartitionedParameterCoordinator` in deepspeed/runtime/zero/partitioned_param_coordinator.py), with three exceptions:

- weights of at most `stage3_param_persistence_threshold` numbers stay gathered for ever (`mark_persistent_parameters`);
- weights that are used again before `stage3_max_reuse_distance` numbers have gone by stay (`__params_to_release`);
- after each fetch the weights that come next are fetched too, until `stage3_prefetch_bucket_size` numbers are under
  way or `stage3_max_live_parameters` are there (`_fetch_sub_module_impl`). Those that are fetched together stand twice
  from the first use to the last: in the buffer of the collective and on their own (`AllGatherCoalescedHandle.wait` in
  partition_parameters.py).

Limits are DeepSpeed's defaults, and for what transformers' "auto" sets, its values: H^2, 0.9 H^2 and 10 H.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import lru_cache

from amopo.memory.shapes import Linear, ModelShape

ITEM = 2  # bytes of a gathered number
MAX_LIVE, MAX_REUSE, SUB_GROUP = 10**9, 10**9, 10**9  # DeepSpeed's defaults, in numbers

_Weights = tuple[tuple[str, int], ...]  # (name, numbers) of one module


def reduce_bucket(shape: ModelShape) -> int:
    """Numbers of the bucket whose gradients are reduced together."""
    return shape.hidden**2


def persistent(shape: ModelShape, lora: int | None = None) -> int:
    """Numbers that are small enough to stay gathered."""
    seen = dict(weight for _, weights in _forward(shape, lora) for weight in weights)
    return sum(count for count in seen.values() if count <= 10 * shape.hidden)


@lru_cache(maxsize=256)
def gathered(
    shape: ModelShape, *, lora: int | None, checkpointing: bool, max_live: int, max_reuse: int
) -> dict[str, int]:
    """Bytes of gathered weights at each point, at most, in a step after the first two."""
    modules = [
        (point, tuple(w for w in weights if w[1] > 10 * shape.hidden), sum(count for _, count in weights))
        for point, weights in _order(shape, lora, checkpointing)
    ]
    kept = persistent(shape, lora)
    walk = _Walk(modules, prefetch=int(0.9 * shape.hidden**2), max_live=max_live, max_reuse=max_reuse)
    most: dict[str, int] = {}
    for point, live in walk.run():
        most[point] = max(most.get(point, 0), live)
    return {point: ITEM * (live + kept) for point, live in most.items()}


class _Walk:
    """One step: fetch, prefetch and release, module by module; counts numbers."""

    def __init__(
        self, modules: list[tuple[str, _Weights, int]], *, prefetch: int, max_live: int, max_reuse: int
    ) -> None:
        self.modules, self.prefetch, self.max_live, self.max_reuse = modules, prefetch, max_live, max_reuse
        self.passed = [0]  # numbers of all modules before each one
        for _, _, count in modules:
            self.passed.append(self.passed[-1] + count)
        self.uses: dict[str, deque[int]] = {}
        for number, (_, weights, _) in enumerate(modules):
            for name, _ in weights:
                self.uses.setdefault(name, deque()).append(number)
        self.queue = deque((name, count, number) for number, part in enumerate(modules) for name, count in part[1])
        self.there: dict[str, int] = {}  # on their own
        self.flying: dict[str, list[str]] = {}  # name -> those that one collective fetches
        self.sizes = {name: count for part in modules for name, count in part[1]}
        self.fetched_for: dict[str, int] = {}

    def run(self) -> Iterator[tuple[str, int]]:
        for number, (point, weights, _) in enumerate(self.modules):
            for name, count in weights:
                self._arrive(name, count)
            new = [name for name, _ in weights if self.fetched_for.get(name, -1) < number]
            for _ in new:
                name, _, used = self.queue.popleft()
                self.fetched_for[name] = used
            self._fetch_ahead()
            yield point, self._live()
            for name, _ in weights:
                self.uses[name].popleft()
                if not self._stays(name, number):
                    self.there.pop(name, None)

    def _arrive(self, name: str, count: int) -> None:
        if name in self.there and name not in self.flying:
            return
        if name not in self.flying:
            self.there[name] = count
            return
        group = self.flying.pop(name)
        if len(group) > 1:  # its buffer goes with the last of them
            self.there.update((other, self.sizes[other]) for other in group)
        else:
            self.there[name] = count

    def _fetch_ahead(self) -> None:
        held = sum(self.there.values()) + sum(self.sizes[name] for name in self.flying if name not in self.there)
        most = min(self.max_live - held, self.prefetch)
        group: list[str] = []
        while self.queue and sum(self.sizes[name] for name in group) < most:
            name, _, used = self.queue.popleft()
            self.fetched_for[name] = max(self.fetched_for.get(name, -1), used)
            if name not in self.there and name not in self.flying and name not in group:
                group.append(name)
        for name in group:
            self.flying[name] = group

    def _live(self) -> int:
        buffers = {id(group): group for group in self.flying.values()}
        return sum(self.there.values()) + sum(sum(self.sizes[name] for name in group) for group in buffers.values())

    def _stays(self, name: str, number: int) -> bool:
        if self.fetched_for.get(name, -1) > number:
            return True
        uses = self.uses[name]
        return bool(uses) and self.passed[uses[0]] - self.passed[number + 1] < self.max_reuse


# the order in which modules run ---------------------------------------------------------------------------------------


def _linear(prefix: str, linear: Linear, lora: int | None) -> Iterator[_Weights]:
    name = f"{prefix}{linear.name}"
    weights: list[tuple[str, int]] = [(name, linear.inputs * linear.outputs)]
    if linear.bias:
        weights.append((f"{name}.bias", linear.outputs))
    yield tuple(weights)
    if lora is not None:
        yield ((f"{name}.lora_A", lora * linear.inputs),)
        yield ((f"{name}.lora_B", lora * linear.outputs),)


def _layer(shape: ModelShape, number: int, lora: int | None) -> Iterator[tuple[str, _Weights]]:
    """(part of the layer, weights) in the order of the forward."""
    prefix = f"{number}."
    linears = {linear.name: linear for linear in shape.linears}
    yield "end", ((f"{prefix}norm", shape.hidden),)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        for weights in _linear(prefix, linears[name], lora):
            yield "attention", weights
    for extra in range(shape.family.norms - 1):
        yield "mlp", ((f"{prefix}norm{extra}", shape.hidden),)
    for name in ("gate_proj", "up_proj", "down_proj"):
        for weights in _linear(prefix, linears[name], lora):
            yield "mlp", weights


def _forward(shape: ModelShape, lora: int | None) -> Iterator[tuple[str, _Weights]]:
    table = shape.embedding_parameters
    yield "entering layers", (("embedding", table),)
    for number in range(shape.layers):
        for _, weights in _layer(shape, number, lora):
            yield "layer forward", weights
    yield "entering head", (("norm", shape.hidden),)
    yield "head forward", (("embedding" if shape.tied else "head", table),)


def _order(shape: ModelShape, lora: int | None, checkpointing: bool) -> Iterator[tuple[str, _Weights]]:
    """Modules with weights in the order in which a step runs them."""
    forward = list(_forward(shape, lora))
    yield from forward
    yield "head backward", forward[-1][1]
    yield "head reduced", forward[-2][1]  # in the backward of the norm before it
    for number in reversed(range(shape.layers)):
        layer = list(_layer(shape, number, lora))
        if checkpointing:
            yield from ((f"layer {number} mlp", weights) for _, weights in layer)
        yield from ((f"layer {number} {part}", weights) for part, weights in reversed(layer))
    yield "embedding", forward[0][1]
