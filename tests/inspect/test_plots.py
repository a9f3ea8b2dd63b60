import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure

import fnn
from fnn import plots

X, LABELS = fnn.data.clusters(jax.random.key(0), 30, classes=3)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def corner(points):
    """Class 0 left of 1, else class 1 below 2 and class 2 above."""
    x, y = points.T
    return 50 * jnp.stack([1 - x, 0.1 * (2 - y), 0.1 * (y - 2)], -1)


class Found(NamedTuple):
    """The fields of what `fnn.search.lr_find` returns that are drawn."""

    rates: np.ndarray
    losses: np.ndarray
    median: np.ndarray
    diverged: np.ndarray
    suggestion: float | None


def found(losses, suggestion=0.01):
    losses = np.asarray(losses)
    rates = np.geomspace(1e-4, 0.1, losses.shape[1])
    return Found(rates, losses, np.median(losses, 0), losses > losses[:, :1], suggestion)


def drawn():
    """One of everything, on a figure of its own."""
    return {
        "learning_curves": plots.learning_curves({"training": [2.0, 1.0]}),
        "lr_find": plots.lr_find(found([[3.0, 2.0, 1.0, 9.0]])),
        "decision_boundary": plots.decision_boundary(corner, X, LABELS, resolution=20),
        "activation": plots.activation(fnn.tanh),
        "gradient_flow": plots.gradient_flow({"layer_0": 1.0, "layer_1": 2.0}),
        "filters": plots.filters(np.ones((3, 3, 1, 8))),
        "confusion_matrix": plots.confusion_matrix(np.eye(3)),
        "loss_surface": plots.loss_surface(lambda x, y: x**2 + y**2, (-1, 1), (-1, 1)),
    }


def test_every_picture_is_labelled_and_saved_without_pyplot(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    for name, ax in drawn().items():
        assert isinstance(ax, Axes)
        assert ax.get_xlabel(), name
        assert ax.get_ylabel() or name == "filters"
        plots.save(ax, tmp_path / "new" / f"{name}.png")
        assert (tmp_path / "new" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_go_where_they_are_told(tmp_path):
    figure, panels = plots.subplots(2, 3, width=2, height=1)
    assert isinstance(figure, Figure)
    assert len(panels) == 6
    np.testing.assert_allclose(figure.get_size_inches(), [6, 2])
    x0, x1 = (panels[i].get_subplotspec().colspan.start for i in (0, 4))
    assert (x0, x1) == (0, 1)  # row by row
    assert plots.activation(fnn.relu, panels[4]) is panels[4]
    assert [len(ax.lines) > 0 for ax in panels] == [i == 4 for i in range(6)]
    plots.save(figure, str(tmp_path / "a.svg"))
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_learning_curves():
    history = jnp.array([[3.0, 1.0], [1.0, 0.0], [jnp.nan, 1.0]])
    ax = plots.learning_curves({"training": history, "validation": [2.5, 1.5, 1.0]}, ylabel="x (m)")
    first, second = ax.lines
    np.testing.assert_array_equal(first.get_xydata(), [[1, 2], [2, 0.5], [3, np.nan]])
    np.testing.assert_array_equal(second.get_xydata(), [[1, 2.5], [2, 1.5], [3, 1]])
    assert legend(ax) == ["training", "validation"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "x (m)")
    assert [line.get_color() for line in ax.lines] == [*plots.COLOURS[:2]]


def test_lr_find_draws_seeds_median_divergence_and_suggestion():
    losses = [[3.0, 2.0, 1.0, 9.0], [2.0, 1.0, 0.5, np.inf], [4.0, 3.0, 2.0, 1.0]]
    ax = plots.lr_find(found(losses), ylabel="x (m)")
    *seeds, median, suggestion = ax.lines
    assert len(seeds) == 3
    np.testing.assert_array_equal(seeds[1].get_ydata(), [2, 1, 0.5, np.nan])
    np.testing.assert_allclose(median.get_xdata(), [1e-4, 1e-3, 1e-2, 0.1])
    np.testing.assert_allclose(median.get_ydata(), [3, 2, 1, 9])
    assert set(suggestion.get_xdata()) == {0.01}
    assert legend(ax) == ["median of 3 seeds", "suggestion: 0.01"]
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_ylabel()) == ("log", "log", "x (m)")
    low, high = ax.get_ylim()
    assert low < 0.5 < 4 < high < 9  # what diverges does not set the scale
    (shade,) = ax.patches  # around the last rate, half way on the log scale to its neighbour
    np.testing.assert_allclose(shade.get_x(), 10**-1.5, rtol=1e-6)
    ax.figure.canvas.draw()


def test_lr_find_of_nothing_finite_and_of_losses_below_zero():
    ax = plots.lr_find(found([[np.inf] * 4, [np.nan] * 4], None))
    assert len(ax.lines) == 3
    ax.figure.canvas.draw()
    below = plots.lr_find(found([[1.0, -1.0, -2.0, 3.0]]))
    assert below.get_yscale() == "linear"
    assert below.get_ylim()[0] < -2 < 1 < below.get_ylim()[1] < 3
    flat = plots.lr_find(found([[0.0, 0.0]]))
    flat.figure.canvas.draw()


def test_decision_boundary_draws_regions_lines_and_rows():
    x = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 4.0], [0.0, 4.0]])
    ax = plots.decision_boundary(corner, x, [0, 1, 2, 0], resolution=61)
    np.testing.assert_allclose([*ax.get_xlim(), *ax.get_ylim()], [-0.2, 2.2, -0.4, 4.4])
    image = np.asarray(ax.images[0].get_array())
    assert image.shape == (61, 61, 3)
    ours = 1 + 0.45 * (np.array([[0, 0x72, 0xB2], [0xD5, 0x5E, 0], [0, 0x9E, 0x73]]) / 255 - 1)
    corners = [image[0, 0], image[0, -1], image[-1, -1], image[-1, 0]]
    np.testing.assert_allclose(corners, ours[[0, 1, 2, 0]], atol=1e-3)
    lines = [c.get_paths()[0].vertices for c in ax.collections if isinstance(c, ContourSet)]
    assert len(lines) == 3
    assert ((lines[0][:, 0] > 0.75) & (lines[0][:, 0] < 1.01)).all()  # 1 - 0.1 |y - 2|
    assert lines[0][:, 1].min() < -0.3
    assert lines[0][:, 1].max() > 4.3
    points = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    np.testing.assert_array_equal(np.concatenate(points), x[[0, 3, 1, 2]])


