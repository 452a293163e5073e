"""What is drawn is what was logged, and it can be told apart without colour."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from amopo.report.run import Series, load_runs
from amopo.report.smoothing import reach, smooth
from tests.report.run_files import OBJECTIVES, metrics, rows, with_scores, write_run

figure_module = pytest.importorskip("matplotlib.figure")

from amopo.report.figures import alpha, bars, build_figures, logps, margins, pairs, pareto, speed  # noqa: E402
from amopo.report.figures.panel import save, style  # noqa: E402


def drawn(panel):
    axes = figure_module.Figure().subplots()
    return axes, panel.draw(axes)


def curves(axes):
    """The lines with data of their own; the zero line has none."""
    return [line for line in axes.lines if len(line.get_xdata()) > 2]


@pytest.fixture
def one(tmp_path):
    return load_runs([write_run(tmp_path / "one")])


@pytest.fixture
def two(tmp_path):
    found = metrics(log_history=rows(10, shift=0.5))
    return load_runs([write_run(tmp_path / "one"), write_run(tmp_path / "two", found)])


def test_a_running_mean_takes_in_its_neighbours():
    generator = random.Random(0)
    values = [generator.gauss(0, 1) for _ in range(40)]
    side = reach(40)
    assert side == 2
    found = smooth(Series(list(range(40)), values)).values
    for at in range(40):
        near = values[max(0, at - side) : at + side + 1]
        assert found[at] == pytest.approx(sum(near) / len(near))


def test_a_running_mean_skips_gaps_and_leaves_short_runs_alone():
    values = [float(at) for at in range(20)]
    values[10] = math.nan
    found = smooth(Series(list(range(20)), values)).values
    assert math.isnan(found[10]) and found[9] == pytest.approx((8 + 9) / 2) and found[5] == 5.0
    assert smooth(Series([1, 2, 3], [5.0, 1.0, 9.0])).values == [5.0, 1.0, 9.0]


def test_margins_show_raw_and_smoothed_values_and_the_held_out_ones(one):
    figure = margins.build(one)
    assert [panel.title for panel in figure.panels] == [*OBJECTIVES, "mean over objectives"]
    axes, legend = drawn(figure.panels[1])
    logged = one[0].series("rewards/margins/brevity")
    raw, strong = curves(axes)
    assert list(raw.get_ydata()) == logged.values and raw.get_alpha() < 0.5
    assert list(strong.get_ydata()) == smooth(logged).values
    held_out = next(line for line in axes.lines if line.get_markerfacecolor() == "white")
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([0], [0.25])
    assert [text for _, text in legend] == ["training pairs", "held-out pairs"]
    assert "0.25 at step 2" in figure.panels[1].alt or "at step 24" in figure.panels[1].alt


def test_runs_on_top_of_each_other_differ_without_colour(two):
    axes, legend = drawn(margins.build(two).panels[0])
    assert [text for _, text in legend] == ["one", "two"]
    assert len({(handle.get_marker(), handle.get_linestyle()) for handle, _ in legend}) == 2


def test_no_two_of_many_lines_look_alike():
    looks = [(style(at)["marker"], str(style(at)["linestyle"])) for at in range(30)]
    assert len(set(looks)) == 30


def test_there_is_a_panel_for_every_pair_of_objectives(one, two):
    figure = pairs.build(one)
    assert len(figure.panels) == 3
    axes, legend = drawn(figure.panels[0])
    assert [text for _, text in legend] == ["correctness", "brevity"]
    strong = [line for line in curves(axes) if line.get_alpha() is None]
    for line, name in zip(strong, ("correctness", "brevity"), strict=True):
        assert list(line.get_ydata()) == smooth(one[0].series(f"rewards/margins/{name}")).values
    axes, legend = drawn(pairs.build(two).panels[0])
    assert len({(line.get_marker(), line.get_linestyle()) for line in curves(axes)}) == 4
    assert [text for _, text in legend] == ["correctness", "brevity", "one", "two"]


def test_stacked_weights_fill_the_height_and_carry_their_spread(one):
    stacked, weights, spread = alpha.build(one).panels
    axes, legend = drawn(stacked)
    bands = [handle for handle, _ in legend][::-1]
    tops = [max(path.vertices[:, 1].max() for path in band.get_paths()) for band in bands]
    assert tops == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert len({band.get_hatch() for band in bands}) == 3
    lengths = set()
    for container in axes.containers:
        for segment in container.lines[2][0].get_segments():
            lengths.add(round(float(segment[1][1] - segment[0][1]), 6))
    assert lengths == {0.1, 0.2, 0.3}  # twice each objective's deviation
    axes, _ = drawn(spread)
    assert sorted(line.get_ydata()[0] for line in curves(axes)) == pytest.approx([0.05, 0.1, 0.15])
    axes, _ = drawn(weights)
    assert [line.get_ydata()[0] for line in curves(axes)] == pytest.approx([1 / 3] * 3)


def test_chosen_and_rejected_stand_in_one_panel(one):
    figure = logps.build(one)
    axes, legend = drawn(figure.panels[0])
    assert [text for _, text in legend] == ["chosen", "rejected"]
    strong = [line for line in curves(axes) if line.get_alpha() is None]
    for line, side in zip(strong, ("chosen", "rejected"), strict=True):
        assert list(line.get_ydata()) == smooth(one[0].series(f"logps/{side}/correctness")).values
    chosen, rejected = strong
    assert chosen.get_linestyle() != rejected.get_linestyle() and rejected.get_markerfacecolor() == "white"
    for handle, line in zip((handle for handle, _ in legend), strong, strict=True):
        assert (handle.get_linestyle(), handle.get_marker()) == (line.get_linestyle(), line.get_marker())


def test_bars_share_their_scale_over_runs_and_differ_by_hatching(two):
    figure = bars.build(two)
    assert len(figure.panels) == 4  # accuracy and margin, of two runs
    limits = set()
    for panel in figure.panels[:2]:
        axes, _ = drawn(panel)
        assert sorted({patch.get_height() for patch in axes.patches}) == [0.25, 0.75]
        assert {patch.get_hatch() for patch in axes.patches} == {"////", ""}
        limits.add(axes.get_ylim())
    assert len(limits) == 1


def test_pareto_points_are_the_scores_before_and_after(tmp_path):
    ends = {"correctness": (1.0, 2.0), "brevity": (3.0, 2.5)}
    runs = load_runs([write_run(tmp_path / "one", with_scores(metrics(list(ends)), ends))])
    [panel] = pareto.build(runs).panels
    axes, _ = drawn(panel)
    points = {(*line.get_xdata(), *line.get_ydata()) for line in axes.lines if line.get_markersize() == 8}
    assert points == {(1.0, 3.0), (2.0, 2.5)}
    assert panel.alt == (
        "generated score of correctness (across) and brevity (up). one: from 1.00, 3.00 to 2.00, 2.50."
    )


def test_without_scores_the_held_out_margins_are_compared(one):
    figure = pareto.build(one)
    assert len(figure.panels) == 3 and all("held-out margin" in panel.alt for panel in figure.panels)


def test_the_front_is_what_no_other_point_beats():
    generator = random.Random(3)
    for _ in range(50):
        points = [(generator.randrange(6), generator.randrange(6)) for _ in range(generator.randint(1, 12))]

        def beaten(point, points=points):
            return any(o != point and o[0] >= point[0] and o[1] >= point[1] for o in points)

        assert pareto.front(points) == sorted({point for point in points if not beaten(point)})


def test_throughput_and_memory_are_drawn_from_zero(one):
    figure = speed.build(one)
    assert [panel.title for panel in figure.panels][:3] == [
        "tokens per second",
        "tokens per second, written out",
        "peak memory",
    ]
    axes, _ = drawn(figure.panels[2])
    assert axes.get_ylim()[0] == 0 and set(curves(axes)[0].get_ydata()) == {1.5}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_points_are_drawn_too(tmp_path, count):
    runs = load_runs([write_run(tmp_path / "one", metrics(log_history=rows(count)))])
    for figure in build_figures(runs):
        for panel in figure.panels:
            drawn(panel)


def test_a_metric_that_is_never_finite_is_absent(tmp_path):
    logged = rows(4)
    for row in logged:
        row["tokens_per_second"] = "nan"
        row["amopo/alpha/tone"] = "nan"
    runs = load_runs([write_run(tmp_path / "one", metrics(log_history=logged))])
    assert "one: no tokens per second was logged" in speed.build(runs).absent
    assert "tone" not in alpha.build(runs).panels[0].alt


def test_names_are_drawn_as_they_stand(tmp_path):
    """No TeX, no name that a legend would swallow, no warning for a font that lacks a letter."""
    names = ["_hidden", "$\\frac{1}{0$", "名前", "a" * 300, "x\x1b[31m\ny"]
    runs = load_runs([write_run(tmp_path / "one", metrics(names))])
    figure = pairs.build(runs)
    saved = [save(panel, tmp_path, f"p{at}") for at, panel in enumerate(figure.panels)]
    assert any(one.without_glyph for one in saved) and not saved[0].without_glyph
    _, legend = drawn(figure.panels[0])
    assert [text for _, text in legend] == ["hidden", "$\\frac{1}{0$"]
    for one, other in itertools.pairwise(figure.panels):
        assert one.title != other.title or one.key != other.key
