"""Tasks that programs can score on four conflicting objectives."""

from amopo.data.verifiable.files import grouped_rows, task_from_record, write_grouped_jsonl, write_splits
from amopo.data.verifiable.responses import graded_responses
from amopo.data.verifiable.scoring import OBJECTIVES, SCALES, score_response
from amopo.data.verifiable.tasks import Task, generate_splits, generate_tasks

__all__ = [
    "OBJECTIVES",
    "SCALES",
    "Task",
    "generate_splits",
    "generate_tasks",
    "graded_responses",
    "grouped_rows",
    "score_response",
    "task_from_record",
    "write_grouped_jsonl",
    "write_splits",
]
