import io

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from dgnet_keras import visualize


@pytest.fixture
def adjacency(rng):
    matrices = np.triu(rng.uniform(0, 1, (6, 4, 4)), 1).astype("float32")
    return {"stage1": matrices * (matrices > 0.3), "stage2": np.triu(np.ones((6, 3, 3)), 1)}


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (6, 8, 8, 3), "uint8")


def heat_maps(figure):
    return [axis.images[0].get_array() for axis in figure.axes if axis.images]


def test_heat_maps_show_mean_weight_and_open_rate_of_each_class():
    adjacency = np.zeros((4, 3, 3), "float32")
    adjacency[0, 0, 1] = adjacency[1, 0, 1] = 0.6
    adjacency[2, 0, 1] = 0.8
    figure = visualize.plot_adjacency_by_class(
        {"stage1": adjacency}, [0, 0, 1, 1], class_names=["cat", "dog"]
    )
    maps = heat_maps(figure)
    weights, rates = maps[:2], maps[2:4]
    np.testing.assert_allclose([m[0, 0] for m in weights], [0.6, 0.4], rtol=1e-6)
    np.testing.assert_allclose([m[0, 0] for m in rates], [1.0, 0.5])
    assert np.ma.is_masked(np.ma.masked_invalid(weights[0])[1, 0]), "1 -> 1 is not an edge"
    assert [axis.get_title() for axis in figure.axes[:2]] == ["cat", "dog"]


def test_each_image_has_its_own_heat_maps(adjacency, pictures):
    figure = visualize.plot_adjacency_by_image(adjacency, pictures, titles=list("abcdef"))
    maps = heat_maps(figure)
    np.testing.assert_array_equal(maps[2], pictures[2])
    np.testing.assert_allclose(maps[6 + 2][0], adjacency["stage1"][2, 0, 1:])
    assert figure.axes[2].get_title() == "c"


@pytest.fixture
def paths():
    """Of 6 images; the last four pass block 2 of stage 1 by."""
    edges = np.zeros((6, 4, 4), "float32")
    edges[:, 0, 1] = edges[:2, 1, 2] = edges[:2, 2, 3] = edges[2:, 1, 3] = 1
    return {"stage1": edges, "stage2": np.eye(3, k=1)[None].repeat(6, axis=0)}


def test_of_paths_each_image_has_its_blocks(paths, pictures):
    figure = visualize.plot_adjacency_by_image(paths, pictures, titles=list("abcdef"))
    assert figure.axes[2].get_title() == "c"
    strips = [axis.patches for axis in figure.axes[6:]]
    full = [[bar.get_facecolor()[3] > 0 for bar in strip] for strip in strips]
    assert full == [[True] * 5] * 2 + [[True, True, False, True, True]] * 4


def test_of_paths_no_weights_are_drawn(paths):
    maps = heat_maps(visualize.plot_adjacency_by_class(paths, [0] * 3 + [1] * 3))
    np.testing.assert_allclose([m[1, 1] for m in maps[:2]], [2 / 3, 0])  # open, 1 -> 2
    titles = [axis.get_title() for axis in visualize.plot_path_diversity(paths).axes]
    assert [title for title in titles if "weight" in title] == []
    # Edges of weight 1 that are no paths are edges.
    both = {**paths, "stage2": np.triu(np.ones((6, 3, 3), "float32"), 1)}
    titles = [axis.get_title() for axis in visualize.plot_path_diversity(both).axes]
    assert [title for title in titles if "weight" in title] == []
    figure = visualize.plot_adjacency_by_image(both, np.zeros((6, 8, 8, 3), "uint8"))
    assert len(heat_maps(figure)) == 6 + 2 * 6


def test_an_arc_is_as_wide_as_its_weight_and_closed_edges_have_none():
    matrices = np.zeros((2, 4, 4), "float32")
    matrices[:, 0, 1], matrices[:, 1, 2], matrices[0, 2, 3] = 0.8, 0.4, 0.4
    arcs = visualize.plot_graph({"stage1": matrices}).axes[0].patches
    widths = [arc.get_linewidth() for arc in arcs]
    assert len(arcs) == 3
    assert widths[0] == max(widths)
    assert widths[1] == pytest.approx(widths[2])
    assert arcs[2].get_alpha() < arcs[1].get_alpha(), "open for one image of two"
    assert len(visualize.plot_graph({"stage1": matrices}, 1).axes[0].patches) == 2


@pytest.mark.parametrize("blocks", [1, 2, 5, 16])
def test_every_arc_is_inside_the_picture(blocks):
    matrices = np.triu(np.full((2, blocks + 1, blocks + 1), 0.5), 1)
    axis = visualize.plot_graph({"stage1": matrices}).axes[0]
    (low, high), (left, right) = axis.get_ylim(), axis.get_xlim()
    for arc in axis.patches:
        box = arc.get_path().get_extents()
        assert low < box.y0 <= box.y1 < high
        assert left < box.x0 <= box.x1 < right


