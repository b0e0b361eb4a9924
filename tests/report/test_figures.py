import re

import numpy as np
import pandas as pd
import pytest
import torch
from frames import METHODS, METRICS, curves_frame, run_step, tidy_frame
from matplotlib.container import BarContainer

from pipeline.report import figures as plot
from pipeline.report.attention_maps import Maps
from pipeline.report.contents import FIGURES as CATALOGUE
from pipeline.report.metrics import STEP_PARTS
from pipeline.report.style import panels, plt, save, series
from pipeline.report.tidy import COLUMNS
from pipeline.steps import plot as plot_step
from pipeline.storage.files import save_table
from pipeline.storage.tensors import save_tensors

HEADS = [(3, 1), (5, 0), (5, 2)]
TOKENS = 12


def attention():
    """Attention maps of three heads: full, and under two policies with and without LESS."""
    maps = {}
    for layer, head in HEADS:
        full = np.tril(np.ones((TOKENS, TOKENS))) + np.eye(TOKENS) * layer
        full /= full.sum(1, keepdims=True)
        maps[f"l{layer}.h{head}.full"] = full
        for policy, window in (("h2o", 3), ("lambda", 2)):
            sparse = np.triu(full, -window)
            maps[f"l{layer}.h{head}.{policy}"] = sparse
            maps[f"l{layer}.h{head}.{policy}+less"] = (full + sparse) / 2
    return maps


HEADER = {"heads": [list(pair) for pair in HEADS], "policies": ["h2o", "lambda"],
          "method": "less", "budget": 4,
          "document": "d", "tokens": 4 * TOKENS}  # fmt: skip


