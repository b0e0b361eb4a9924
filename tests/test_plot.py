import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import BarContainer
from test_tables import METHODS, METRICS, curves_frame, run_step, tidy_frame

from pipeline.catalogue import FIGURES as CATALOGUE
from pipeline.steps import plot


def figures(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_every_figure_of_the_catalogue_and_the_same_bytes_twice(tmp_path):
    assert set(plot.FIGURES) == set(CATALOGUE)
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found.append(figures(run_step(plot, tmp_path / name, tidy_frame(), curves_frame())))
    names = {f"{name}.{suffix}" for name in CATALOGUE for suffix in ("svg", "png")}
    assert set(found[0]) == names
    assert found[0] == found[1]
    for name, content in found[0].items():
        assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
        assert len(content) > 5000, name
    changed = tidy_frame()
    changed["value"] *= 1.5
    (tmp_path / "three").mkdir()
    other = figures(run_step(plot, tmp_path / "three", changed, curves_frame()))
    assert all(other[f"{n}.svg"] != found[0][f"{n}.svg"] for n in CATALOGUE if n != "loss_curves")


def drawn(name, tidy=None, curves=None):
    draw = plot.FIGURES[name]
    figure = draw(
        tidy_frame() if tidy is None else tidy, curves_frame() if curves is None else curves
    )
    figure.canvas.draw()  # what only fails when it is drawn
    return figure


@pytest.fixture(autouse=True)
def closed():
    yield
    plot.plt.close("all")


@pytest.mark.parametrize("name", ["perplexity", "recovered_gap"])
def test_tasks_may_leave_policies_and_sparsities_out(name):
    """Their panels are missing; the others keep their numbers and the same places for them."""
    part = tidy_frame()
    part = part[(part["policy"] != "lambda") & (part["sparsity"] != 0.02)].assign(task="part")
    figure = drawn(name, pd.concat([tidy_frame(), part], ignore_index=True))
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert titles == ["Λ-masking, t", "H2O, t", "H2O, part"]
    assert [len(axis.get_xticks()) for axis in figure.axes if axis.get_visible()] == [3, 3, 3]
    above = figure.axes[0]
    assert all(label.get_visible() and label.get_text() for label in above.get_xticklabels())


def test_a_gap_that_does_not_exist_is_not_drawn():
    tidy = tidy_frame()
    gaps = tidy[tidy["metric"] == "recovered_gap"]
    undefined = gaps.assign(task="u", value=np.nan, low=np.nan, high=np.nan)
    figure = drawn("recovered_gap", pd.concat([tidy, undefined], ignore_index=True))
    assert {axis.get_title() for axis in figure.axes} == {"Λ-masking, t", "H2O, t"}


def test_perplexity_lines_are_the_numbers():
    figure = drawn("perplexity")
    axis = figure.axes[0]
    assert axis.get_title() == "Λ-masking, t"
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert set(lines) == {"Full cache", "Baseline", "Baseline+", "LESS (5 %)", "LESS (10 %)"}
    assert np.allclose(lines["Full cache"].get_ydata(), 10)
    assert np.allclose(lines["LESS (5 %)"].get_xdata(), [2, 5, 10]), "sorted by sparsity"
    assert np.allclose(lines["LESS (5 %)"].get_ydata(), [24, 27, 32])
    colours = [line.get_color() for line in lines.values()]
    assert len(set(colours)) == len(colours)


def test_recovered_gap_bars_are_the_numbers():
    figure = drawn("recovered_gap")
    groups = [c for c in figure.axes[0].containers if isinstance(c, BarContainer)]
    heights = {group.get_label(): [bar.get_height() for bar in group] for group in groups}
    assert len(heights) == len(METHODS)
    assert heights["LESS (5 %)"] == pytest.approx([24, 27, 32]), "sorted by sparsity"
    lefts = {round(bar.get_x(), 6) for group in groups for bar in group}
    assert len(lefts) == len(METHODS) * 3, "no bar hides another"


def test_loss_curves_are_a_line_a_layer():
    axis = drawn("loss_curves").axes[0]
    assert [line.get_ydata().tolist() for line in axis.get_lines()] == [
        pytest.approx([1, 0.8, 0.6]), pytest.approx([1, 0.6, 0.2])
    ]  # fmt: skip


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_model_has_panels_of_its_own(name):
    models = ("m1", "m2")
    figure = drawn(name, tidy_frame(models), curves_frame(models))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(set(titles)) == len(titles)
    assert sum("m1" in title for title in titles) == sum("m2" in title for title in titles) > 0
    for axis in figure.axes:
        for line in axis.get_lines():
            x = np.asarray(line.get_xdata())
            assert len(set(x)) == len(x), "a line goes through two models"


@pytest.mark.parametrize(
    ("methods", "fidelity", "trained"),
    [([("baseline", None)], True, False), (METHODS[2:], False, True), (METHODS, False, False)],
)
def test_what_was_not_measured_says_so(tmp_path, methods, fidelity, trained):
    tidy = tidy_frame(methods=methods, fidelity=fidelity)
    tidy = tidy[~tidy["metric"].isin(METRICS[2:])]
    found = figures(run_step(plot, tmp_path, tidy, curves_frame() if trained else None))
    assert set(found) == {f"{name}.{suffix}" for name in CATALOGUE for suffix in ("svg", "png")}
    missing = {name.split(".")[0] for name, text in found.items() if b"not measured" in text}
    expected = {"recovered_gap"} | (set() if fidelity else {"hellinger"})
    assert missing == expected | (set() if trained else {"loss_curves"})


def test_gaps_that_do_not_exist_are_left_out():
    tidy = tidy_frame()
    tidy.loc[tidy["metric"] == "recovered_gap", ["value", "low", "high"]] = np.nan
    drawn("recovered_gap", tidy)
    tidy.loc[tidy["metric"] == "recovered_gap", ["value", "low", "high"]] = [1.0, -np.inf, np.inf]
    drawn("recovered_gap", tidy)


def test_values_outside_their_interval_are_drawn():
    """A ratio's percentile interval need not hold its value."""
    tidy = tidy_frame()
    tidy.loc[tidy["metric"] == "recovered_gap", "low"] = tidy["value"] + 0.5
    drawn("recovered_gap", tidy)


def test_svg_text_has_no_date():
    import io

    figure = drawn("hellinger")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=plot._undated("svg"))
    assert not re.search(rb"<dc:date>", buffer.getvalue())
