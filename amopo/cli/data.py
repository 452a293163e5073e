"""`amopo data`: what can be done with a preference file before training on it.

A subcommand is a module with `DESCRIPTION`, `options()` and `run(settings)`, as a command is, or with `main(argv)`.
"""

from __future__ import annotations

DESCRIPTION = "Preference data, before training on it."

# subcommand -> (module, one line for the overview)
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "inspect": ("amopo.cli.data_inspect", "counts, scales, lengths, what sharing saves, ties and conflicts"),
    "convert": ("amopo.cli.data_convert", "write the same data in another form"),
    "annotate": ("amopo.cli.annotate", "scores of an objective that is missing, from a judge model"),
    "split": ("amopo.cli.data_split", "hold out prompts: one file to train on, one to evaluate on"),
}