def test_names_are_drawn_as_they_are(adjacency, pictures, tmp_path):
    names = [r"$\foo$", "a$b$c", "caf\udce9", "d", "e", "f"]
    figure = visualize.plot_adjacency_by_image(adjacency, pictures, titles=names)
    figure.savefig(tmp_path / "names.png")


def test_path_diversity_shows_the_share_of_each_path(adjacency):
    adjacency["stage1"] = np.zeros((6, 4, 4))
    adjacency["stage1"][:, 0, 1] = adjacency["stage1"][:, 1, 3] = 0.5
    adjacency["stage1"][:3, 0, 3] = 0.5
    figure = visualize.plot_path_diversity(
        adjacency, [0, 0, 1, 1, 1, 1], class_names=["cat", "dog"]
    )
    (shares,) = heat_maps(figure)
    np.testing.assert_allclose(sorted(shares[0]), [0, 1])
    np.testing.assert_allclose(sorted(shares[1]), [0.25, 0.75])
    assert "2 distinct paths" in figure.get_suptitle()
    assert "by chance" not in visualize.plot_path_diversity(adjacency).get_suptitle()


def test_nearest_images_follow_the_query(adjacency, pictures):
    adjacency["stage1"][3] = adjacency["stage1"][0]
    figure = visualize.plot_nearest_images(adjacency, pictures, queries=[0, 3], count=2)
    maps = heat_maps(figure)
    np.testing.assert_array_equal(maps[0], pictures[0])
    np.testing.assert_array_equal(maps[1], pictures[3])
    assert "0.000" in figure.axes[1].get_title()


def test_macs_are_a_share_of_the_whole_graph():
    figure = visualize.plot_macs([80, 90, 90], 100, [0, 1, 1], class_names=["cat", "dog"])
    assert figure.axes[0].get_title() == "mean 86.67 % of 100 MACs"
    bars = [bar for bar in figure.axes[0].patches if bar.get_height()]
    assert [bar.get_height() for bar in bars] == [1, 2]


def test_cheap_images_come_first_each_with_the_blocks_on_its_way(pictures):
    edges = np.zeros((6, 4, 4), "float32")
    edges[:, 0, 1] = edges[:, 1, 3] = 1  # past block 2
    edges[4, 1, 2] = edges[4, 2, 3] = 1
    figure = visualize.plot_cheap_and_dear(
        pictures, [0.5, 0.4, 0.3, 0.2, 1, 0.6], adjacency={"stage1": edges}, count=2
    )
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["20%", "30%", "100%", "60%"]
    np.testing.assert_array_equal(heat_maps(figure)[2], pictures[4])
    strips = [axis.patches for axis in figure.axes if axis.patches]
    full = [[bar.get_facecolor()[3] > 0 for bar in strip] for strip in strips]
    assert full == [[True, True, False]] * 2 + [[True, True, True], [True, True, False]]


def test_of_images_that_compute_the_same_not_only_the_first_class_is_shown():
    labels = np.repeat(np.arange(10), 10)  # as folders come
    pictures = np.zeros((100, 4, 4, 3), "uint8")
    figure = visualize.plot_cheap_and_dear(pictures, np.full(100, 0.5), labels)
    classes = [axis.get_title().partition(":")[0] for axis in figure.axes if axis.get_title()]
    assert len(set(classes[:8])) > 2
    assert len(set(classes[8:])) > 2


def test_blocks_by_class_are_the_shares_that_take_them():
    edges = np.zeros((4, 4, 4), "float32")
    edges[:, 0, 1] = edges[:, 1, 3] = 1  # past block 2
    edges[3] = 0
    edges[3, 0, 3] = 1  # block 0 alone
    names = ["cat", "dog", "emu"]
    figure = visualize.plot_blocks_by_class({"stage1": edges}, [0, 0, 2, 2], class_names=names)
    np.testing.assert_array_equal(heat_maps(figure)[0], [[100, 100, 0], [100, 50, 0]])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["cat", "emu"]


def test_the_dial_goes_by_share():
    figure = visualize.plot_dial([0.6, 0.4, 0.5], [0.9, 0.7, 0.85], chosen=(0.5, 0.85))
    line, chosen = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[0.4, 70], [0.5, 85], [0.6, 90]])
    np.testing.assert_allclose(chosen.get_xydata(), [[0.5, 85]])
    with pytest.raises(ValueError, match=r"one accuracy a share.*\(2,\) and \(1,\)"):
        visualize.plot_dial([0.5, 0.6], [0.9])


def test_equal_images_are_a_bar_on_a_scale_of_ten_points():
    figure = visualize.plot_macs([5000, 5000, 5001], 5001)
    low, high = figure.axes[0].get_xlim()
    assert high - low == pytest.approx(10, abs=0.1)


def test_notebooks_show_figures_without_pyplot(adjacency, pictures):
    """IPython itself knows nothing of matplotlib, until pyplot is used in it."""
    for figure in (
        visualize.plot_adjacency_by_class(adjacency, [0, 1] * 3),
        visualize.plot_detections(pictures[0], []),
    ):
        shown, _ = DisplayFormatter().format(figure)
        with Image.open(io.BytesIO(shown["image/png"])) as png:
            picture = np.asarray(png.convert("L"))
        assert min(picture.shape) > 150
        assert np.ptp(picture) > 100
        assert shown["text/plain"].startswith("<Figure size ")