def test_a_binary_logit_has_one_line_where_it_is_zero():
    logit = {"w": jnp.array([[2.0], [0.0]]), "b": jnp.array([-1.0])}
    ax = plots.decision_boundary(lambda p: fnn.dense(logit, p)[:, 0], X, LABELS % 2)
    line, *points = ax.collections
    np.testing.assert_allclose(line.get_paths()[0].vertices[:, 0], 0.5, atol=1e-6)
    assert len(points) == 2
    centre = np.asarray(ax.images[0].get_array())[100, (np.linspace(*ax.get_xlim(), 200) > 0.5)]
    assert (centre[:-1].sum(-1) >= centre[1:].sum(-1)).all()  # darker, the more certain
    same = plots.decision_boundary(lambda p: jnp.ones(len(p)), X, LABELS)
    assert len(same.collections) == 3  # the rows, and no line


def test_points_have_the_dtype_of_the_rows_even_where_all_are_one():
    seen = []
    x = np.ones((2, 2), np.float16)
    ax = plots.decision_boundary(lambda p: seen.append(p) or corner(p), x, [0, 1], resolution=5)
    assert seen[0].dtype == jnp.float16
    assert seen[0].shape == (25, 2)
    assert ax.get_xlim() == (0, 2)


def test_activation_and_its_derivative():
    ax = plots.activation(fnn.sigmoid, name="sigmoid", limits=(-2, 2))
    x, y = ax.lines[0].get_data()
    slope = ax.lines[1].get_ydata()
    exact = 1 / (1 + np.exp(-np.float64(x)))
    np.testing.assert_allclose(x[[0, -1]], [-2, 2])
    np.testing.assert_allclose(y, exact, rtol=1e-6)
    np.testing.assert_allclose(slope, exact * (1 - exact), rtol=1e-5)
    assert legend(ax) == ["value", "derivative"]
    assert ax.get_title() == "sigmoid"


def test_gradient_flow_of_one_step_and_of_a_history():
    ax = plots.gradient_flow({"a": jnp.float32(0.1), "b": 10.0}, label="now")
    plots.gradient_flow({"a": [[1, 2], [3, 9]], "b": [[1, 1], [1, 1]]}, ax, label="history")
    now, history = ax.lines
    np.testing.assert_allclose(now.get_xydata(), [[0, 0.1], [1, 10]])
    np.testing.assert_allclose(history.get_ydata(), [2.5, 1])
    band = ax.collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (1, 9)
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b"]
    assert legend(ax) == ["now", "history"]
    assert now.get_color() != history.get_color()


def test_a_dead_layer_has_no_place_on_a_log_axis_but_stops_no_picture():
    ax = plots.gradient_flow({"a": 0.0, "b": 1.0, "c": jnp.nan})
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b", "c"]


def test_filters_of_one_channel_and_of_three():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 2, 1, 5))
    ax = plots.filters(w, columns=3)
    image = np.asarray(ax.images[0].get_array())
    assert image.shape == (2 * 5, 3 * 4)  # two rows of three, a margin of one
    np.testing.assert_array_equal(image[1:4, 1:3], w[:, :, 0, 0])
    np.testing.assert_array_equal(image[6:9, 5:7], w[:, :, 0, 4])
    assert ax.images[0].norm.vmin == -ax.images[0].norm.vmax == -np.abs(w).max()
    assert ax.get_xlabel() == "5 kernels of 3 x 2"
    colours = rng.normal(size=(3, 3, 3, 2))
    image = np.asarray(plots.filters(colours).images[0].get_array())
    assert image.shape == (5, 10, 3)
    np.testing.assert_allclose(image[1:4, 6:9], colours[..., 1] / np.abs(colours).max() / 2 + 0.5)
    plots.filters(np.zeros((2, 2, 1, 1))).figure.canvas.draw()


