"""Pictures of connectivity. Needs matplotlib (extra `notebooks` or `train`).

Every function takes the adjacency of a set of images, as `dgnet_keras.adjacency` returns it, and
returns a matplotlib `Figure`; save it with `figure.savefig(path)`. What the pictures show is
computed by `dgnet_keras.connectivity`, which this module may import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras import connectivity
from dgnet_keras.connectivity import check_adjacency, check_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHT_COLORS = "viridis"
RATE_COLORS = "Blues"
MAX_PATHS = 12


def plot_adjacency_by_class(
    adjacency: dict[str, np.ndarray],
    labels: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    max_classes: int = 10,
) -> Figure:
    """Heat maps of the adjacency of each class: mean edge weight, and open rate.

    Two rows a stage, a column a class. Row of a heat map: source node; column: target node, the
    last one the stage's output (`out`).

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
    labels = check_labels(labels, check_adjacency(adjacency), class_names)
    found = np.unique(labels)
    classes = found[:max_classes]
    rows = [(name, measure) for name in adjacency for measure in ("mean weight", "open rate")]
    figure = _figure(1.5 + 1.3 * len(classes), 1.45 * len(rows))
    axes = figure.subplots(len(rows), len(classes), squeeze=False)
    for row, (name, measure) in zip(axes, rows, strict=True):
        values = adjacency[name] if measure == "mean weight" else adjacency[name] > 0
        means = [np.mean(values[labels == c], axis=0) for c in classes]
        top = 1.0 if measure == "open rate" else max(float(np.max(means)), 1e-6)
        colors = WEIGHT_COLORS if measure == "mean weight" else RATE_COLORS
        for axis, mean in zip(row, means, strict=True):
            image = _draw_adjacency(axis, mean, top, colors)
        row[0].set_ylabel(f"{name}\n{measure}", fontsize=8)
        figure.colorbar(image, ax=row.tolist(), shrink=0.9)
    for axis, c in zip(axes[0], classes, strict=True):
        axis.set_title(_name(class_names, c), fontsize=9)
    shown = "" if len(classes) == len(found) else f" ({len(classes)} of {len(found)} classes)"
    title = f"Connectivity by class: edge from node (row) to node (column){shown}"
    figure.suptitle(title, fontsize=10)
    return figure


