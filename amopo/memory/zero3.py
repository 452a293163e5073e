"""Which weights ZeRO-3 has gathered at which point of a step: DeepSpeed's own bookkeeping, walked on paper.

`gathered(shape, ...)` -> bytes at each point of a step, beyond a rank's partitions: "entering layers", "layer forward",
"entering head", "head forward", "head backward", "head reduced", for each layer from 0 "layer 0 mlp", "layer 0
attention", "layer 0 end" of its backward, and "embedding".

Every module with weights of its own fetches them before it runs and gives them up afterwards
(`PartitionedParameterCoordinator` in deepspeed/runtime/zero/partitioned_param_coordinator.py), with these exceptions:

- weights of at most `stage3_param_persistence_threshold` numbers stay gathered for ever (`mark_persistent_parameters`);
- weights that are used again before `stage3_max_reuse_distance` numbers have gone by stay (`__params_to_release`);
- a module that looks at another's weight holds it for as long as it runs: peft's layer does so with its first adapter;
- what has no trained weights below it is not asked for gradients, and is then not fetched in the backward;
- after each fetch the weights that come next are fetched too, until `stage3_prefetch_bucket_size` numbers are under
  way or `stage3_max_live_parameters` are there (`_fetch_sub_module_impl`). Those that are fetched together stand twice
  from the first use to the last: in the buffer of the collective and on their own (`AllGatherCoalescedHandle.wait` in
  partition_parameters.py).

Limits are DeepSpeed's defaults, and for what transformers' "auto" sets, its values: H^2, 0.9 H^2 and 10 H.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from amopo.memory.shapes import Linear, ModelShape

ITEM = 2  # bytes of a gathered number
MAX_LIVE, MAX_REUSE, SUB_GROUP = 10**9, 10**9, 10**9  # DeepSpeed's defaults, in numbers

_Weights = tuple[tuple[str, int], ...]  # (name, numbers) of one module


@dataclass(frozen=True)
class _Module:
    """A module that runs: its weights, and how many of those that follow run inside it; None: it is never over."""

    point: str
    weights: _Weights
    inside: int | None = 0


def reduce_bucket(shape: ModelShape) -> int:
    """Numbers of the bucket whose gradients are reduced together."""
    return shape.hidden**2


def persistent(shape: ModelShape, lora: int | None = None) -> int:
    """Numbers that are small enough to stay gathered."""
    seen = dict(weight for module in _forward(shape, lora) for weight in module.weights)
    return sum(count for count in seen.values() if _is_small(shape, count))


def _is_small(shape: ModelShape, count: int) -> bool:
    return count <= 10 * shape.hidden


@lru_cache(maxsize=256)
def gathered(
    shape: ModelShape, *, lora: int | None, checkpointing: bool, max_live: int, max_reuse: int
) -> dict[str, int]:
    """Bytes of gathered weights at each point, at most, in a step after the first two."""
    modules = list(_order(shape, lora, checkpointing))
    large = [tuple(weight for weight in module.weights if not _is_small(shape, weight[1])) for module in modules]
    kept = persistent(shape, lora)
    walk = _Walk(modules, large, prefetch=int(0.9 * shape.hidden**2), max_live=max_live, max_reuse=max_reuse)
    most: dict[str, int] = {}
    for point, live in walk.run():
        most[point] = max(most.get(point, 0), live)
    # Where nothing below is trained, the backward does not come to these: what stands when it ends.
    for point in ("layer 0 end", "embedding"):
        most.setdefault(point, live)
    return {point: ITEM * (live + kept) for point, live in most.items()}


class _Walk:
    """One step: fetch, prefetch and release, module by module; counts numbers."""

    def __init__(
        self, modules: list[_Module], large: list[_Weights], *, prefetch: int, max_live: int, max_reuse: int
    ) -> None:
        """large: the weights of each module that do not stay gathered for ever."""
        self.modules, self.large = modules, large
        self.prefetch, self.max_live, self.max_reuse = prefetch, max_live, max_reuse
        self.passed = [0]  # numbers of all modules before each one
        for module in modules:
            self.passed.append(self.passed[-1] + sum(count for _, count in module.weights))
        self.uses: dict[str, list[int]] = {}
        for number, weights in enumerate(large):
            for name, _ in weights:
                self.uses.setdefault(name, []).append(number)
        self.queue = deque((name, count, number) for number, weights in enumerate(large) for name, count in weights)
        self.there: dict[str, int] = {}  # on their own
        self.flying: dict[str, list[str]] = {}  # name -> those that one collective fetches
        self.sizes = {name: count for weights in large for name, count in weights}
        self.fetched_for: dict[str, int] = {}
        self.running: list[int] = []  # modules that are not over, the innermost last

    def run(self) -> Iterator[tuple[str, int]]:
        for number, weights in enumerate(self.large):
            self.running.append(number)
            for name, count in weights:
                self._arrive(name, count)
            new = [name for name, _ in weights if self.fetched_for.get(name, -1) < number]
            for _ in new:
                name, _, used = self.queue.popleft()
                self.fetched_for[name] = used
            self._fetch_ahead()
            yield self.modules[number].point, self._live()
            for over in [each for each in reversed(self.running) if self._is_over(each, number)]:
                self.running.remove(over)
                needed = {name for each in self.running for name, _ in self.large[each]}
                for name, _ in self.large[over]:
                    if name not in needed and not self._stays(name, number):
                        self.there.pop(name, None)

    def _is_over(self, module: int, last: int) -> bool:
        """Whether a module is over after the one that ran last."""
        inside = self.modules[module].inside
        return inside is not None and module + inside <= last

    def _arrive(self, name: str, count: int) -> None:
        group = self.flying.pop(name, [name])
        if name in self.there:
            return
        if len(group) > 1:  # the first of them takes all out of the buffer, which goes with the last
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

    def _stays(self, name: str, last: int) -> bool:
        if self.fetched_for.get(name, -1) > last:
            return True
        following = next((use for use in self.uses[name] if use > last), None)
        return following is not None and self.passed[following] - self.passed[last + 1] < self.max_reuse


# the order in which modules run ---------------------------------------------------------------------------------------


def _linear(shape: ModelShape, prefix: str, linear: Linear, lora: int | None, point: str) -> list[_Module]:
    """The modules of a linear layer in the order of the forward; with adapters the one around them comes first."""
    name = f"{prefix}{linear.name}"
    weights: list[tuple[str, int]] = [(name, linear.inputs * linear.outputs)]
    if linear.bias:
        weights.append((f"{name}.bias", linear.outputs))
    base = _Module(point, tuple(weights))
    if lora is None:
        return [base]
    first, second = (f"{name}.lora_A", lora * linear.inputs), (f"{name}.lora_B", lora * linear.outputs)
    # peft's layer asks the first adapter for its dtype: DeepSpeed takes a weight that is not there for one of the
    # module's that asks (`ZeROOrderedDict` in parameter_offload.py), and holds it for as long as that runs.
    around = () if _is_small(shape, first[1]) else (first,)
    return [_Module(point, around, inside=3), base, _Module(point, (first,)), _Module(point, (second,))]


def _layer(shape: ModelShape, number: int, lora: int | None) -> Iterator[tuple[str, list[_Module]]]:
    """(name, modules) of a layer's norms and linear layers in the order of the forward."""
    prefix = f"{number}."
    linears = {linear.name: linear for linear in shape.linears}
    yield "norm", [_Module("end", ((f"{prefix}norm", shape.hidden),))]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        yield name, _linear(shape, prefix, linears[name], lora, "attention")
    for extra in range(shape.family.norms - 1):
        yield f"norm{extra}", [_Module("mlp", ((f"{prefix}norm{extra}", shape.hidden),))]
    for name in ("gate_proj", "up_proj", "down_proj"):
        yield name, _linear(shape, prefix, linears[name], lora, "mlp")


