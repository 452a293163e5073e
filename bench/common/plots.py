"""Bars of head times in multiples of the floor, one picture per device and question."""

from __future__ import annotations

from pathlib import Path

from bench.common.tables import floor_of, grouped

_COLOURS = {"ours": "#1f6f8b", "peer": "#b0bec5", "bound": "#e0c068", "scale": "#e3e7ea", "floor": "#444444"}


def plot_head(data: dict, path: Path) -> bool:
    """Write an SVG; False if there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = [
        (key, [r for r in records if "stats" in r], floor_of(records))
        for key, records in grouped(data["records"], "shape", "inputs").items()
        if key[1] == "peaked"
    ]
    groups = [group for group in groups if group[1] and group[2]]
    if not groups:
        return False
    heights = [0.3 * len(records) + 0.9 for _, records, _ in groups]
    # a fixed salt and no date: the same results give the same bytes
    with plt.rc_context({"svg.hashsalt": "amopo", "font.size": 9}):
        figure, axes = plt.subplots(
            len(groups), 1, figsize=(8, sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
        )
        for axis, ((shape, _), records, (floor, seconds)) in zip(axes[:, 0], groups, strict=True):
            records = sorted(records, key=lambda r: -r["stats"]["median"])
            ratios = [r["stats"]["median"] / seconds for r in records]
            bars = axis.barh(
                [r["key"]["provider"] for r in records], ratios, color=[_COLOURS[r["info"]["role"]] for r in records]
            )
            axis.bar_label(bars, [f"{ratio:.2f}x" for ratio in ratios], padding=3)
            axis.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
            axis.set_title(f"{shape}: time in multiples of {floor}", loc="left")
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(x=0.12)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
    return True
