"""The points of a training step at which the most can be held: the candidates of each phase.

`Points(shape, row, settings, ...)` has a method per phase, which gives the bytes by component at the largest of its
points. The formulas stand in the modules that `plan` names; here is what stands beside what.
"""

from __future__ import annotations

from amopo.memory import activations, zero3
from amopo.memory.activations import Row
from amopo.memory.communication import sub_group_bytes, traffic
from amopo.memory.head import HeadMemory, head_memory
from amopo.memory.layer_backward import backward_points
from amopo.memory.layer_forward import forward_points
from amopo.memory.model_states import (
    Parts,
    gradient_bytes,
    host_bytes,
    master_bytes,
    optimizer_bytes,
    parameter_bytes,
    trained_parts,
)
from amopo.memory.precision import Numbers, numbers_of
from amopo.memory.settings import RunSettings
from amopo.memory.shapes import ModelShape


class Points:
    """The candidates of each phase."""

    def __init__(
        self, shape: ModelShape, row: Row, settings: RunSettings, observed: bool, head: HeadMemory | None,
        numbers: Numbers | None = None,
    ) -> None:  # fmt: skip
        self.shape, self.row, self.settings, self.observed = shape, row, settings, observed
        self.numbers = numbers or numbers_of(settings.precision, settings.engine, lora=settings.lora is not None)
        self.parts: Parts = trained_parts(shape, settings.lora)
        lora, numbers = settings.lora, self.numbers
        self.frozen_head = lora is not None
        if settings.engine in ("fsdp2", "zero3"):  # the gathered weight
            head_weight = numbers.compute
        else:
            head_weight = numbers.stored if lora is None else numbers.base
        self.head_memory: HeadMemory = head or head_memory(
            row.rows, shape.hidden, shape.vocab, compute=numbers.compute, stored=head_weight,
            frozen=self.frozen_head, softcap=shape.softcap is not None, budget=settings.head_budget,
            device=settings.device,
        )  # fmt: skip
        self.hidden = row.tokens * numbers.stream * shape.hidden  # one [T, H] of the residual stream
        self.layer = activations.layer_saved(shape, row, numbers, lora=lora, device=settings.device)
        self.copies = activations.layer_copies(shape, numbers, lora=lora)
        # Where nothing below is trained, the first norm of the first layer is not in the graph. Checkpointing is: peft
        # lets the embedding's result require a gradient for it.
        self.unneeded = 0
        if lora is not None and not settings.checkpointing:
            self.unneeded = activations.norm_of_stream(shape, row, numbers, trained=False)
        self.rows = row.rows * shape.hidden * numbers.stream
        self.positions = activations.positions(shape, row, numbers)
        self.final_norm = activations.norm_of_stream(shape, row, numbers, trained=lora is None)
        self.final_norm_running = row.tokens * activations.norm_running(
            shape.hidden, numbers.stream, style=shape.family.norm
        )
        self.parameters = 0 if settings.offload == "all" else parameter_bytes(self.parts, numbers, settings)
        self.optimizer = optimizer_bytes(self.parts, numbers, settings) if settings.offload == "none" else 0

    def host(self) -> int:
        """Bytes that offloading puts into this rank's host memory."""
        return host_bytes(self.parts, self.numbers, self.settings)

    def load(self) -> dict[str, int]:
        """Weights, and what the engine makes at once."""
        settings, parts = self.settings, self.parts
        buffers = traffic("load", self.shape, parts, self.numbers, settings).buffers
        found = {"parameters": self.parameters, "communication": buffers}
        if settings.engine != "zero3" or settings.offload != "none":
            return found
        # The master is made at once, the moments in the first step. A buffer of fp32 gradients goes before the
        # gradients' own and the bucket come (`initialize_optimizer_states`, `_setup_for_real_optimizer`).
        found["optimizer"] = master_bytes(parts, settings)
        gradients = gradient_bytes(parts.trained, self.numbers, settings)
        before = {**found, "communication": sub_group_bytes(self.shape, parts, settings)}
        return _largest([{**found, "gradients": gradients}, before])

    def _point(
        self,
        point: str,
        activations: int,
        *,
        finished: int = 0,
        whole: int = 0,
        beside: int = 0,
        head: int = 0,
        attention: int = 0,
    ) -> dict[str, int]:
        """finished: parameters whose gradients are complete. whole: those of this point, where nothing is sharded.

        beside: complete ones that are not yet added to those of the micro-batches before.
        """
        sent = traffic(point, self.shape, self.parts, self.numbers, self.settings)
        sharded = self.settings.engine in ("fsdp2", "zero3")
        offloaded = self.settings.offload != "none"
        if self.settings.engine == "zero3":  # their partitions are there from the beginning to the end
            finished = self.parts.trained
        elif self.settings.accumulation > 1:  # those of the micro-batches before
            finished = self.parts.trained + beside
        gradients = 0 if offloaded else gradient_bytes(finished, self.numbers, self.settings)
        gradients += sent.gradients + whole * (self.numbers.compute if sharded else self.numbers.gradient)
        return {
            "parameters": self.parameters,
            "gradients": gradients,
            "optimizer": self.optimizer,
            "activations": activations,
            "head": head,
            "attention workspace": attention,
            "communication": sent.buffers,
        }

    @property
    def _kept_by_layers(self) -> int:
        """What all layers keep until the backward."""
        return self._kept_below(self.shape.layers) + self.positions

    def _kept_below(self, layers: int) -> int:
        """What the lowest layers keep."""
        if self.settings.checkpointing:
            return layers * self.hidden
        return layers * (self.layer + self.copies) - (self.unneeded if layers else 0)

    @property
    def _all_copies(self) -> int:
        """Weight copies that autocast caches while its context is open, if checkpointing does not keep them anyway."""
        if not self.settings.checkpointing:
            return 0
        return self.shape.layers * activations.cached_copies(self.shape, self.numbers, lora=self.settings.lora)

    def forward(self) -> dict[str, int]:
        shape, row, settings = self.shape, self.row, self.settings
        kept = self._kept_by_layers + self._all_copies
        # The output of the last layer; the embedding is a variable of the body's forward, and layer 0's input.
        outputs = self.hidden if settings.checkpointing else 2 * self.hidden
        points = [
            self._point("entering layers", self.hidden + self.positions),
            self._point("entering head", kept + self.final_norm + self.hidden + self.rows),
            self._point("head forward", kept + outputs - self.hidden + self.final_norm_running),
        ]
        running = forward_points(
            shape, row, self.numbers, lora=settings.lora, checkpointing=settings.checkpointing
        )  # fmt: skip
        points += [self._point("layer forward", kept + size) for size in running.values()]
        if settings.engine == "fsdp2":
            below = self._kept_below(shape.layers - 1) + self.positions + self._all_copies
            points.append(self._point("layer begins", below + self.hidden))
        return _largest(points)

    def head(self) -> dict[str, int]:
        kept = self._kept_by_layers + self.final_norm
        rows32 = 4 * self.row.rows * self.shape.hidden if self.numbers.stream > self.numbers.compute else 0
        forward = self._point(
            "head forward", kept + self._all_copies + self.hidden, head=self.head_memory.forward + rows32
        )
        backward = self._point("head backward", kept, whole=self._head_gradient, head=self.head_memory.backward)
        return _largest([forward, backward])

    @property
    def _head_gradient(self) -> int:
        """Parameters whose gradient the head's backward makes."""
        if self.frozen_head:
            return 0
        return self.shape.embedding_parameters

    def backward(self) -> dict[str, int]:
        shape, row, numbers, parts = self.shape, self.row, self.numbers, self.parts
        # tied weights of a sharding engine are reduced at the very end
        after_head = 0 if shape.tied and self.settings.engine == "fsdp2" else self._head_gradient
        is_zero3 = self.settings.engine == "zero3"
        # autograd adds the two gradients of a tied weight before it adds their sum to the gradient that is there
        waits = after_head if shape.tied else 0
        at_final_norm = self._kept_by_layers + activations.final_norm_backward(shape, row, numbers)
        if is_zero3:  # the head's gradient waits for the next one, that of the final norm, before it is reduced
            waiting = 0 if shape.tied else self._head_gradient * self._reduced_copies
            points = [self._point("head reduced", at_final_norm, whole=waiting)]
        else:
            points = [self._point("final norm", at_final_norm, finished=after_head, beside=waits)]
        # The head's operator has returned: its weight's gradient is not yet added or reduced, its weight not given up.
        at_head = self._kept_by_layers + self.final_norm + row.rows * numbers.compute * shape.hidden
        points.append(self._point("head backward", at_head, whole=self._head_gradient))
        if self.settings.engine == "fsdp2" and not self.frozen_head and not shape.tied:
            # the head's gradient, and the buffer that it is reduced from
            points.append(
                self._point("head reduced", at_head, finished=parts.head, whole=parts.head, beside=parts.head)
            )
        inside = backward_points(
            shape, row, numbers, lora=self.settings.lora, checkpointing=self.settings.checkpointing,
            device=self.settings.device,
        )  # fmt: skip
        places = {"first layer": 1, "lower layer": 2, "upper layer": shape.layers - 1, "last layer": shape.layers}
        if is_zero3:  # what is gathered is another at each layer
            places = {f"layer {number}": number + 1 for number in range(shape.layers)}
        for name, below in places.items():
            if name in ("lower layer", "upper layer") and not 1 < below < shape.layers:
                continue
            kept = self._kept_below(below if self.settings.checkpointing else below - 1) + self.positions
            finished = after_head + parts.norm + (shape.layers - below) * parts.layer
            for point in inside:
                whole = self._waiting_gradients.get(point.name, 0) if is_zero3 else point.made
                if self.settings.accumulation > 1 and not self.settings.sharded:
                    whole = point.latest
                points.append(
                    self._point(
                        f"{name} {point.place}", kept + point.bytes, finished=finished, whole=whole, beside=waits,
                        attention=point.work,
                    )
                )  # fmt: skip
        finished = after_head + parts.norm + shape.layers * parts.layer
        # A tied weight has the head's gradient already, and the embedding's is made whole before it is added.
        shared = shape.tied and not self.frozen_head
        finished -= after_head if shared else 0
        whole = parts.embedding * (2 if shared else 1)
        if is_zero3:
            whole = max(whole, parts.embedding * self._reduced_copies)
        points.append(self._point("embedding", self._at_embedding, finished=finished, whole=whole))
        if self.settings.engine == "fsdp2" and not self.frozen_head and not shape.tied:
            points.append(
                self._point("embedding reduced", 0, finished=parts.trained, whole=whole, beside=parts.embedding)
            )
        if shared and self.observed:  # added into a third tensor, when what the first was made of has gone
            points.append(self._point("embedding", 0, finished=finished, whole=3 * parts.embedding))
        return _largest(points)

    @property
    def _at_embedding(self) -> int:
        """The gradient of the embedding's result; where peft has made that a leaf, the leaf too."""
        if self.settings.lora is None:
            return self.hidden
        return 2 * self.hidden if self.settings.checkpointing else 0

    @property
    def _reduced_copies(self) -> int:
        """How often a gradient stands while ZeRO-3 reduces it: gloo reduces a copy (`ProcessGroupGloo`)."""
        return 1 if self.settings.device == "cuda" else 2

    @property
    def _waiting_gradients(self) -> dict[str, int]:
        """Numbers of a layer's gradients that stand whole beside ZeRO-3's bucket, at the points of its backward.

        What is larger than the bucket waits outside of it for the next gradient; the rest is copied into it.
        """
        if self.frozen_head:  # adapters go into the bucket
            return {}
        sizes = {linear.name: linear.inputs * linear.outputs for linear in self.shape.linears}
        bucket = zero3.reduce_bucket(self.shape)
        waits = {name: size * self._reduced_copies if size > bucket else 0 for name, size in sizes.items()}
        return {
            "product": sizes["down_proj"],
            "up": sizes["up_proj"] + waits["down_proj"],
            "gate": sizes["gate_proj"] + waits["up_proj"],
            "mlp norm": waits["gate_proj"],
            "attention": max(waits["gate_proj"], sizes["o_proj"]),
            "head norms": max(waits["o_proj"], sizes["v_proj"]),
            "end": sizes["q_proj"],
        }

    def step(self) -> dict[str, int]:
        return self._point("step", 0, finished=self.parts.trained)


def _largest(points: list[dict[str, int]]) -> dict[str, int]:
    return max(points, key=lambda point: sum(point.values()))
