"""The race of all selected providers on one case: checked first, then timed in rotating rounds.

A provider's first call is its warm-up, its check against fp64 and its memory run at once; one that compiles in it is
called once more for the latter two. One that is over the limits is timed and reported with its errors. One that fails,
in its check or in a later round, is reported with its message; only ours and the floor fail the benchmark.

The floor and ours come first: checked, timed for a few rounds and written before any peer is built, so that a run that
is cut short has them. The race of all starts anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.common.cases import HeadCase
from bench.common.measure import Entrant, message_of, race, release_memory, run_for_memory, synchronize
from bench.common.providers import PROVIDERS, NotMeasured, Provider, errors_of
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
        return failed and self.comes_first

    @property
    def comes_first(self) -> bool:
        return self.provider.role in ("ours", "floor")


def check(provider: Provider, case: HeadCase, frozen: bool) -> tuple[Entrant, dict]:
    """Build, run once, compare with fp64, measure memory."""
    function = provider.build(case, frozen)
    device = case.device
    if device.type == "cuda" or provider.compiled:
        function()  # compilation and library handles are not the call's memory
        synchronize(device)
    outcome, memory = run_for_memory(function, device, watch_tensors=not provider.compiled)
    errors = errors_of(provider.task, case, truth_of(case), outcome)
    del outcome
    grad_weight = 0 if frozen or provider.task == "products" else case.weight.numel() * case.weight.element_size()
    if "peak_bytes" in memory:
        memory["peak_bytes_beyond_dw"] = max(0, memory["peak_bytes"] - grad_weight)
    info = {
        "role": provider.role, "task": provider.task, "settings": provider.settings, "frozen": frozen,
        "products": provider.products(frozen), "entropy": case.entropy, **errors, **memory,
        "over_limit": over_limit(errors), **provider.details(case, frozen),
    }  # fmt: skip
    return Entrant(provider.name, function), info


def run_head_race(
    session: BenchSession, case: HeadCase, frozen: bool, names: list[str], question: str
) -> dict[str, Entry]:
    """Entries by provider name, all timed in one race; progress goes to the result file after each rotation."""
    entries = {name: Entry(PROVIDERS[name]) for name in names}
    truth_of(case)
    first = [entry for entry in entries.values() if entry.comes_first]
    peers = [entry for entry in entries.values() if not entry.comes_first]
    effort, heated = session.effort(), []

    def save(running: list[Entry]) -> None:
        for entry in running:
            entrant = entry.entrant
            # a first heat's median stays until the race of all has as many rounds
            if entrant in heated and entrant.problem is None and len(entrant.times) < effort["min_rounds"]:
                continue
            complete(entry, case)
            session.record(question, session.key(case, provider=entry.provider.name), entrant, entry.info)

    running = _enter(first, session, case, frozen, question)
    if peers:
        heat = effort | {"seconds": 0.0, "max_rounds": effort["min_rounds"]}
        race([entry.entrant for entry in running], case.device, **heat, after_rotation=lambda: save(running))
        running = [entry for entry in running if entry.problem is None]
        for entry in running:
            entry.entrant.times.clear()
        heated += [entry.entrant for entry in running]
        running += _enter(peers, session, case, frozen, question)
    race([entry.entrant for entry in running], case.device, **effort, after_rotation=lambda: save(running))
    save(running)
    for entry in running:
        entry.entrant.release()  # what was prepared goes with the race
    case.cache.pop("g", None)
    return entries


def _enter(entries: list[Entry], session: BenchSession, case: HeadCase, frozen: bool, question: str) -> list[Entry]:
    """Check each; those that run."""
    for entry in entries:
        provider = entry.provider
        entry.problem = provider.missing(case)
        if entry.problem is None and provider.compiled and session.skip_compiled:
            entry.problem = "compiles for tens of seconds: runs with --full, or when named by --providers"
        if entry.problem is None:
            try:
                entry.entrant, entry.info = check(provider, case, frozen)
            except NotMeasured as reason:
                entry.problem = str(reason)
            except Exception as error:  # a failure is a result, whatever was raised: the others still run
                entry.problem = f"failed: {message_of(error)}"
            if entry.problem is not None:
                release_memory(case.device)
        if entry.problem is not None:
            session.recorder.put(question, session.key(case, provider=provider.name), skipped=entry.problem)
    return [entry for entry in entries if entry.entrant is not None]


def complete(entry: Entry, case: HeadCase) -> None:
    """Add what follows from the median, or why there is none."""
    entry.problem = entry.entrant.problem
    if entry.problem is not None:
        return
    flops = case.shape.product_flops * entry.info["products"]
    entry.info["useful_flops"] = flops
    entry.info["tflops"] = flops / entry.entrant.stats()["median"] / 1e12
