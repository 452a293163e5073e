"""Kernels of `amopo`: per-token log-probs of a linear head, per-sequence statistics, the multi-objective loss.

Knows nothing of preferences, trainers or models; needs torch alone.
"""

from amopo_kernels.linear_logprobs import linear_logprobs
from amopo_kernels.segments import SequenceStats, sequence_stats
from amopo_kernels.workspace import workspace_bytes

__all__ = ["SequenceStats", "linear_logprobs", "sequence_stats", "workspace_bytes"]
