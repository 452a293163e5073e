"""Puts the fused path and AMoPO into the installed LLaMA-Factory, and takes them out again.

`install()` replaces, in memory, in this process:

    llamafactory.train.dpo.trainer.CustomDPOTrainer     the DPO stage's trainer, without logits
    llamafactory.train.tuner.run_dpo, .train.dpo.run_dpo  the DPO stage's workflow, which knows AMoPO
    llamafactory.hparams.parser._TRAIN_ARGS             arguments with `stage: amopo` and `amopo_*`
    llamafactory.data.loader.PairwiseDatasetProcessor   pairs, and in a run of AMoPO samples of K prompts
    llamafactory.data.converter.DATASET_CONVERTERS      one more format, `formatting: amopo`
    llamafactory.launcher.__file__                      what torchrun starts on each rank: `worker.py`

Nothing of LLaMA-Factory on disk is touched. A second `install()` gives the first one's handle. `remove()`, or the end
of a `with` block, restores everything; it raises where somebody else has replaced a name since.

Refused: versions that this was not tested with (`any_version=True` tries them), a LLaMA-Factory in which one of these
names, or an argument that is used, is missing; and the ways of running it in which none of this would take effect:
USE_MCA, USE_RAY, USE_V1.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTED = ("0.9.5",)
FORMAT = "amopo"

# What is replaced or called, and the arguments that are relied on.
_NEEDED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("llamafactory.launcher.launch", ()),
    ("llamafactory.train.tuner.run_dpo", ("model_args", "data_args", "training_args", "finetuning_args", "callbacks")),
    ("llamafactory.train.dpo.run_dpo", ()),
    ("llamafactory.train.dpo.workflow.PairwiseDataCollatorWithPadding", ()),
    ("llamafactory.train.dpo.trainer.CustomDPOTrainer", ("model", "ref_model", "finetuning_args", "processor")),
    ("llamafactory.train.dpo.trainer.CustomDPOTrainer.concatenated_forward", ("model", "batch", "is_ref_model")),
    ("llamafactory.train.dpo.trainer.CustomDPOTrainer.get_batch_loss_metrics", ("model", "batch", "train_eval")),
    ("llamafactory.train.dpo.trainer.CustomDPOTrainer.compute_preference_loss", ()),
    ("llamafactory.train.dpo.trainer.CustomDPOTrainer.prediction_step", ("prediction_loss_only",)),
    ("llamafactory.hparams.parser._TRAIN_ARGS", ()),
    ("llamafactory.hparams.finetuning_args.FinetuningArguments", ("stage", "pref_loss", "pref_beta", "simpo_gamma")),
    ("llamafactory.data.loader.PairwiseDatasetProcessor", ()),
    ("llamafactory.data.processor.PairwiseDatasetProcessor.preprocess_dataset", ("examples",)),
    ("llamafactory.data.processor.processor_utils.infer_seqlen", ("source_len", "target_len", "cutoff_len")),
    ("llamafactory.data.collator.MultiModalDataCollatorForSeq2Seq", ("template",)),
    ("llamafactory.data.converter.DatasetConverter", ("dataset_attr", "data_args")),
    ("llamafactory.data.converter.DATASET_CONVERTERS", ()),
)
_ENVIRONMENT = {
    "USE_MCA": "Megatron has a trainer of its own",
    "USE_RAY": "Ray starts workers that know nothing of amopo",
    "USE_V1": "LLaMA-Factory's v1 has trainers of its own",
}


@dataclass
class _Change:
    """One name with what it was and what it is now."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], None]
    value: Any
    before: Any = None

    def make(self) -> None:
        self.before = self.get()
        self.put(self.value)


_MISSING = object()


class Installation:
    """The handle of `install()`; a context manager that removes it at the end."""

    def __init__(self, changes: list[_Change]) -> None:
        self._changes: list[_Change] = []
        for change in changes:
            change.make()
            self._changes.append(change)

    @property
    def is_active(self) -> bool:
        """Whether LLaMA-Factory is changed now."""
        return bool(self._changes)

    def remove(self) -> None:
        """Restore LLaMA-Factory; a second call does nothing."""
        global _active
        foreign = [change.name for change in self._changes if change.get() is not change.value]
        if foreign:
            raise RuntimeError(f"{', '.join(foreign)} was replaced by somebody else after install(); undo that first")
        for change in reversed(self._changes):
            change.put(change.before)
        self._changes = []
        if _active is self:
            _active = None

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


