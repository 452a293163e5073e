"""Scores of an objective that the data lack, from a judge model behind an OpenAI-compatible endpoint.

    rubric.py    what the judge is told about the objective and its scale
    prompt.py    one answer to grade as chat messages, fenced off; its content key
    answer.py    the judge's reply as a score on the scale, or why it is none
    endpoint.py  one HTTP request, and what each failure means
    retry.py     waiting and trying again
    journal.py   every reply on disk before the next is asked for
    source.py    records from a preference file, as rows of the grouped form
    plan.py      what is to be asked, and what is settled
    runner.py    the open questions, each asked once, several at a time
    output.py    the same records with the new scores

Nothing here imports more than the standard library and the data room.
"""

from amopo.data.annotate.endpoint import Endpoint
from amopo.data.annotate.errors import AnnotationStopped
from amopo.data.annotate.journal import Journal
from amopo.data.annotate.output import write_scored
from amopo.data.annotate.plan import Plan, Policy, failures, make_plan, open_questions
from amopo.data.annotate.prompt import Judge
from amopo.data.annotate.retry import Clock, Retry
from amopo.data.annotate.rubric import read_rubric, rubric_for
from amopo.data.annotate.runner import Runner, Summary
from amopo.data.annotate.source import Source

__all__ = [
    "AnnotationStopped",
    "Clock",
    "Endpoint",
    "Journal",
    "Judge",
    "Plan",
    "Policy",
    "Retry",
    "Runner",
    "Source",
    "Summary",
    "failures",
    "make_plan",
    "open_questions",
    "read_rubric",
    "rubric_for",
    "write_scored",
]
