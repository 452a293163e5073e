"""`amopo demo`: the whole way on a CPU, in a few minutes.

Generated tasks with responses of mixed quality, scored by program on four objectives that conflict; a small model made
from nothing learns to imitate them, all of them; AMoPO then teaches it which are better. Before and after, it answers
held-out prompts, plain and with each objective's template, and the same programs score what it wrote. The table shows
what rose and what fell; `metrics.json`, `picture.png` and `report.html` in the output directory hold everything.

It is the job of `amopo train` with settings that suit a small model; `--quick` does less of each part. With `--seeds`
or `--study` it is a study instead: see `amopo.cli.study`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amopo.cli import study
from amopo.cli.console import Console, quiet_libraries
from amopo.cli.inputs import read_inputs
from amopo.cli.models import need
from amopo.cli.options import Option, Settings
from amopo.cli.report import report_after_run
from amopo.data.tokenize import PLAIN
from amopo.data.verifiable import OBJECTIVES, SCALES, write_splits
from amopo.report.changes import Change, Section, preference_sections

DESCRIPTION = "The whole way on generated tasks: data, a small model from nothing, AMoPO, before and after."


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much of each part."""

    train_prompts: int = 6000
    eval_prompts: int = 240
    imitation_epochs: float = 1.3
    max_steps: int = 50


FULL = Plan()
QUICK = Plan(train_prompts=1200, eval_prompts=60, imitation_epochs=1.0, max_steps=12)

MODEL = "scratch:tiny"
TEMPLATE = "brief"
MAX_NEW_TOKENS = 48
# Found by trying, on seed 0: a beta of 5 raises the drawn responses less and costs more under the templates.
TRAINING = {
    "learning_rate": 5e-5,
    "beta": 2.0,
    "weights": "gaussian",
    # Rows attend within themselves, but a CPU computes attention over the whole row: short rows are faster.
    "tokens_per_batch": 768,
    "gradient_accumulation_steps": 8,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "save_strategy": "no",
    "logging_steps": 0.05,
}


def options() -> list[Option]:
    need("transformers", "hf")
    return [
        Option("quick", bool, "under a minute, with less of everything", default=False),
        Option("out", str, "where the model, metrics.json and picture.png go", default="runs/demo", metavar="DIR"),
        Option("seed", int, "seed of the tasks, the model and the training", default=0),
        Option("seeds", int | None, "a study: AMoPO, SimPO and a placebo, with the seeds 1 to N", default=None),
        Option("study", str | None, f"which study: {', '.join(study.STUDIES)}", default=None),
        Option("data", str | None, "for --study summeval: summaries with ratings", default=None, metavar="FILE"),
    ]


def run(settings: Settings) -> None:
    if study.wants_study(settings):
        study.run(settings)
        return
    from amopo.trainer.config import AMoPOConfig

    console = Console(quiet=settings.quiet)
    plan = QUICK if settings.quick else FULL
    quiet_libraries(settings)
    args = AMoPOConfig(
        output_dir=settings.out,
        objectives=list(OBJECTIVES),
        max_steps=plan.max_steps,
        seed=settings.seed,
        use_cpu=True,
        report_to="none",
        **TRAINING,
    )
    args.disable_tqdm = True
    out = Path(settings.out)
    with console.stage("data"), console.busy("writing and reading tasks"):
        inputs = _make_inputs(out / "data", plan, settings.seed)
    for line in inputs.lines():
        console.say(line)
    from amopo.cli.job import Imitation, Job, run_job, write_metrics

    job = Job(
        command="demo",
        model=MODEL,
        inputs=inputs,
        args=args,
        template=TEMPLATE,
        imitation=Imitation(epochs=plan.imitation_epochs, tokens_per_batch=1024, learning_rate=3e-3),
        measure=lambda model, tokenizer: _measure(model, tokenizer, inputs, console, settings.seed),
    )
    metrics = run_job(job, console)
    metrics["plan"] = dataclasses.asdict(plan)
    sections = summarize(metrics)
    metrics["summary"] = [dataclasses.asdict(section) for section in sections]
    write_metrics(out, metrics)
    _report(metrics, sections, out, console)


def _make_inputs(folder: Path, plan: Plan, seed: int) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    paths = write_splits(folder, {"train": plan.train_prompts, "eval": plan.eval_prompts}, seed=seed)
    return read_inputs(str(paths["train"]), eval_data=str(paths["eval"]), objectives=OBJECTIVES).in_memory()


def _measure(model: Any, tokenizer: Any, inputs: Any, console: Console, seed: int) -> dict[str, Any]:
    """Scores of generated responses: drawn as the model draws them, and the likeliest ones for the plain prompt."""
    from amopo.evaluation.tasks import score_generations

    common = {
        "objectives": OBJECTIVES,
        "scales": SCALES,
        "template": TEMPLATE,
        "max_new_tokens": MAX_NEW_TOKENS,
        "seed": seed,
    }
    records = inputs.evaluation.records
    with console.bar("generation") as bar:
        drawn = score_generations(model, tokenizer, records, temperature=1.0, on_batch=bar.update, **common)
    with console.busy("generation of the likeliest"):
        likeliest = score_generations(model, tokenizer, records, temperature=0.0, variants=[PLAIN], **common)
    examples = [
        {"prompt": record.prompt[-1]["content"], "response": text, "scores": dict(scores)}
        for record, text, scores in list(zip(records, drawn.responses[PLAIN], drawn.scores[PLAIN], strict=True))[:10]
    ]
    return {
        "responses": len(records) * len(drawn.scores),
        "drawn": drawn.summary(),
        "likeliest": likeliest.summary(),
        "examples": examples,
    }


def summarize(metrics: Mapping[str, Any]) -> list[Section]:
    """The tables of the demo, from its metrics."""
    before, after = metrics["generation"]["before"], metrics["generation"]["after"]

    def change(kind: str, variant: str, name: str, shown: str | None = None) -> Change:
        old, new = before[kind][variant][name], after[kind][variant][name]
        return Change(shown or name, old["mean"], new["mean"], old["error"], new["error"])

    columns = (*OBJECTIVES, "mean")
    preferences = preference_sections(metrics["preferences"]["before"], metrics["preferences"]["after"], OBJECTIVES)
    return [
        Section("drawn responses, plain prompt (0 to 4)", [change("drawn", PLAIN, name) for name in columns]),
        Section("likeliest responses, plain prompt", [change("likeliest", PLAIN, name) for name in columns]),
        Section(
            "asked for the best in one objective: that score", [change("drawn", name, name) for name in OBJECTIVES]
        ),
        Section(
            "asked for the best in one objective: mean score",
            [change("drawn", name, "mean", shown=name) for name in OBJECTIVES],
        ),
        *preferences,
    ]


def _report(metrics: Mapping[str, Any], sections: list[Section], out: Path, console: Console) -> None:
    from amopo.report.picture import draw, margin_curves
    from amopo.report.table import show

    console.say()
    if not console.quiet:
        show(sections)
    if importlib.util.find_spec("matplotlib") is None:
        console.say("no picture: it needs matplotlib, pip install 'amopo[plot]'")
    else:
        title = f"amopo demo: {metrics['model']['parameters'] / 1e6:.1f}M parameters, {len(OBJECTIVES)} objectives"
        curves = margin_curves(metrics["log_history"], OBJECTIVES)
        path = draw(out / "picture.png", sections[0], curves, title=title, limits=(0, 4))
        console.say(f"picture: {path}")
    report_after_run(out, console)
    console.say(f"everything: {out / 'metrics.json'}; the model: {out}")