def test_confusion_matrix():
    counts = jnp.array([[8, 2, 0], [1, 1, 2], [0, 0, 0]])
    ax = plots.confusion_matrix(counts, names=["cat", "dog", "cow"])
    expected = [[80, 20, 0], [25, 25, 50], [0, 0, 0]]
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    cells = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in ax.texts}
    assert cells == {(i, j): str(n) for (i, j), n in np.ndenumerate(np.asarray(counts))}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("answer", "label")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["cat", "dog", "cow"]


def test_loss_surface_and_paths():
    paths = {"a": jnp.array([[0.0, 0.0], [1.0, 1.0]]), "b": np.array([[0.5, 0.5]])}
    ax = plots.loss_surface(lambda x, y: x**2 - y**2, (-1, 1), (-2, 2), paths=paths)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), paths["a"])
    assert ax.lines[0].get_linewidth() > ax.lines[1].get_linewidth()
    ends = [c.get_offsets()[0] for c in ax.collections[-2:]]
    np.testing.assert_array_equal(ends, [[1, 1], [0.5, 0.5]])
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-2, 2))
    assert legend(ax) == ["a", "b"]
    flat = plots.loss_surface(lambda x, y: 0 * x, (0, 1), (0, 1))
    flat.figure.canvas.draw()
    assert not flat.collections
    holes = plots.loss_surface(lambda x, y: np.where(x > y, np.inf, x), (0, 1), (0, 1))
    holes.figure.canvas.draw()
    assert holes.collections
    nowhere = plots.loss_surface(lambda x, y: np.nan * x, (0, 1), (0, 1))
    assert not nowhere.collections


ERRORS = [
    (lambda: plots.learning_curves({}), "learning_curves: curves are empty"),
    (
        lambda: plots.learning_curves({"a": [[[1.0]]]}),
        r"learning_curves: 'a' has shape \(1, 1, 1\)",
    ),
    (lambda: plots.learning_curves({"a": []}), r"expected \[epochs\] or \[epochs, steps\], not em"),
    (
        lambda: plots.lr_find(found([[1.0, 2.0]])._replace(losses=np.ones(2))),
        r"lr_find: losses has shape \(2,\), expected \[seeds, rates\]",
    ),
    (
        lambda: plots.decision_boundary(corner, X[0], LABELS),
        r"decision_boundary: x has shape \(2,\)",
    ),
    (lambda: plots.decision_boundary(corner, np.ones((4, 3)), [0] * 4), r"x has shape \(4, 3\)"),
    (lambda: plots.decision_boundary(corner, X, LABELS[1:]), r"labels has shape \(29,\).*rows 30"),
    (
        lambda: plots.decision_boundary(lambda p: p[:5], X, LABELS, resolution=3),
        r"decision_boundary: predict made \(5, 2\) of 9 points, expected \(9, classes\) or \(9,\)",
    ),
    (
        lambda: plots.decision_boundary(lambda p: p[:, :1], X, LABELS, resolution=3),
        r"predict made \(9, 1\) of 9 points",
    ),
    (lambda: plots.gradient_flow({}), "gradient_flow: norms are empty"),
    (lambda: plots.filters(np.ones((3, 3, 4, 8))), r"filters: w has 4 input channels \(axis 2\)"),
    (lambda: plots.filters(np.ones((3, 8))), r"filters: w has shape \(3, 8\), expected \[height,"),
    (
        lambda: plots.confusion_matrix(np.ones((2, 3))),
        r"confusion_matrix: counts have shape \(2, 3",
    ),
    (lambda: plots.confusion_matrix(np.eye(3), names=["a"]), r"\(3, 3\), expected .* for 1 names"),
    (
        lambda: plots.loss_surface(lambda x, y: 0.0, (0, 1), (0, 1)),
        r"loss_surface: loss makes \(\)",
    ),
    (
        lambda: plots.loss_surface(jnp.hypot, (0, 1), (0, 1), paths={"p": np.ones((5, 3))}),
        r"loss_surface: path 'p' has shape \(5, 3\), expected \[steps, 2\]",
    ),
]


@pytest.mark.parametrize(("draw", "message"), ERRORS)
def test_errors_say_what_came_and_what_was_expected(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_errors_of_type():
    with pytest.raises(TypeError, match=r"learning_curves: curves are list, expected a dict"):
        plots.learning_curves([1.0, 2.0])
    with pytest.raises(ValueError, match=r"activation: fn makes \(\) of \(401,\)"):
        plots.activation(jnp.sum)
