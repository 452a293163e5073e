"""What the head set out to reach, and what was measured: a table per device.

A target is a ratio to something measured in the same race. Where a target over a peer lies below the bare products,
which no exact method can undercut, the table says so with the floor's own ratio. The same gradient error is allowed to
ours and to peers.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.common.tables import GRADIENT_LIMIT, error, fastest, floor_of, gradient_error, grouped, table

Row = tuple[str, str, str, str, str]  # what, where, target, measured, reached
HEADER = ["what", "where", "target", "measured", "reached"]


def _median(record: dict) -> float:
    return record["stats"]["median"]


def _right(records: list[dict]) -> list[dict]:
    """Those with gradients good enough to be compared."""
    return [r for r in records if gradient_error(r["info"]) < GRADIENT_LIMIT]


def _measured(records: list[dict], *, start: str = "", role: str = "", task: str = "") -> list[dict]:
    return [
        r for r in records
        if "stats" in r and r["key"]["provider"].startswith(start)
        and role in ("", r["info"].get("role")) and task in ("", r["info"].get("task"))
    ]  # fmt: skip


def _fastest(records: list[dict]) -> dict | None:
    return min(records, key=_median, default=None)


def at_most(what: str, where: str, limit: float, ours: float, other: float, floor: float | None = None) -> Row:
    """`ours / other` should not exceed `limit`."""
    ratio = ours / other
    reached = "yes" if ratio <= limit else "no"
    if ratio > limit and floor is not None and floor / other > limit:
        reached = f"no: the bare products alone take {floor / other:.2f}x"
    return what, where, f"<= {limit:.2f}x", f"{ratio:.2f}x", reached


def at_least(what: str, where: str, limit: float, ratio: float, floor: float | None = None) -> Row:
    """`ratio` should reach `limit`; `floor` is the ratio that the bare products would have."""
    reached = "yes" if ratio >= limit else "no"
    if ratio < limit and floor is not None and floor < limit:
        reached = f"no: the bare products alone reach {floor:.2f}x"
    return what, where, f">= {limit:.2f}x", f"{ratio:.2f}x", reached


def head_rows(data: dict, cuda: bool, frozen: bool) -> Iterator[Row]:
    products = "two" if frozen else "three"
    kind = "frozen" if frozen else "full"
    for (shape, _, inputs), records in grouped(data["records"], "shape", "dtype", "inputs").items():
        where, floor = f"{shape}, {inputs}", floor_of(records)
        measured = _measured(records, start="amopo_", role="ours", task="tokens")
        tokens = _fastest(_right(measured))
        pairs = _fastest(_right(_measured(records, start="amopo_", role="ours", task="pairs")))
        if measured and tokens is None:
            least = min(gradient_error(r["info"]) for r in measured)
            yield f"{kind} head, gradient error", where, f"< {GRADIENT_LIMIT:g}", error(least), "no"
        if tokens is None or floor is None:
            continue
        case, where = where, f"{where}, {tokens['key']['provider']}"
        ours, bare = _median(tokens), floor[1]
        limit = 1.10 if cuda else (1.30 if frozen else 1.25)
        yield at_most(f"{kind} head to its {products} bare products", where, limit, ours, bare)
        if cuda:
            peer = fastest([r for r in records if r.get("info", {}).get("task") == "tokens"], "peer")
            if peer is not None:
                name = f"{kind} head, speed over the fastest peer ({peer['key']['provider']})"
                yield at_least(name, where, 1.25, _median(peer) / ours, _median(peer) / bare)
            bound = _fastest(_right(_measured(records, role="bound")))
            if bound is not None:
                name = f"{kind} head, speed over the best easier task ({bound['key']['provider']})"
                yield at_least(name, where, 0.97, _median(bound) / ours, _median(bound) / bare)
        elif not frozen:
            for name in ("liger_simpo", "liger_simpo_one_chunk"):
                liger = _fastest([r for r in _measured(records, start=name) if r["key"]["provider"] == name])
                if liger is not None and pairs is not None:
                    what = f"SimPO's loss to {name} ({liger['info']['settings']})"
                    place = f"{case}, {pairs['key']['provider']}"
                    yield at_most(what, place, 0.70, _median(pairs), _median(liger), bare)
            torch_op = _fastest(_measured(records, start="torch_lce"))
            if torch_op is not None:
                what = f"full head to F.linear_cross_entropy ({torch_op['key']['provider']}, its fastest setting)"
                yield at_most(what, where, 0.75, ours, _median(torch_op), bare)


def memory_rows(data: dict, cuda: bool) -> Iterator[Row]:
    for (shape, frozen), records in grouped(data["records"], "shape", "frozen").items():
        where = f"{shape}, {'frozen' if frozen else 'full'}"
        budgets = [r for r in records if "of_workspace" in r.get("info", {})]
        if budgets:
            worst = max(budgets, key=lambda r: r["info"]["of_workspace"])
            share = worst["info"]["of_workspace"]
            what = f"peak bytes to workspace_bytes, largest of {len(budgets)} budgets ({worst['key']['provider']})"
            yield at_most(what, where, 1.05, share, 1.0)
        for record in budgets:
            if record["key"]["provider"] == "64MB" and not cuda and "of_floor" in record["info"]:
                what = "time at a budget of 64 MB to the bare products"
                yield at_most(what, where, 2.0, record["info"]["of_floor"], 1.0)


def row_pass_rows(data: dict) -> Iterator[Row]:
    for (form,), records in grouped(data["records"], "form").items():
        passes = [r for r in records if "of_copy" in r.get("info", {}) and r["key"]["provider"] != "copy"]
        best = _fastest(passes)
        if best is None:
            continue
        info, what = best["info"], "row pass, share of the bandwidth of a copy"
        what, where, target, measured, reached = at_least(what, form, 0.85, info["of_copy"])
        counted = "by state bytes" + (f" ({info['bytes_per_logit']} per logit)" if "bytes_per_logit" in info else "")
        if "asked_of_copy" in info:
            counted += f"; {info['asked_of_copy']:.2f}x by those asked for ({info['asked_bytes_per_logit']} per logit)"
        yield what, where, target, f"{measured} {counted}", reached


def objective_rows(data: dict) -> Iterator[Row]:
    for weights in ("gaussian", "mean"):
        best = _fastest([r for r in data["records"] if "stats" in r and r["key"]["part"] == f"mobt_{weights}"])
        if best is None:
            continue
        microseconds = _median(best) * 1e6
        reached = "yes" if microseconds <= 60 else "no"
        what = f"statistics and objective of 64 sequences ({best['key']['provider']})"
        yield what, f"B = 8, K = 4, {weights} weights", "<= 60 us", f"{microseconds:.0f} us", reached


def attention_rows(data: dict) -> Iterator[Row]:
    for (shape, sharing), records in grouped(data["records"], "shape", "sharing").items():
        for record in records:
            if record["key"]["provider"] == "gather" and "of_layer" in record.get("info", {}):
                what = "gather of keys and values and its backward, of a layer's time"
                yield at_most(what, f"{shape}, {sharing}", 0.03, record["info"]["of_layer"], 1.0)


def layouts_rows(data: dict) -> Iterator[Row]:
    for record in data["records"]:
        if record["key"]["provider"] in ("pair", "tree") and "stats" in record:
            rate = record["info"]["input_tokens_per_second"] / 1e6
            reached = "yes" if rate >= 2 else "no"
            where = f"{record['key']['data']}, {record['key']['provider']}"
            yield "packing, million tokens per second on one core", where, ">= 2.0", f"{rate:.1f}", reached


def packing_rows(data: dict) -> Iterator[Row]:
    over_released = {("helpsteer2_sample100", "released_b1"): 1.7, ("helpsteer2_sample100", "released_b4"): 2.5}
    for (name,), records in grouped(data["records"], "data").items():
        found = {r["key"]["provider"]: r for r in records if "stats" in r}
        best = "tree" if name == "summeval" else "pair"
        if "none" not in found or best not in found:
            continue
        ours = found[best]
        if best == "pair":
            share = ours["info"]["reached"] / ours["info"]["possible"]
            yield at_least("pair over none, of what the FLOPs allow", name, 0.9, share)
        else:
            yield at_least("tree over none", name, 2.5, ours["info"]["reached"])
        for released, limit in ((r, over_released[name, r]) for r in found if (name, r) in over_released):
            ratio = _median(found[released]) / _median(ours)
            yield at_least(f"{best} over the released step ({released})", name, limit, ratio)


def target_rows(results: dict[str, dict], cuda: bool) -> list[Row]:
    """All targets of a device that something was measured for."""
    rows: list[Row] = []
    for question, frozen in (("head_full", False), ("head_frozen", True)):
        if question in results:
            rows += head_rows(results[question], cuda, frozen)
    if "memory" in results:
        rows += memory_rows(results["memory"], cuda)
    if "packing" in results and not cuda:
        rows += packing_rows(results["packing"])
    if "layouts" in results and not cuda:
        rows += layouts_rows(results["layouts"])
    if "attention" in results and cuda:
        rows += attention_rows(results["attention"])
    if "row_pass" in results and cuda:
        rows += row_pass_rows(results["row_pass"])
    if "objective" in results and cuda:
        rows += objective_rows(results["objective"])
    return rows


def target_section(results: dict[str, dict]) -> str:
    """The table as Markdown, or nothing where nothing was measured that has a target."""
    first = next(iter(results.values()))["runs"][-1]["machine"]
    rows = target_rows(results, cuda="gpu" in first)
    if not rows:
        return ""
    return "\n\n".join(["### Targets", table(HEADER, [list(row) for row in rows])])
