"""The race of all selected providers on one case: checked first, then timed in rotating rounds.

A provider's first call is its warm-up, its check against fp64 and its memory run at once. One that is over the limits
is timed and reported with its errors. One that fails is reported with its message; only ours fails the benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.common.cases import HeadCase
from bench.common.measure import Entrant, race, run_for_memory, synchronize
from bench.common.providers import PROVIDERS, Provider, errors_of
from bench.common.session import BenchSession
from bench.common.truth import over_limit, truth_of


@dataclass
class Entry:
    """One provider in a race; `problem` says why it has no times."""

    provider: Provider
    entrant: Entrant | None = None
    info: dict | None = None
    problem: str | None = None

    @property
    def must_not_be_missing(self) -> bool:
        """Ours, or the floor, failed: that is an error, where a peer's failure is a result."""
        failed = self.problem is not None and self.problem.startswith("failed")
        return failed and self.provider.role in ("ours", "floor")


def check(provider: Provider, case: HeadCase, frozen: bool) -> tuple[Entrant, dict]:
    """Build, run once, compare with fp64, measure memory."""
    function = provider.build(case, frozen)
    device = case.device
    if device.type == "cuda":
        function()  # compilation and library handles are not the call's memory
    watch = not provider.compiled
    outcome, memory = run_for_memory(function, device, watch_tensors=watch)
    errors = errors_of(provider.task, case, truth_of(case), outcome)
    del outcome
    if not watch:
        function()  # the first call compiled
        synchronize(device)
    grad_weight = 0 if frozen or provider.task == "products" else case.weight.numel() * case.weight.element_size()
    if "peak_bytes" in memory:
        memory["peak_bytes_beyond_dw"] = max(0, memory["peak_bytes"] - grad_weight)
    if not watch and "resident_bytes" in memory:
        del memory["resident_bytes"]  # the compiler's own memory is in it
    info = {
        "role": provider.role, "task": provider.task, "settings": provider.settings, "frozen": frozen,
        "products": provider.products(frozen), "entropy": case.entropy, **errors, **memory,
        "over_limit": over_limit(errors),
    }  # fmt: skip
    return Entrant(provider.name, function), info


def run_head_race(
    session: BenchSession, case: HeadCase, frozen: bool, names: list[str], question: str
) -> dict[str, Entry]:
    """Entries by provider name, all timed in one race; progress goes to the result file after each rotation."""
    entries = {name: Entry(PROVIDERS[name]) for name in names}
    truth_of(case)
    for name, entry in entries.items():
        entry.problem = entry.provider.missing(case)
        if entry.problem is None and entry.provider.compiled and session.skip_compiled:
            entry.problem = "compiles for tens of seconds: runs with --full, or when named by --providers"
        if entry.problem is None:
            try:
                entry.entrant, entry.info = check(entry.provider, case, frozen)
            except Exception as error:  # a failure is a result, whatever was raised: the others still run
                entry.problem = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        if entry.problem is not None:
            session.recorder.put(question, session.key(case, provider=name), skipped=entry.problem)
    running = [entry for entry in entries.values() if entry.entrant is not None]

    def save() -> None:
        for entry in running:
            complete(entry, case)
            session.recorder.put(
                question, session.key(case, provider=entry.provider.name), stats=entry.entrant.stats(), info=entry.info
            )

    race([entry.entrant for entry in running], case.device, after_rotation=save, **session.effort())
    for entry in running:
        complete(entry, case)
        entry.entrant.function = None  # what was prepared goes with the race
    case.cache.pop("g", None)
    return entries


def complete(entry: Entry, case: HeadCase) -> None:
    """Add what follows from the median."""
    flops = case.shape.product_flops * entry.info["products"]
    entry.info["useful_flops"] = flops
    entry.info["tflops"] = flops / entry.entrant.stats()["median"] / 1e12