_active: Installation | None = None


def install(*, any_version: bool = False) -> Installation:
    """Give LLaMA-Factory's DPO stage the fused path, and add AMoPO.

    Raises:
        ImportError: LLaMA-Factory is not installed, or cannot be imported. RuntimeError: it is one that this was not
        made for, or would run where none of this takes effect.
    """
    global _active
    if _active is not None:
        return _active
    check_host(any_version=any_version)
    _active = Installation(_changes())
    return _active


def check_host(*, any_version: bool = False) -> str:
    """The installed version, after everything that is relied on was found."""
    try:
        version = importlib.metadata.version("llamafactory")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError("LLaMA-Factory is not installed; see docs/integrations/llamafactory.md") from None
    if version not in TESTED and not any_version:
        raise RuntimeError(
            f"LLaMA-Factory {version} was not tested with amopo (tested: {', '.join(TESTED)}); install one of "
            "those, or try it with install(any_version=True)"
        )
    for name, why in _ENVIRONMENT.items():
        if os.environ.get(name, "0").lower() in ("true", "y", "1"):
            raise RuntimeError(f"{name} is set, and there amopo would have no effect: {why}; unset it")
    missing = [problem for path, arguments in _NEEDED if (problem := _why_missing(path, arguments))]
    if missing:
        raise RuntimeError(f"LLaMA-Factory {version} is not as amopo needs it: {'; '.join(missing)}")
    return version


def _why_missing(path: str, arguments: tuple[str, ...]) -> str | None:
    value = _resolve(path)
    if value is _MISSING:
        return f"{path} is missing"
    absent = [name for name in arguments if name not in inspect.signature(value).parameters] if arguments else []
    return f"{path} takes no {', '.join(absent)}" if absent else None


def _resolve(path: str) -> Any:
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        try:
            value = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # `a.b.Class` is no module; but a package that LLaMA-Factory itself lacks is an error of its own.
            if error.name is None or not name.startswith(error.name):
                raise ImportError(f"LLaMA-Factory cannot be imported: {error}") from error
            continue
        for part in parts[count:]:
            value = getattr(value, part, _MISSING)
        return value
    return _MISSING


def _changes() -> list[_Change]:
    import llamafactory.data.loader as loader
    import llamafactory.launcher as launcher
    import llamafactory.train.dpo as dpo
    import llamafactory.train.dpo.trainer as dpo_trainer
    import llamafactory.train.tuner as tuner
    from llamafactory.data.converter import DATASET_CONVERTERS
    from llamafactory.hparams import FinetuningArguments
    from llamafactory.hparams.parser import _TRAIN_ARGS

    from amopo.integrations.llamafactory.arguments import AMoPOFinetuningArguments
    from amopo.integrations.llamafactory.data import AMoPODatasetConverter, AMoPODatasetProcessor
    from amopo.integrations.llamafactory.dpo import FusedDPOTrainer
    from amopo.integrations.llamafactory.workflow import run_dpo

    if DATASET_CONVERTERS.get(FORMAT) is not None:
        raise RuntimeError(f"LLaMA-Factory has a dataset format {FORMAT!r} already; is this a fork of it?")
    place = _TRAIN_ARGS.index(FinetuningArguments)
    return [
        _attribute(dpo_trainer, "CustomDPOTrainer", FusedDPOTrainer),
        _attribute(tuner, "run_dpo", run_dpo),
        _attribute(dpo, "run_dpo", run_dpo),
        _attribute(loader, "PairwiseDatasetProcessor", AMoPODatasetProcessor),
        _attribute(launcher, "__file__", str(Path(__file__).with_name("worker.py"))),
        _Change(
            "llamafactory.hparams.parser._TRAIN_ARGS",
            lambda: _TRAIN_ARGS[place],
            lambda value: _TRAIN_ARGS.__setitem__(place, value),
            AMoPOFinetuningArguments,
        ),
        _Change(
            f"the dataset format {FORMAT!r}",
            lambda: DATASET_CONVERTERS.get(FORMAT),
            lambda value: DATASET_CONVERTERS.pop(FORMAT) if value is None else DATASET_CONVERTERS.update(amopo=value),
            AMoPODatasetConverter,
        ),
    ]


def _attribute(module: Any, name: str, value: Any) -> _Change:
    return _Change(
        f"{module.__name__}.{name}", lambda: getattr(module, name), lambda new: setattr(module, name, new), value
    )
