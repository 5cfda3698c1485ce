"""Pictures of connectivity. Needs matplotlib (extra `notebooks` or `train`).

Every function takes the adjacency of a set of images, as `dgnet_keras.adjacency` returns it, and
returns a matplotlib `Figure`. Notebooks show it; elsewhere, save it with `figure.savefig(path)`.
What the pictures show is computed by `dgnet_keras.connectivity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras import connectivity, drawing
from dgnet_keras.connectivity import check_adjacency_batch, check_labels
from dgnet_keras.edge_statistics import are_paths, have_weights, used_nodes
from dgnet_keras.macs_figures import (
    plot_blocks_by_class,
    plot_cheap_and_dear,
    plot_dial,
    plot_macs,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "plot_adjacency_by_class",
    "plot_adjacency_by_image",
    "plot_blocks_by_class",
    "plot_cheap_and_dear",
    "plot_detections",
    "plot_dial",
    "plot_graph",
    "plot_macs",
    "plot_nearest_images",
    "plot_path_diversity",
]

MAX_PATHS = 12


def plot_adjacency_by_class(
    adjacency: dict[str, np.ndarray],
    labels: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    max_classes: int = 10,
) -> Figure:
    """Heat maps of the adjacency of each class: mean edge weight, and open rate.

    Two rows a stage, or only the second where open edges weigh 1; a column a class. Row of a heat
    map: source node; column: target node, the last one the stage's output (`out`).

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1), see
            `dgnet_keras.adjacency`.
        labels: class index of each image, int (images,) or (images, 1).
        class_names: names of the classes by index; None means the indices.
        max_classes: only the first so many classes that occur are drawn.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: if there is no adjacency to draw, or labels and adjacency differ in length.
    """
    labels = check_labels(labels, check_adjacency_batch(adjacency), class_names)
    found = np.unique(labels)
    classes = found[:max_classes]
    measures = ("mean weight", "open rate")[not have_weights(adjacency) :]
    rows = [(name, measure) for name in adjacency for measure in measures]
    figure = drawing.new_figure(1.5 + 1.3 * len(classes), 1.45 * len(rows))
    axes = figure.subplots(len(rows), len(classes), squeeze=False)
    for row, (name, measure) in zip(axes, rows, strict=True):
        values = adjacency[name] if measure == "mean weight" else adjacency[name] > 0
        means = [np.mean(values[labels == c], axis=0) for c in classes]
        top = 1.0 if measure == "open rate" else max(float(np.max(means)), 1e-6)
        colors = drawing.WEIGHT_COLORS if measure == "mean weight" else drawing.RATE_COLORS
        for axis, mean in zip(row, means, strict=True):
            image = drawing.draw_adjacency(axis, mean, top, colors)
        row[0].set_ylabel(f"{name}\n{measure}", fontsize=8)
        figure.colorbar(image, ax=row.tolist(), shrink=0.9)
    for axis, c in zip(axes[0], classes, strict=True):
        axis.set_title(drawing.name_of(class_names, c), fontsize=9)
    shown = "" if len(classes) == len(found) else f" ({len(classes)} of {len(found)} classes)"
    title = f"Connectivity by class: edge from node (row) to node (column){shown}"
    figure.suptitle(title, fontsize=10, wrap=True)
    return figure


def plot_adjacency_by_image(
    adjacency: dict[str, np.ndarray],
    images: np.ndarray | Sequence[np.ndarray],
    *,
    titles: Sequence[str] | None = None,
    max_images: int = 8,
) -> Figure:
    """Images, and under each the heat map of its own edge weights, stage by stage.

    A closed edge is crossed out. Of paths, which have no weights, the blocks are drawn instead: a
    row of boxes a stage, full where the image takes the block.

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1).
        images: pictures, uint8 (images, height, width, channels), or floats of any range (each is
            then stretched to its own darkest and brightest value).
        titles: a string for each image, or None.
        max_images: only the first so many are drawn.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: if there is no adjacency to draw, or not one image for each adjacency.
    """
    count = min(_check_images(adjacency, images), max_images)
    if are_paths(adjacency):
        return _paths_by_image(adjacency, images, titles, count)
    rows = 1 + len(adjacency)
    figure = drawing.new_figure(1.2 + 1.3 * count, 1.45 * rows)
    axes = figure.subplots(rows, count, squeeze=False)
    for k, axis in enumerate(axes[0]):
        drawing.draw_image(axis, images[k], drawing.name_of(titles, k, ""))
    for row, (name, matrices) in zip(axes[1:], adjacency.items(), strict=True):
        top = max(float(np.max(matrices[:count])), 1e-6)
        for axis, matrix in zip(row, matrices, strict=False):
            drawn = drawing.draw_adjacency(axis, matrix, top, drawing.WEIGHT_COLORS)
            drawing.cross_closed(axis, matrix)
        row[0].set_ylabel(name, fontsize=8)
        figure.colorbar(drawn, ax=row.tolist(), shrink=0.9)
    figure.suptitle("Edge weights of single images (x: closed)", fontsize=10, wrap=True)
    return figure


def _paths_by_image(adjacency, images, titles, count):
    height = 0.22 * len(adjacency)
    figure = drawing.new_figure(max(1.2 * count, 3.6), 2.0 + height)
    axes = figure.subplots(2, count, squeeze=False, height_ratios=[1.2, height])
    stages = [used_nodes(matrix[:count] > 0)[:, :-1] for matrix in adjacency.values()]
    for k, (picture, strip) in enumerate(axes.T):
        drawing.draw_image(picture, images[k], drawing.name_of(titles, k, ""))
        drawing.draw_blocks(strip, [used[k] for used in stages])
    figure.suptitle("Blocks that single images take, a row a stage", fontsize=10, wrap=True)
    return figure


def plot_graph(
    adjacency: dict[str, np.ndarray], index: int | None = None, *, title: str | None = None
) -> Figure:
    """The graph of each stage: nodes on a line, edges as arcs.

    An arc's width is the edge's weight, relative to the stage's largest. Of many images, it is
    the mean weight of those that keep it open, and the arc's opacity the share of them. Edges
    from a node to the next run straight; the others above the line, those into the output below.
    A node that none of the images uses is gray.

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1).
        index: number of the image whose graph is drawn; None draws all images' together.
        title: of the picture, or None.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: if there is no adjacency to draw.
        IndexError: if there is no such image.
    """
    images = check_adjacency_batch(adjacency)
    if index is not None and not 0 <= index < images:
        raise IndexError(f"`index` must be in [0, {images}). Received: {index}")
    chosen = slice(None) if index is None else slice(index, index + 1)
    largest = max(matrix.shape[1] for matrix in adjacency.values())
    figure = drawing.new_figure(min(1.5 + 1.0 * largest, 16), 1.9 * len(adjacency))
    axes = figure.subplots(len(adjacency), 1, squeeze=False)[:, 0]
    for axis, (name, matrices) in zip(axes, adjacency.items(), strict=True):
        drawing.draw_graph(axis, np.asarray(matrices, "float64")[chosen])
        axis.set_ylabel(name, fontsize=9)
    shown = f"all {images} images" if index is None else f"image {index}"
    figure.suptitle(title or f"Connectivity of {shown}", fontsize=10, wrap=True)
    return figure


def plot_path_diversity(
    adjacency: dict[str, np.ndarray],
    labels: ArrayLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """How often each edge is open, how its weight varies, and which paths the classes take.

    A row a stage: open rate of each edge, with its entropy written above where it is not 0; mean
    weight with the standard deviation over images, unless open edges weigh 1. Below, the share of
    each class's images on each of the most frequent paths (all stages together; paths are numbered
    by frequency).

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1).
        labels: class of each image, int (images,), or None: all images are one class.
        class_names: names of the classes by index; None means the indices.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: if there is no adjacency to draw, or not one label an image.
    """
    found = connectivity.path_diversity(adjacency, labels)
    numbers, _ = connectivity.paths(adjacency)
    labels = check_labels(labels, len(numbers), class_names)
    classes = np.unique(labels)
    edges = max(len(connectivity.edges_of(m)[0]) for m in adjacency.values())
    columns, rows = 1 + have_weights(adjacency), len(adjacency)
    width = max(7.5, min(0.21 * edges * columns + 4, 18))
    below = 1.2 + 0.22 * len(classes)
    figure = drawing.new_figure(width, 1.9 * rows + below)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.9] * rows + [below])
    for row, (name, stage) in enumerate(found["stages"].items()):
        axes = [figure.add_subplot(grid[row, k]) for k in range(columns)]
        drawing.draw_edges(axes, name, stage)
    axis = figure.add_subplot(grid[rows, :])
    image = drawing.draw_path_shares(axis, numbers, labels, class_names, MAX_PATHS)
    figure.colorbar(image, ax=axis, shrink=0.9, label="share of the class")
    text = f"{found['images']} images, {found['distinct_paths']} distinct paths"
    if len(classes) > 1:
        text += (
            f"; mutual information of path and class {found['mutual_information']:.3f} bits "
            f"({found['mutual_information_by_chance']:.3f} by chance, "
            f"{found['class_entropy']:.2f} at most)"
        )
    figure.suptitle(text, fontsize=9, wrap=True)
    return figure


def plot_nearest_images(
    adjacency: dict[str, np.ndarray],
    images: np.ndarray | Sequence[np.ndarray],
    *,
    queries: Sequence[int] | np.ndarray | None = None,
    count: int = 6,
    titles: Sequence[str] | None = None,
) -> Figure:
    """For some images, those whose edge weights are most like theirs, with the distances.

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1).
        images: pictures, see `plot_adjacency_by_image`.
        queries: numbers of the images to start from, a row each; None takes the first four.
        count: images found for each.
        titles: a string for each image, or None.

    Returns:
        A matplotlib `Figure`: in each row first the query.

    Raises:
        ValueError: if there is no adjacency to draw, or not one image for each adjacency.
        IndexError: if there is no such query.
    """
    available = _check_images(adjacency, images)
    queries = range(min(4, available)) if queries is None else queries
    found = [connectivity.nearest_images(adjacency, q, count=count) for q in queries]
    if not found:
        raise ValueError("`queries` must name at least one image. Received none.")
    columns = 1 + max(len(indices) for indices, _ in found)
    figure = drawing.new_figure(1.15 * columns, 1.4 * len(found) + 0.4)
    axes = figure.subplots(len(found), columns, squeeze=False)
    for row, query, (indices, distances) in zip(axes, queries, found, strict=True):
        for axis in row:
            axis.axis("off")
        title = drawing.name_of(titles, query, "query")
        drawing.draw_image(row[0], images[query], title, weight="bold")
        for axis, i, distance in zip(row[1:], indices, distances, strict=False):
            title = f"{drawing.name_of(titles, i, '')}\n{distance:.3f}".strip()
            drawing.draw_image(axis, images[i], title)
    figure.suptitle("Nearest images by edge weights (distance)", fontsize=10, wrap=True)
    return figure


def plot_detections(
    image: np.ndarray,
    boxes: ArrayLike,
    *,
    scores: Sequence[float] | np.ndarray | None = None,
    names: Sequence[str] | np.ndarray | None = None,
    adjacency: dict[str, np.ndarray] | None = None,
    least_score: float = 0.3,
    title: str | None = None,
) -> Figure:
    """An image with the boxes found in it and, beside it, the graphs of the path that it took.

    Args:
        image: (height, width, 3), uint8.
        boxes: (count, 4), [ymin, xmin, ymax, xmax] in pixels.
        scores: (count,), or None.
        names: what each box is said to hold, (count,), or None.
        adjacency: dict of stage name to (N + 1, N + 1) of this image, or None. Arcs are drawn
            as by `plot_graph`.
        least_score: boxes of a lower score are not drawn.
        title: of the picture, or None.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: if boxes, scores and names differ in number, or boxes do not have 4 numbers.
    """
    adjacency = adjacency or {}
    figure = drawing.new_figure(6.5 + 3.5 * bool(adjacency), max(4.5, 1.2 * len(adjacency)))
    columns = {"width_ratios": [1.8, 1]} if adjacency else {}
    grid = figure.add_gridspec(max(len(adjacency), 1), 1 + bool(adjacency), **columns)
    drawing.draw_boxes(figure.add_subplot(grid[:, 0]), image, boxes, scores, names, least_score)
    for row, (name, matrix) in enumerate(adjacency.items()):
        beside = figure.add_subplot(grid[row, 1])
        drawing.draw_graph(beside, np.asarray(matrix, "float64")[None])
        beside.set_ylabel(name, fontsize=8)
    figure.suptitle(drawing.plain(title or ""), fontsize=10, wrap=True)
    return figure


def _check_images(adjacency, images):
    count = check_adjacency_batch(adjacency)
    if len(images) != count:
        raise ValueError(
            f"Expected one image for each adjacency. Received: {len(images)} images, {count}"
        )
    return count