def _forward(shape: ModelShape, lora: int | None) -> Iterator[_Module]:
    table = shape.embedding_parameters
    yield _Module("entering layers", (("embedding", table),))
    for number in range(shape.layers):
        for _, modules in _layer(shape, number, lora):
            yield from (replace(module, point="layer forward") for module in modules)
    yield _Module("entering head", (("norm", shape.hidden),))
    yield _Module("head forward", (("embedding" if shape.tied else "head", table),))


def _backward(shape: ModelShape, number: int, lora: int | None, *, reached: bool) -> Iterator[_Module]:
    """A layer's modules in the order of its backward; `reached`: its input has a gradient."""
    for name, modules in reversed(list(_layer(shape, number, lora))):
        from_input = name in ("norm", "q_proj", "k_proj", "v_proj")
        is_bottom = from_input and not reached
        if lora is None or name.startswith("norm"):
            yield from () if is_bottom else modules
            continue
        around, base, first, second = modules
        if is_bottom:  # nobody asks for the gradient of what they read, and DeepSpeed waits for that
            yield from (replace(around, inside=None), second, replace(first, inside=None))
        else:
            yield from (around, second, first, base)


def _order(shape: ModelShape, lora: int | None, checkpointing: bool) -> Iterator[_Module]:
    """Modules with weights in the order in which a step runs them."""
    forward = list(_forward(shape, lora))
    yield from forward
    yield replace(forward[-1], point="head backward")
    yield replace(forward[-2], point="head reduced")  # in the backward of the norm before it
    # Under checkpointing peft lets the embedding's result have a gradient.
    reached = lora is None or checkpointing
    for number in reversed(range(shape.layers)):
        if checkpointing:
            for _, modules in _layer(shape, number, lora):
                yield from (replace(module, point=f"layer {number} mlp") for module in modules)
        for module in _backward(shape, number, lora, reached=reached or number > 0):
            yield replace(module, point=f"layer {number} {module.point}")
    if reached:
        yield replace(forward[0], point="embedding")
