"""`amopo train --dry-run`: what a run would do, without doing it.

Contract
--------
`make_plan(job, world_size=...)` reads the model's configuration and tokenizer (no weights), tokenises the pairs in
memory, checks what the trainer would check, and fills the batches of the first epoch as the run will. `Plan.lines()`
says it. Nothing is written, and nothing is trained.

- tokens: `packed` in the rows that the model sees; `written_out` of all 2K sequences per sample alone; `padded` if each
  micro-batch were a rectangle of them, as long as its longest. sharing = written_out / packed.
- steps: as transformers counts them. fill = packed / (micro-batches * tokens_per_batch), over all ranks.
- head_bytes: what the head takes beside its inputs and dW for the largest micro-batch (`amopo.workspace_bytes`).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from amopo.cli.errors import UsageError
from amopo.cli.models import add_lora, load, need, source_of, weights_line
from amopo.cli.scratch import from_scratch
from amopo.data import Pair
from amopo.packing.pack import represented_tokens
from amopo.packing.sample import TokenizedSample
from amopo.trainer.scratch import parse_scratch
from amopo_kernels.workspace import default_budget, workspace_bytes

if TYPE_CHECKING:
    from amopo.cli.job import Job

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Plan:
    model: str
    parameters: int
    trained: int
    samples: int
    evaluation: int
    objectives: int
    packed: int
    written_out: int
    padded: int
    batches: int  # micro-batches of a rank in an epoch
    ranks: int
    tokens_per_batch: int
    steps_per_epoch: int
    steps: int
    head_rows: int
    head_shape: tuple[int, int]  # vocabulary, hidden
    head_bytes: int
    head_budget: int
    notes: tuple[str, ...] = ()

    @property
    def sharing(self) -> float:
        return self.written_out / self.packed

    @property
    def fill(self) -> float:
        return self.packed / (self.batches * self.ranks * self.tokens_per_batch)

    def lines(self) -> list[str]:
        vocab, hidden = self.head_shape
        ranks = "" if self.ranks == 1 else f" on each of {self.ranks} ranks"
        return [
            f"model: {self.model}, {self.parameters / 1e6:.2f}M parameters, {self.trained / 1e6:.2f}M of them trained",
            f"samples: {self.samples} for training, {self.evaluation} held out; {2 * self.objectives} sequences each",
            f"tokens per epoch: {self.packed} packed, {self.written_out} written out (sharing {self.sharing:.2f}x), "
            f"{self.padded} padded ({self.padded / self.packed:.2f}x)",
            f"micro-batches per epoch: {self.batches}{ranks}, of at most {self.tokens_per_batch} tokens, filled to "
            f"{100 * self.fill:.0f} %",
            f"optimizer steps: {self.steps} ({self.steps_per_epoch} per epoch)",
            f"head: {self.head_rows} rows x {vocab} vocabulary x {hidden} hidden in the largest micro-batch, "
            f"{_size(self.head_bytes)} of workspace (budget {_size(self.head_budget)})",
            *self.notes,
        ]


def make_plan(
    job: Job, *, world_size: int, tokenize: Callable[[Sequence[Pair], Any], Sequence[TokenizedSample]]
) -> Plan:
    """The plan of this job on `world_size` ranks; raises what the run would raise before training.

    `tokenize(pairs, tokenizer)` gives samples and keeps nothing on the disk.
    """
    from amopo.trainer.checks import check_setup, embedding_rows, position_limit
    from amopo.trainer.loading import training_sampler
    from amopo.trainer.samples import read_samples

    args = job.args
    model, tokenizer, notes = outline(job)
    if world_size > 1:
        args._n_gpu = min(args.n_gpu, 1)  # one process per GPU, though this one sees them all
    check_setup(model, args)
    if args.fsdp and world_size == 1:
        raise UsageError("--fsdp: one process has nobody to share the model with; start several (--nproc N)")
    if args.fsdp and args.device.type == "cpu":
        raise UsageError("--fsdp: accelerate has no FSDP on CPUs, and would run DDP; leave it out")

    def checked(pairs: Sequence[Pair], name: str) -> Any:
        return read_samples(
            tokenize(pairs, tokenizer),
            name=name,
            num_objectives=args.num_objectives,
            tokens_per_batch=args.tokens_per_batch,
            vocab_size=embedding_rows(model),
            world_size=world_size,
            sharing=args.sharing,
            positions=position_limit(model),
            orientation=args.orientation,
        )

    table = checked(job.inputs.train.pairs, "train_dataset")
    evaluation = job.inputs.evaluation.pairs
    held_out = len(checked(evaluation, "eval_dataset").lengths) if evaluation else 0
    sampler = training_sampler(table, args, world_size=world_size)
    batches = [batch for rank in sampler.plan(0) for batch in rank]
    full = [[index for index in batch if index >= 0] for batch in batches]  # the others are fillers
    steps_per_epoch = max(1, math.ceil(len(sampler) / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    rows = max(sum(table.rows[index] for index in batch) for batch in full)
    parameters = list(model.parameters())
    return Plan(
        model=job.model,
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        samples=len(table.lengths),
        evaluation=held_out,
        objectives=args.num_objectives,
        packed=sum(table.lengths),
        written_out=sum(represented_tokens(sample) for sample in table.samples),
        padded=sum(padded_tokens([table.samples[index] for index in batch]) for batch in full if batch),
        batches=len(sampler),
        ranks=world_size,
        tokens_per_batch=args.tokens_per_batch,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        notes=tuple(notes),
        **_head(model, args, rows),
    )


def padded_tokens(samples: Sequence[TokenizedSample]) -> int:
    """Tokens of one rectangle of all 2K sequences of these samples."""
    longest = max(max(map(len, sample.prompts)) + max(len(sample.chosen), len(sample.rejected)) for sample in samples)
    return longest * sum(2 * sample.num_objectives for sample in samples)


def _size(count: int) -> str:
    power = min(3, max(0, (count.bit_length() - 1) // 10))
    return f"{count / 1024**power:.{1 if power else 0}f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def _head(model: Any, args: Any, rows: int) -> dict[str, Any]:
    from amopo.head import find_head
    from amopo.trainer.trainer import LOGITS_DTYPES

    head = find_head(model)
    weight = head.lm_head.weight
    frozen = not weight.requires_grad
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    try:
        needed = workspace_bytes(
            (rows, weight.shape[1], weight.shape[0]),
            half or weight.dtype,
            args.head_budget,
            frozen=frozen,
            logits_dtype=LOGITS_DTYPES[args.logits_dtype],
            softcap=head.softcap is not None,
            autocast_weight=half is not None and half != weight.dtype,
            device=args.device.type,
        )
    except ValueError as error:
        raise UsageError(f"--head-budget: {error}") from None
    budget = args.head_budget or default_budget(weight.shape[1], weight.shape[0], frozen_head=frozen)
    return {"head_rows": rows, "head_shape": tuple(weight.shape), "head_bytes": needed, "head_budget": budget}


def outline(job: Job) -> tuple[Any, Any, list[str]]:
    """The model without weights (on the meta device), its tokenizer, and what could not be checked so."""
    with _whole_models():
        return _outline(job)


@contextlib.contextmanager
def _whole_models() -> Iterator[None]:
    """Models are made as without ZeRO-3: transformers would cut them into pieces, between ranks that need not be there.

    A plan reads shapes, and a piece has none.
    """
    from transformers.integrations import deepspeed

    if not deepspeed.is_deepspeed_zero3_enabled():
        yield
        return
    config = deepspeed._hf_deepspeed_config_weak_ref()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)


def _outline(job: Job) -> tuple[Any, Any, list[str]]:
    size = parse_scratch(job.model)
    if size is not None:
        model, tokenizer, note = from_scratch(job, size)
        return model, tokenizer, [note]
    source, folder = source_of(job.model)
    if folder is not None and (folder / "adapter_config.json").is_file():
        model, tokenizer = load(job.model, dtype=job.dtype)  # its base model is found by loading it
        notes: list[str] = []
    else:
        model, tokenizer = _without_weights(job, source)
        notes = [] if folder is not None else [f"{job.model}: configuration and tokenizer were read, weights were not"]
        if folder is not None:
            _check_weights(folder)
    if job.lora_r is not None:
        need("peft", "peft")
        model = add_lora(model, rank=job.lora_r, alpha=job.lora_alpha)
        notes.append(weights_line(model))
    return model, tokenizer, notes


def _without_weights(job: Job, source: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    from amopo.cli.models import load_tokenizer, loading

    with loading(job.model):
        tokenizer = load_tokenizer(source)
        config = AutoConfig.from_pretrained(source)
        dtype = getattr(config, "dtype", None) or torch.float32 if job.dtype == "auto" else getattr(torch, job.dtype)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype), tokenizer


def _check_weights(folder: Path) -> None:
    """Raise if a file of the weights is missing; loading would find out after the data were read."""
    for name in _INDEXES:
        if (folder / name).is_file():
            named = set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(file for file in named if not (folder / file).is_file())
            if missing:
                raise UsageError(f"--model: {folder} lacks {', '.join(missing)}, which {name} names")
            return
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise UsageError(f"--model: {folder} holds no weights ({' or '.join(_WEIGHTS)})")
