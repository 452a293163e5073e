"""The data of axolotl's configuration as tokenised samples.

`tokenized_rows(cfg, tokenizer)` -> rows for training and for evaluation, as `AMoPOCollator` takes them: `prompts` (K
lists of ids), `chosen`, `rejected`, `sample_id`, and `length`. They come from the one file of `datasets`, and that of
`test_datasets` or a share of the prompts (`val_set_size`). Raises ValueError for several files or another form.
"""

from __future__ import annotations

from typing import Any

from amopo.data import build_pairs, read_records, scales_of, split_records, tokenize_pairs
from amopo.data.scales import as_scales
from amopo.data.templates import get_template
from amopo.integrations.axolotl.settings import given, settings_of
from amopo.packing.sample import TokenizedSample, sample_id_to_int64

TYPE = "amopo"


def tokenized_rows(cfg: Any, tokenizer: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and evaluation samples: `prompts` (K lists of ids), `chosen`, `rejected`, `sample_id`."""
    objectives = settings_of(cfg).objectives
    path, evaluation_path = _path(cfg, "datasets"), _path(cfg, "test_datasets")
    if path is None:
        raise ValueError("AMoPOPlugin needs datasets: [{path: preferences.jsonl, type: amopo}]")
    scales = as_scales(cfg.get("amopo_scales") and dict(cfg.get("amopo_scales")))
    records = read_records(path, objectives=objectives, scales=scales)
    held_out = []
    if evaluation_path is not None:
        held_out = read_records(evaluation_path, objectives=objectives, scales=scales)
    elif fraction := cfg.get("val_set_size"):
        if not 0 < fraction < 1:
            raise ValueError(f"val_set_size must be a fraction of the prompts between 0 and 1, got {fraction}")
        records, held_out = split_records(records, eval_fraction=fraction, seed=given(cfg, "seed", 0))
    length = given(cfg, "sequence_len", 2048)
    prompt_length = given(cfg, "amopo_max_prompt_length", length // 2)
    options = {
        "template": get_template(given(cfg, "amopo_template", "rubric")),
        "max_prompt_length": prompt_length,
        "max_response_length": given(cfg, "amopo_max_response_length", length - prompt_length),
    }
    found = []
    for part in (records, held_out):
        if not part:
            found.append([])
            continue
        pairs, pair_report = build_pairs(part, objectives=objectives)
        samples, report = tokenize_pairs(pairs, tokenizer, objectives=objectives, scales=scales_of(part), **options)
        print(f"AMoPO: {pair_report}\nAMoPO: {report}")
        found.append([_row(sample) for sample in samples])
    return found[0], found[1]


def _row(sample: TokenizedSample) -> dict[str, Any]:
    return {
        "prompts": [list(ids) for ids in sample.prompts],
        "chosen": list(sample.chosen),
        "rejected": list(sample.rejected),
        "sample_id": sample_id_to_int64(sample.id),
        # axolotl counts tokens and drops what is too long by these names
        "length": max(map(len, sample.prompts)) + max(len(sample.chosen), len(sample.rejected)),
    }


def _path(cfg: Any, key: str) -> str | None:
    """The file of the only entry of `datasets` or `test_datasets`."""
    entries = cfg.get(key) or []
    if len(entries) > 1:
        raise ValueError(f"AMoPOPlugin takes one entry in {key}, got {len(entries)}; join the files")
    for entry in entries:
        if entry.get("type") not in (None, TYPE) or not entry.get("path"):
            raise ValueError(f"an entry of {key} must be {{path: preferences.jsonl, type: {TYPE}}}, got {dict(entry)}")
    return entries[0]["path"] if entries else None
