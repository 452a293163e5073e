"""A running mean for curves.

`smooth(series)` is the mean over a window of logged points around each point, about an eighth of the run wide and cut
off at both ends, so that it does not lag as an exponential mean does. Points that are not finite are left out of the
means and leave a gap. Series of fewer than `SHORTEST` points stay as they are.
"""

from __future__ import annotations

import math

from amopo.report.run import Series

SHORTEST = 8
SHARE = 8


def reach(count: int) -> int:
    """Points on either side that a mean takes in."""
    return 0 if count < SHORTEST else max(1, round(count / SHARE / 2))


def smooth(series: Series) -> Series:
    count, side = len(series.values), reach(len(series.values))
    values = []
    for at, value in enumerate(series.values):
        near = [v for v in series.values[max(0, at - side) : min(count, at + side + 1)] if math.isfinite(v)]
        values.append(sum(near) / len(near) if math.isfinite(value) else math.nan)
    return Series(series.steps, values)
