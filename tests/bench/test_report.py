"""From result files to the tables and pictures of the documentation."""

from __future__ import annotations

import pytest

from bench import report
from bench.common import tables
from bench.common.results import Recorder

RUN = {
    "machine": {"device": "Box 9", "processor": "Box 9", "threads": 2, "system": "Linux"},
    "versions": {"torch": "2.13.0"}, "command": "python -m pytest bench/ --full", "date": "2026-01-02",
}  # fmt: skip
KEY = {"shape": "head-8x4x16", "dtype": "bfloat16", "inputs": "peaked", "small": False}
TIMES = [
    ("products", "floor", 1.0, None), ("amopo_cpp", "ours", 1.2, 0.002), ("exact", "peer", 1.8, 0.004),
    ("fast_but_wrong", "peer", 1.1, 0.5), ("easier", "bound", 1.15, 0.002),
]  # fmt: skip


@pytest.fixture
def results(tmp_path):
    recorder = Recorder(tmp_path / "results", "box-9", RUN)
    for name, role, seconds, gradient in TIMES:
        info = {"role": role, "tflops": 1.5, "over_limit": [], "entropy": 1.5, "frozen": False}
        if gradient is not None:
            info |= {"logp_error": 1e-6, "grad_hidden_error": gradient, "grad_weight_error": 0.001}
            info |= {"over_limit": ["grad_hidden_error"] if gradient > 0.05 else [], "peak_bytes_beyond_dw": 3 << 20}
        recorder.put("head_full", {**KEY, "provider": name}, stats={"median": seconds}, info=info)
    recorder.put("head_full", {**KEY, "provider": "gone"}, skipped="gone is not installed")
    recorder.put("head_full", {**KEY, "small": True, "provider": "tiny"}, stats={"median": 9.0}, info={"role": "ours"})
    return tmp_path / "results"


def rows_of(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row for row in rows}


def test_times_ratios_and_errors_stand_in_the_table(results, tmp_path):
    text = report.render(results, tmp_path / "pictures", draw=False)
    rows = rows_of(text)
    assert rows["amopo_cpp"][:5] == ["amopo_cpp", "ours", "1,200", "1.20x", "1.5"]
    assert rows["amopo_cpp"][5:9] == ["1.0e-06", "2.0e-03", "1.0e-03", "3"]
    assert rows["fast_but_wrong"][-1] == "grad_hidden_error"
    assert "tiny" not in text
    for part in ("Box 9", "torch 2.13.0", "head-8x4x16", "python -m pytest bench/ --full", "entropy 1.50 nats"):
        assert part in text, part
    assert "Not measured: gone (gone is not installed)." in text


def test_the_fastest_peer_is_one_that_is_right(results):
    records = tables.read_device(results / "box-9")["head_full"]["records"]
    assert tables.fastest(records, "peer")["key"]["provider"] == "exact"
    text = tables.head_section({"records": records})
    assert "takes 1.20x of the floor (products)" in text and "exact, takes 1.50x of its time" in text


def test_devices_without_results_are_pending(results, tmp_path):
    (results / "empty-box").mkdir()
    text = report.render(results, tmp_path / "pictures", ("Some GPU", "Box 9"), draw=False)
    assert "## Some GPU\n\npending" in text and "## empty-box\n\npending" in text
    assert text.count("## Box 9") == 1 and "Row pass against a copy of the same bytes\n\npending" in text
    assert "pending" in report.render(tmp_path / "nowhere", tmp_path / "pictures", ("Some GPU",))


def test_the_document_keeps_what_stands_outside_the_markers(results, tmp_path):
    document = tmp_path / "docs.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    arguments = ["--results", str(results), "--document", str(document)]
    assert report.main([*arguments, "--check"]) == 1
    assert report.main(arguments) == 0
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    picture = tmp_path / "benchmarks" / "box-9-head_full.svg"
    assert "(benchmarks/box-9-head_full.svg)" in text and "amopo_cpp" in picture.read_text()
    assert report.main([*arguments, "--check"]) == 0


def test_a_document_without_markers_is_refused():
    with pytest.raises(ValueError, match="must hold each of these lines once"):
        report.between("nothing", report.BEGIN, report.END, "text")


def test_a_calculated_table_stands_below_a_pending_a100_alone(results, tmp_path):
    text = report.render(results, tmp_path / "pictures", ("NVIDIA H200", "NVIDIA A100-SXM4-80GB"), draw=False)
    h200, a100 = text.split("## NVIDIA H200")[1].split("## NVIDIA A100-SXM4-80GB")
    assert "calculated" not in h200 and "### Head: calculated, not measured" in a100 and "pending" in a100
    (results / "nvidia-a100-sxm4-80gb").mkdir()
    text = report.render(results, tmp_path / "pictures", ("NVIDIA A100-SXM4-80GB",), draw=False)
    assert text.count("### Head: calculated, not measured") == 1
    run = RUN | {"machine": RUN["machine"] | {"device": "NVIDIA A100-SXM4-80GB"}}
    Recorder(results, "nvidia-a100-sxm4-80gb", run).put(
        "head_full", {**KEY, "provider": "products"},
        stats={"median": 1.0}, info={"role": "floor", "tflops": 1.0, "over_limit": []},
    )  # fmt: skip
    text = report.render(results, tmp_path / "pictures", ("NVIDIA A100-SXM4-80GB",), draw=False)
    assert "calculated" not in text


def test_ours_needs_the_same_gradient_error_and_budgets_are_stated(results):
    records = tables.read_device(results / "box-9")["head_full"]["records"]
    ours = next(r for r in records if r["key"]["provider"] == "amopo_cpp")
    wrong = {**ours, "key": ours["key"] | {"provider": "amopo_fast"}, "stats": {"median": 1.01}}
    wrong["info"] = ours["info"] | {"grad_hidden_error": 0.02}
    kept = {**ours, "key": ours["key"] | {"provider": "amopo_kept"}, "stats": {"median": 1.15}}
    kept["info"] = ours["info"] | {"budget_bytes": 64 << 20, "workspace_bytes": 65 << 20}
    assert tables.fastest([*records, wrong], "ours") is ours
    text = tables.head_section({"records": [*records, wrong, kept]})
    assert "amopo_kept takes 1.15x of the floor" in text
    assert "amopo_kept: a budget of 64 MB, workspace_bytes 65 MB." in text
