"""What the LLaMA-Factory examples train: a small model made from nothing and preference data, into one folder.

    python examples/llamafactory/prepare.py runs/llamafactory

writes model/ (random weights, with a tokenizer) and data/: dataset_info.json, preferences.json (all scored responses of
a prompt in one row) and pairs.json (one better and one worse response, in the form of the released AMoPO data). With
`--preferences FILE` the data are yours: grouped JSONL or HelpSteer2's own rows (see docs/data.md).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from amopo.data import PreferenceRecord, Response, build_pairs, parse_scales, read_records
from amopo.data.verifiable import generate_tasks, write_grouped_jsonl
from amopo.trainer.scratch import SIZES, build_model, train_tokenizer

OBJECTIVES = ("helpfulness", "correctness")


def grouped(records: list[PreferenceRecord]) -> list[dict[str, Any]]:
    """One row per prompt."""
    return [
        {
            "id": str(record.id),
            "prompt": [dict(message) for message in record.prompt],
            "responses": [{"text": r.text, "scores": dict(r.scores)} for r in record.responses],
            "scales": {name: [scale.low, scale.high] for name, scale in record.scales.items()},
        }
        for record in records
    ]


def pairs(records: list[PreferenceRecord], objectives: list[str]) -> list[dict[str, Any]]:
    """One row per pair; scores as text, as in the released data."""

    def side(response: Response) -> dict[str, str]:
        return {"response": response.text, **{name: f"{score:g}" for name, score in response.scores.items()}}

    found, report = build_pairs(records, objectives=objectives)
    print(report)
    return [
        {
            "id": str(pair.id),
            "prompt": [dict(message) for message in pair.prompt],
            "chosen": side(pair.chosen),
            "rejected": side(pair.rejected),
        }
        for pair in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--preferences", help="a preference file instead of generated tasks")
    parser.add_argument("--objectives", default=",".join(OBJECTIVES), help="scores to take from it")
    parser.add_argument("--scales", default="", help="where the file does not declare them: a=0:4,b=1:6")
    parser.add_argument("--count", type=int, default=256, help="how many tasks to generate")
    options = parser.parse_args()

    data, objectives = options.out / "data", options.objectives.split(",")
    data.mkdir(parents=True, exist_ok=True)
    source = options.preferences or data / "tasks.jsonl"
    if options.preferences is None:
        write_grouped_jsonl(source, generate_tasks(options.count, seed=0), seed=0)
    records = read_records(source, objectives=objectives, scales=parse_scales(options.scales))
    for name, rows in (("preferences", grouped(records)), ("pairs", pairs(records, objectives))):
        (data / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    shutil.copy(Path(__file__).with_name("dataset_info.json"), data)

    texts = [r.text for record in records for r in record.responses]
    texts += [message["content"] for record in records for message in record.prompt]
    tokenizer = train_tokenizer(texts, vocab_size=SIZES["nano"].vocab)
    build_model("nano", tokenizer).save_pretrained(options.out / "model")
    tokenizer.save_pretrained(options.out / "model")
    print(f"{len(records)} prompts in {data}, a model in {options.out / 'model'}")


if __name__ == "__main__":
    main()