def spectrum():
    rows = [
        {"layer": 0, "head": head, "kind": kind, "index": index, "kept": 50,
         "value": scale * (head + 1) * 2.0**-index}
        for head in range(3) for index in range(6)
        for kind, scale in (("full", 1), ("residual", 0.25), ("recovered", 0.1))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def study(name, settings, metrics, methods=METHODS):
    """Rows of a study under H2O at 5 %, and the full cache's."""
    rows = []
    for setting in settings:
        for place, (method, trained) in enumerate([("full", None), *methods]):
            policy = None if method == "full" else "h2o"
            for metric in metrics:
                value = 10.0 * place + setting
                rows.append({"model": "m_1", "task": "t", "policy": policy, "method": method,
                             "sparsity": 0.05 if policy else None, "train_sparsity": trained,
                             "setting": setting, "metric": metric, "value": value,
                             "low": value - 1, "high": value + 1, "n": 5})  # fmt: skip
    run = {"experiment": "e", "config": "c", "commit": "d", "seed": 0, "study": name}
    return pd.DataFrame(rows).assign(budget=4, **run).reindex(columns=COLUMNS)


def speeds():
    """Rows of a latency study; the full cache runs out of memory at the largest batch."""
    rows = []
    parts = [f"step_ms.{part}" for part in STEP_PARTS]
    for task in ("256+64x1", "256+64x4", "960+64x1"):
        for place, method in enumerate(("full", "baseline_plus", "less")):
            full = method == "full"
            for metric in ("latency_s", "throughput", "peak_memory_bytes", *parts):
                value = np.nan if full and task.endswith("x4") else 3.0 + place
                rows.append({"model": "m_1", "task": task, "policy": None if full else "h2o",
                             "method": method, "sparsity": None if full else 0.05,
                             "train_sparsity": 0.05 if method == "less" else None,
                             "metric": metric, "value": value, "low": value, "high": value,
                             "n": 3})  # fmt: skip
    run = {"experiment": "e", "config": "c", "commit": "d", "seed": 0, "study": "grid"}
    return pd.DataFrame(rows).assign(budget=4, **run).reindex(columns=COLUMNS)


def everything():
    """A tidy table with all that figures show; the grid's R is 8."""
    grid = tidy_frame()
    grid.loc[grid["method"] == "baseline_plus", "budget"] += 4
    kernels = study("kernel_size", [2, 16], ["word_perplexity"], METHODS[2:3])
    kernels = kernels[kernels["method"] == "less"]
    prompts = study("prompt_length", [256, 512], ["rouge1", "rougeL"])
    return pd.concat([grid, kernels, prompts, speeds()], ignore_index=True)


def figures(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def plotted(folder, tidy=None):
    folder.mkdir()
    tensors = {name: torch.tensor(values).half() for name, values in attention().items()}
    save_tensors(folder / "m_1.safetensors", tensors, "attention maps", **HEADER)
    save_table(folder / "m_1.spectrum.parquet", spectrum())
    more = ["--maps", str(folder / "m_1.safetensors")]
    more += ["--spectra", str(folder / "m_1.spectrum.parquet")]
    tidy = everything() if tidy is None else tidy
    return figures(run_step(plot_step, folder, tidy, curves_frame(), *more))


def test_every_figure_of_the_catalogue_and_the_same_bytes_twice(tmp_path):
    assert list(plot.FIGURES) == list(CATALOGUE)
    one, two = plotted(tmp_path / "one"), plotted(tmp_path / "two")
    assert set(one) == {f"{name}.{suffix}" for name in CATALOGUE for suffix in ("svg", "png")}
    assert one == two
    for name, content in one.items():
        assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
        assert len(content) > 5000, name
        assert b"Not measured" not in content, name
    changed = everything()
    changed["value"] *= 1.5
    other = plotted(tmp_path / "three", changed)
    same = {name for name in CATALOGUE if other[f"{name}.svg"] == one[f"{name}.svg"]}
    assert same == {"loss_curves", "figure1", "figure3", "figure9", "figure10", "figure11"}


def drawn(name, tidy=None, curves=None, **more):
    measured = plot.Measured(
        tidy_frame() if tidy is None else tidy,
        curves_frame() if curves is None else curves,
        **more,
    )
    figure = plot.drawn(name, measured)
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


def images(figure):
    return [np.asarray(axis.get_images()[0].get_array()) for axis in figure.axes if axis.images]


@pytest.mark.parametrize(
    ("name", "policy", "heads"),
    [("figure1", "h2o", HEADS[:1]), ("figure9", "h2o", HEADS[1:2]), ("figure10", "h2o", HEADS[2:]),
     ("figure11", "lambda", HEADS)],
)  # fmt: skip
def test_attention_maps_side_by_side(name, policy, heads):
    found = Maps("m_1", attention(), HEADER)
    figure = drawn(name, maps=[found])
    shown = images(figure)
    assert len(shown) == 3 * len(heads)
    for place, (layer, head) in enumerate(heads):
        kinds = ("full", policy, f"{policy}+less")
        for image, kind in zip(shown[3 * place : 3 * place + 3], kinds, strict=True):
            np.testing.assert_allclose(image, found.maps[f"l{layer}.h{head}.{kind}"], atol=1e-4)
        label = figure.axes[3 * place].get_ylabel()
        assert f"layer {layer}, head {head}" in label
    assert figure.axes[0].get_images()[0].get_extent() == [0, 48, 48, 0], "in tokens, not blocks"
    future = figure.axes[0].get_images()[0].get_alpha()
    assert (future == np.tril(np.ones_like(future))).all(), "the future is not drawn"


def test_policies_without_maps_say_so():
    found = Maps("m_1", attention(), HEADER | {"policies": ["h2o"]})
    assert not images(drawn("figure11", maps=[found]))


def test_spectrum_is_the_median_of_heads():
    left, right = drawn("figure3", spectra=spectrum().assign(model="m_1")).axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in left.get_lines()}
    full = [2 * 2.0**-index for index in range(6)]
    assert lines["full attention output"] == pytest.approx(full)
    assert lines["residual: full less top-50"] == pytest.approx([x / 4 for x in full])
    (recovered,) = right.get_lines()
    assert recovered.get_ydata().tolist() == pytest.approx([x / 10 for x in full])


def test_prompt_lengths():
    figure = drawn("figure8", everything())
    assert [axis.get_ylabel() for axis in figure.axes] == ["Rouge-1", "Rouge-L"]
    assert figure.axes[0].get_title() == "H2O, t, 5 %, Rouge-1"
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert next(iter(lines)) == "Full cache"
    assert len(lines) == 1 + len(METHODS)
    assert lines["Full cache"].get_xdata().tolist() == [256, 512]
    assert lines["LESS (5 %)"].get_ydata().tolist() == [30 + 256, 30 + 512]


def test_kernel_sizes_with_the_grids_own():
    (axis,) = drawn("figure7", everything()).axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert set(lines) == {"LESS (5 %)", "Baseline+"}
    assert lines["LESS (5 %)"].get_xdata().tolist() == [2, 8, 16]
    assert lines["LESS (5 %)"].get_ydata().tolist() == [12, 27, 26], "27 is the grid's"
    assert set(lines["Baseline+"].get_ydata()) == {26}
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["2", "8", "16"]


def test_who_runs_out_of_memory_has_a_cross():
    (axis,) = drawn("throughput", speeds()).axes
    crosses = [line for line in axis.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[4]]
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines["LESS (5 %)"].get_ydata()) == [5, 5]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "4"]