def seen(figure):
    """The figure as it is drawn: uint8 (height, width, 4), the first row at the top."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.mark.parametrize(
    "plot",
    [
        lambda adjacency, _: visualize.plot_adjacency_by_class(adjacency, [0, 1] * 3),
        lambda adjacency, gray: visualize.plot_adjacency_by_image(adjacency, gray),
        lambda adjacency, gray: visualize.plot_adjacency_by_image(adjacency, gray, max_images=1),
        lambda adjacency, gray: visualize.plot_adjacency_by_image(
            {"stage1": adjacency["stage2"] * np.eye(3, k=1)}, gray
        ),
        lambda adjacency, _: visualize.plot_graph(adjacency, 0, title="one"),
        lambda adjacency, _: visualize.plot_path_diversity(adjacency, [0, 1] * 3),
        lambda adjacency, gray: visualize.plot_nearest_images(
            adjacency, gray, titles=list("abcdef")
        ),
        lambda *_: visualize.plot_macs([1, 2, 3], 4, [0, 0, 1]),
        lambda adjacency, _: visualize.plot_blocks_by_class(adjacency, [0, 1] * 3),
        lambda *_: visualize.plot_dial([0.4, 0.5], [0.8, 0.9], static_accuracy=0.95),
        lambda adjacency, gray: visualize.plot_cheap_and_dear(
            gray, [0.5, 1, 0.2, 0.3, 0.4, 0.6], adjacency=adjacency, count=2
        ),
    ],
)
def test_every_panel_shows_something_and_nothing_is_cut_off(adjacency, pictures, plot):
    figure = plot(adjacency, pictures[..., :1] / 255)
    pixels = seen(figure)
    height = len(pixels)
    for axis in figure.axes:
        left, bottom, right, top = map(round, axis.get_window_extent().extents)
        panel = pixels[height - top + 2 : height - bottom - 2, left + 2 : right - 2]
        assert len(np.unique(panel.reshape(-1, 4), axis=0)) > 1, axis.get_title()
    for border in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (border == 255).all()


def test_bad_input_is_named(adjacency, pictures):
    with pytest.raises(ValueError, match="no adjacency"):
        visualize.plot_adjacency_by_class({}, [0])
    with pytest.raises(ValueError, match="2 labels, 3 images"):
        visualize.plot_adjacency_by_class({"stage1": np.zeros((3, 3, 3))}, [0, 1])
    with pytest.raises(ValueError, match="2 images, 6"):
        visualize.plot_adjacency_by_image(adjacency, pictures[:2])
    with pytest.raises(ValueError, match=r"\[0, 1\).*0 to 1"):
        visualize.plot_path_diversity(adjacency, [0, 1] * 3, class_names=["cat"])
    with pytest.raises(IndexError, match=r"\[0, 6\).*-1"):
        visualize.plot_graph(adjacency, -1)
    with pytest.raises(ValueError, match=r"\(images,\).*\(0,\)"):
        visualize.plot_macs([], 100)
    with pytest.raises(ValueError, match=r"adjacency of 2 images\. Received: of 6"):
        visualize.plot_cheap_and_dear(pictures[:2], [1, 1], adjacency=adjacency)


def test_detections_are_drawn_where_they_are_with_the_path_beside():
    matrix = np.zeros((3, 3), "float32")
    matrix[0, 1] = matrix[1, 2] = 0.5
    image = np.zeros((40, 60, 3), "uint8")
    figure = visualize.plot_detections(
        image,
        [[5, 10, 25, 30], [0, 0, 40, 60], [1, 1, 2, 2]],
        scores=[0.9, 0.8, 0.1],
        names=["cat", "dog", "cat"],
        adjacency={"stage1": matrix},
        title="a$b_$.png",  # text, not mathematics
    )
    figure.savefig(io.BytesIO())
    picture, graph = figure.axes
    boxes = [(*box.get_xy(), box.get_width(), box.get_height()) for box in picture.patches]
    assert boxes == [(10, 5, 20, 20), (0, 0, 60, 40)]
    assert [text.get_text() for text in picture.texts] == ["cat 0.90", "dog 0.80"]
    assert len(graph.patches) == 2
    assert len(visualize.plot_detections(image, []).axes) == 1


@pytest.mark.parametrize(
    "given", [{"scores": [0.5]}, {"names": ["a", "b", "c"]}, {"boxes": [[1, 2, 3], [4, 5, 6]]}]
)
def test_detections_that_do_not_fit_together_are_an_error(given):
    given = {"boxes": [[0, 0, 4, 4], [1, 1, 2, 2]], **given}
    with pytest.raises(ValueError, match=r"`boxes` must be \(count, 4\)"):
        visualize.plot_detections(np.zeros((8, 8, 3), "uint8"), **given)