def plot_adjacency_by_image(
    adjacency: dict[str, np.ndarray],
    images: np.ndarray | Sequence[np.ndarray],
    *,
    titles: Sequence[str] | None = None,
    max_images: int = 8,
) -> Figure:
    """Images, and under each the heat map of its own edge weights, stage by stage.

    A closed edge is crossed out.

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
    rows = 1 + len(adjacency)
    figure = _figure(1.2 + 1.3 * count, 1.45 * rows)
    axes = figure.subplots(rows, count, squeeze=False)
    for k, axis in enumerate(axes[0]):
        _draw_image(axis, images[k], _name(titles, k, ""))
    for row, (name, matrices) in zip(axes[1:], adjacency.items(), strict=True):
        top = max(float(np.max(matrices[:count])), 1e-6)
        for axis, matrix in zip(row, matrices, strict=False):
            drawn = _draw_adjacency(axis, matrix, top, WEIGHT_COLORS)
            _cross_closed(axis, matrix)
        row[0].set_ylabel(name, fontsize=8)
        figure.colorbar(drawn, ax=row.tolist(), shrink=0.9)
    figure.suptitle("Edge weights of single images (x: closed)", fontsize=10)
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
    images = check_adjacency(adjacency)
    if index is not None and not 0 <= index < images:
        raise IndexError(f"`index` must be in [0, {images}). Received: {index}")
    chosen = slice(None) if index is None else slice(index, index + 1)
    largest = max(matrix.shape[1] for matrix in adjacency.values())
    figure = _figure(min(1.5 + 1.0 * largest, 16), 1.9 * len(adjacency))
    axes = figure.subplots(len(adjacency), 1, squeeze=False)[:, 0]
    for axis, (name, matrices) in zip(axes, adjacency.items(), strict=True):
        matrices = np.asarray(matrices, "float64")[chosen]
        _draw_graph(axis, matrices)
        axis.set_ylabel(name, fontsize=9)
    shown = f"all {images} images" if index is None else f"image {index}"
    figure.suptitle(title or f"Connectivity of {shown}", fontsize=10)
    return figure


def plot_path_diversity(
    adjacency: dict[str, np.ndarray],
    labels: ArrayLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """How often each edge is open, how its weight varies, and which paths the classes take.

    A row a stage: open rate of each edge, with its entropy written above where it is not 0; mean
    weight with the standard deviation over images. Below, the share of each class's images on each
    of the most frequent paths (all stages together; paths are numbered by frequency).

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
    numbers, distinct = connectivity.paths(adjacency)
    given = np.zeros(len(numbers), int) if labels is None else labels
    labels = check_labels(given, len(numbers), class_names)
    classes = np.unique(labels)
    edges = max(len(connectivity.edges_of(m)[0]) for m in adjacency.values())
    width, rows = max(7.5, min(0.42 * edges + 4, 18)), len(adjacency)
    below = 1.2 + 0.22 * len(classes)
    figure = _figure(width, 1.9 * rows + below)
    grid = figure.add_gridspec(rows + 1, 2, height_ratios=[1.9] * rows + [below])
    for row, (name, stage) in enumerate(found["stages"].items()):
        _draw_edges(figure.add_subplot(grid[row, 0]), figure.add_subplot(grid[row, 1]), name, stage)
    axis = figure.add_subplot(grid[rows, :])
    columns = min(MAX_PATHS, len(distinct))
    shares = (
        np.array(
            [np.bincount(numbers[labels == c], minlength=len(distinct))[:columns] for c in classes]
        )
        / np.bincount(np.searchsorted(classes, labels))[:, None]
    )
    image = axis.imshow(shares, vmin=0, vmax=1, cmap=RATE_COLORS, aspect="auto")
    axis.set_yticks(range(len(classes)), [_name(class_names, c) for c in classes], fontsize=7)
    axis.set_xticks(range(columns), range(1, columns + 1), fontsize=7)
    axis.set_xlabel(f"path, of {len(distinct)}", fontsize=8)
    figure.colorbar(image, ax=axis, shrink=0.9, label="share of the class")
    text = f"{found['images']} images, {found['distinct_paths']} distinct paths"
    if len(classes) > 1:
        text += (
            f"; mutual information of path and class {found['mutual_information']:.3f} bits "
            f"({found['mutual_information_by_chance']:.3f} by chance, "
            f"{found['class_entropy']:.2f} at most)"
        )
    figure.suptitle(text, fontsize=9)
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
    figure = _figure(1.15 * columns, 1.4 * len(found) + 0.4)
    axes = figure.subplots(len(found), columns, squeeze=False)
    for row, query, (indices, distances) in zip(axes, queries, found, strict=True):
        for axis in row:
            axis.axis("off")
        _draw_image(row[0], images[query], _name(titles, query, "query"), weight="bold")
        for axis, i, distance in zip(row[1:], indices, distances, strict=False):
            _draw_image(axis, images[i], f"{_name(titles, i, '')}\n{distance:.3f}".strip())
    figure.suptitle("Nearest images by edge weights (distance)", fontsize=10)
    return figure