def test_parts_of_a_step_are_stacked():
    figure = drawn("step_parts", speeds())
    assert [axis.get_title() for axis in figure.axes] == [
        "H2O, 256+64x1, 5 %", "H2O, 256+64x4, 5 %", "H2O, 960+64x1, 5 %"
    ]  # fmt: skip
    tops = {bar.get_x(): 0.0 for bar in figure.axes[0].patches}
    for bar in figure.axes[0].patches:
        assert bar.get_y() == tops[bar.get_x()]
        tops[bar.get_x()] += bar.get_height()
    assert [tops[x] for x in sorted(tops)] == [15, 20, 25]


def test_panels_that_share_an_axis_hide_no_line():
    tidy = tidy_frame()
    tidy.loc[(tidy["metric"] == "hellinger") & (tidy["policy"] == "h2o"), "value"] = 0.9
    for axis in drawn("figure6", tidy).axes:
        assert axis.get_ylim()[0] == 0
        assert axis.get_ylim()[1] > 0.9


GRID = ("figure6", "perplexity", "recovered_gap", "loss_curves")


@pytest.mark.parametrize("name", GRID)
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
def test_what_was_not_measured_says_so(methods, fidelity, trained):
    tidy = tidy_frame(methods=methods, fidelity=fidelity)
    tidy = tidy[~tidy["metric"].isin(METRICS[2:])]
    curves = curves_frame() if trained else curves_frame().head(0)
    said = {name: [text.get_text() for text in drawn(name, tidy, curves).texts]
            for name in CATALOGUE}  # fmt: skip
    missing = {name for name, texts in said.items() if any("Not measured" in x for x in texts)}
    expected = {"recovered_gap", "throughput", "latency", "memory", "step_parts"}
    expected |= set() if fidelity else {"figure6"}
    expected |= {f"figure{number}" for number in (1, 3, 7, 8, 9, 10, 11)}
    assert missing == expected | (set() if trained else {"loss_curves"})
    assert said["figure1"] == [
        "Not measured in this experiment; its configuration would need maps."
    ]


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


def test_files_have_no_date(tmp_path):
    save(drawn("figure6"), tmp_path, "figure6")
    assert not re.search(rb"<dc:date>", (tmp_path / "figure6.svg").read_bytes())
    assert b"Software" not in (tmp_path / "figure6.png").read_bytes()


def test_a_train_sparsity_has_one_shade_in_all_panels():
    trained = [("h2o", 0.02), ("h2o", 0.05), ("lambda", 0.05)]
    rows = pd.DataFrame(
        {"model": "m", "task": "t", "policy": policy, "method": "less", "train_sparsity": sparsity,
         "sparsity": 0.1}
        for policy, sparsity in trained
    )  # fmt: skip
    figure, found = panels(rows, "task")
    h2o, masked = ({label: colour for label, colour, _ in series(part)} for _, part in found)
    assert masked["LESS (5 %)"] == h2o["LESS (5 %)"] != h2o["LESS (2 %)"]
    plt.close(figure)
