"""What the axolotl example trains: a small model made from nothing and generated preference data, into one folder.

python examples/axolotl/prepare.py runs/axolotl
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amopo.data import read_records
from amopo.data.verifiable import generate_tasks, write_grouped_jsonl
from amopo.trainer.scratch import SIZES, build_model, train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=256, help="how many tasks to generate")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "preferences.jsonl"
    write_grouped_jsonl(path, generate_tasks(options.count, seed=0), seed=0)
    records = read_records(path, objectives=["helpfulness", "correctness"])
    texts = [r.text for record in records for r in record.responses]
    texts += [message["content"] for record in records for message in record.prompt]
    tokenizer = train_tokenizer(texts, vocab_size=SIZES["nano"].vocab)
    build_model("nano", tokenizer).save_pretrained(options.out / "model")
    tokenizer.save_pretrained(options.out / "model")
    print(f"{len(records)} prompts in {path}, a model in {options.out / 'model'}")


if __name__ == "__main__":
    main()