def plot_macs(
    macs: ArrayLike,
    total: int,
    labels: ArrayLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Distribution of the images' own multiply-adds, over all images and by class.

    As a share of the whole graph's. A runtime that skips closed edges and unused blocks would
    compute no more than this; TensorFlow computes everything.

    Args:
        macs: multiply-adds of each image, int (images,), see `count_macs` (`per_instance`).
        total: multiply-adds of the whole graph (`macs` of `count_macs`).
        labels: class of each image, int (images,), or None.
        class_names: names of the classes by index; None means the indices.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: if there are no images, or not one label an image.
    """
    macs = np.asarray(macs, "float64")
    if macs.ndim != 1 or not len(macs):
        raise ValueError(f"`macs` must be of shape (images,). Received: {macs.shape}")
    shares = 100 * macs / total
    panels = 1 if labels is None else 2
    figure = _figure(4.5 * panels, 3.2)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    axes[0].hist(shares, bins=min(30, max(5, len(np.unique(shares)))), color="tab:blue")
    axes[0].set(ylabel="images", title=f"mean {shares.mean():.2f} % of {total:,.0f} MACs")
    if labels is not None:
        labels = check_labels(labels, len(shares), class_names)
        classes = np.unique(labels)
        axes[1].boxplot([shares[labels == c] for c in classes], orientation="horizontal", sym=".")
        names = [_name(class_names, c) for c in classes]
        axes[1].set_yticks(range(1, len(classes) + 1), names, fontsize=7)
        axes[1].invert_yaxis()
    for axis in axes:
        axis.set_xlabel("MACs of an image, % of the whole graph")
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.tick_params(axis="x", labelsize=8)
        axis.locator_params(axis="x", nbins=6)
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
    from matplotlib.patches import Rectangle

    boxes = np.reshape(boxes, (-1, 4)) if not np.size(boxes) else np.asarray(boxes)
    given = {"scores": scores, "names": names}
    counts = {name: len(values) for name, values in given.items() if values is not None}
    if boxes.ndim != 2 or boxes.shape[1] != 4 or set(counts.values()) - {len(boxes)}:
        raise ValueError(
            "`boxes` must be (count, 4), and there must be a score and a name for each. "
            f"Received: boxes of shape {boxes.shape}, {counts}"
        )
    adjacency = adjacency or {}
    figure = _figure(6.5 + 3.5 * bool(adjacency), max(4.5, 1.2 * len(adjacency)))
    columns = {"width_ratios": [1.8, 1]} if adjacency else {}
    grid = figure.add_gridspec(max(len(adjacency), 1), 1 + bool(adjacency), **columns)
    axis = figure.add_subplot(grid[:, 0])
    axis.imshow(image)
    axis.set_axis_off()
    for k, (top, left, bottom, right) in enumerate(boxes):
        if scores is not None and scores[k] < least_score:
            continue
        name = "" if names is None else _plain(str(names[k]))
        color = f"C{sum(map(ord, name)) % 10}"
        size = (right - left, bottom - top)
        axis.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=color, linewidth=2))
        score = [] if scores is None else [f"{scores[k]:.2f}"]
        text = " ".join([name] * bool(name) + score)
        at_edge = top < 0.04 * len(image)
        axis.text(
            *(left, top, text),
            fontsize=7,
            va="top" if at_edge else "bottom",
            clip_on=True,
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1, "alpha": 0.8},
        )
    for row, (name, matrix) in enumerate(adjacency.items()):
        beside = figure.add_subplot(grid[row, 1])
        _draw_graph(beside, np.asarray(matrix, "float64")[None])
        beside.set_ylabel(name, fontsize=8)
    figure.suptitle(_plain(str(title or "")), fontsize=10)
    return figure


def _figure(width, height):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _name(names, index, default=None):
    if names is None:
        return str(index) if default is None else default
    return _plain(names[index])


def _plain(text):
    """Text as it is: `$` does not start mathematics, and what is not UTF-8 becomes `?`."""
    return str(text).encode("utf-8", "replace").decode().replace("$", r"\$")


def _check_images(adjacency, images):
    count = check_adjacency(adjacency)
    if len(images) != count:
        raise ValueError(
            f"Expected one image for each adjacency. Received: {len(images)} images, {count}"
        )
    return count


def _draw_image(axis, image, title, **font):
    image = np.asarray(image)
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = (image - low) / max(high - low, 1e-12)
    limits = {"vmin": 0, "vmax": 255 if image.dtype == np.uint8 else 1}
    axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", **limits)
    axis.set_xticks([])
    axis.set_yticks([])
    if title:
        axis.set_title(title, fontsize=8, **font)


def _possible(size):
    return np.triu(np.ones((size, size), bool), k=1)


def _draw_adjacency(axis, matrix, top, colors):
    """Draws one adjacency; entries below the diagonal cannot be edges and stay gray."""
    size = len(matrix)
    axis.set_facecolor("lightgray")
    shown = np.where(_possible(size), matrix, np.nan)[:-1, 1:]
    image = axis.imshow(shown, vmin=0, vmax=top, cmap=colors)
    axis.set_xticks(range(size - 1), [*map(str, range(1, size - 1)), "out"], fontsize=6)
    axis.set_yticks(range(size - 1), range(size - 1), fontsize=6)
    return image


def _cross_closed(axis, matrix):
    closed = _possible(len(matrix)) & (np.asarray(matrix) <= 0)
    sources, targets = np.nonzero(closed)
    axis.plot(targets - 1, sources, "x", color="white", markersize=4)


def _draw_graph(axis, matrices):
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    size = matrices.shape[1]
    is_open = matrices > 0
    rate = is_open.mean(axis=0)
    weight = matrices.sum(axis=0) / np.maximum(is_open.sum(axis=0), 1)
    top = max(weight.max(), 1e-12)
    for j, i in zip(*connectivity.edges_of(matrices), strict=True):
        if not rate[j, i]:
            continue
        # A quadratic curve rises to half the height of its control point.
        side = 0 if i == j + 1 else (-1 if i == size - 1 else 1)
        height = 2 * side * (i - j) / (size - 1)
        curve = Path([(j, 0), ((j + i) / 2, height), (i, 0)], [Path.MOVETO] + [Path.CURVE3] * 2)
        axis.add_patch(
            PathPatch(
                curve,
                fill=False,
                linewidth=0.4 + 5 * weight[j, i] / top,
                alpha=0.12 + 0.75 * rate[j, i],
                edgecolor="tab:blue",
                capstyle="butt",
                zorder=1,
            )
        )
    used = np.atleast_1d(connectivity.used_nodes(is_open).any(axis=0))
    for node, name in enumerate([*map(str, range(size - 1)), "out"]):
        color = "white" if used[node] else "0.8"
        axis.plot(node, 0, "o", markersize=17, markerfacecolor=color, markeredgecolor="black")
        axis.annotate(name, (node, 0), ha="center", va="center", fontsize=8, zorder=5)
    axis.set(xlim=(-0.4, size - 0.6), ylim=(-1.15, 1.15), xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw_edges(left, right, name, stage):
    sources, targets = connectivity.edges_of(stage["open_rate"])
    size = len(stage["open_rate"])
    ends = [f"{j}→{'out' if i == size - 1 else i}" for j, i in zip(sources, targets, strict=True)]
    positions = range(len(ends))
    rates = stage["open_rate"][sources, targets]
    left.bar(positions, rates, color="tab:blue")
    for k, bits in enumerate(stage["edge_entropy"][sources, targets]):
        if bits > 0.005:
            left.annotate(f"{bits:.2f}", (k, rates[k]), ha="center", va="bottom", fontsize=6)
    left.set(ylim=(0, 1.15), title=f"{name}: open rate (entropy, bits)")
    right.bar(
        positions,
        stage["mean_weight"][sources, targets],
        yerr=stage["weight_std"][sources, targets],
        color="tab:green",
        ecolor="0.3",
    )
    right.set_title(f"{name}: mean weight ± std over images")
    for axis in (left, right):
        axis.title.set_fontsize(8)
        axis.tick_params(labelsize=6)
        axis.set_xticks(positions, ends, rotation=90 if len(ends) > 10 else 0)
