"""What the pictures of `dgnet_keras.visualize` are made of: figures, and what is drawn on axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras.edge_statistics import edges_of, used_nodes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from dgnet_keras.figure import Figure

WEIGHT_COLORS = "viridis"
RATE_COLORS = "Blues"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, which notebooks show and no window does."""
    from dgnet_keras.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def name_of(
    names: Sequence[str] | np.ndarray | None, index: int, default: str | None = None
) -> str:
    """The name with this index; without names the default, or the index itself."""
    if names is None:
        return str(index) if default is None else default
    return plain(names[index])


def plain(text: object) -> str:
    """Text as it is: `$` does not start mathematics, and what is not UTF-8 becomes `?`."""
    return str(text).encode("utf-8", "replace").decode().replace("$", r"\$")


def draw_image(axis: Axes, image: ArrayLike, title: str, **font: Any) -> None:
    """Draws a picture, (height, width, channels), uint8 or floats of any range."""
    image = np.asarray(image)
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = (image - low) / max(high - low, 1e-12)
    shown = image[..., 0] if image.shape[-1] == 1 else image
    axis.imshow(shown, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
    axis.set_xticks([])
    axis.set_yticks([])
    if title:
        axis.set_title(title, fontsize=8, **font)


def draw_blocks(axis: Axes, stages: Sequence[np.ndarray]) -> None:
    """Draws a row of boxes for each stage, bool (blocks,): full where a block is used."""
    for row, used in enumerate(stages):
        colors = [f"C{row % 10}" if full else "none" for full in used]
        axis.bar(
            range(len(used)), 0.7, 0.8, row, color=colors, edgecolor=f"C{row % 10}", linewidth=0.4
        )
    axis.set(xlim=(-0.5, max(map(len, stages)) - 0.5), ylim=(len(stages), -0.3))
    axis.axis("off")


def _possible(size):
    return np.triu(np.ones((size, size), bool), k=1)


def draw_adjacency(axis: Axes, matrix: np.ndarray, top: float, colors: str) -> AxesImage:
    """Draws one adjacency, (N + 1, N + 1), as a heat map from 0 to `top`.

    Entries below the diagonal cannot be edges and stay gray.
    """
    size = len(matrix)
    axis.set_facecolor("lightgray")
    shown = np.where(_possible(size), matrix, np.nan)[:-1, 1:]
    image = axis.imshow(shown, vmin=0, vmax=top, cmap=colors)
    names = [*map(str, range(size - 1)), "out"]
    axis.set_xticks(range(size - 1), names[1:], fontsize=6)
    axis.set_yticks(range(size - 1), names[:-1], fontsize=6)
    return image


def cross_closed(axis: Axes, matrix: ArrayLike) -> None:
    """Crosses out the closed edges of an adjacency that `draw_adjacency` has drawn."""
    matrix = np.asarray(matrix)
    sources, targets = np.nonzero(_possible(len(matrix)) & (matrix <= 0))
    axis.plot(targets - 1, sources, "x", color="white", markersize=4)


def draw_graph(axis: Axes, matrices: np.ndarray) -> None:
    """Draws the graph of a stage, of images' adjacency (images, N + 1, N + 1); see `plot_graph`."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    size = matrices.shape[1]
    is_open = matrices > 0
    rate = is_open.mean(axis=0)
    weight = matrices.sum(axis=0) / np.maximum(is_open.sum(axis=0), 1)
    top = max(weight.max(), 1e-12)
    for j, i in zip(*edges_of(matrices), strict=True):
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
    used = np.atleast_1d(used_nodes(is_open).any(axis=0))
    for node, name in enumerate([*map(str, range(size - 1)), "out"]):
        color = "white" if used[node] else "0.8"
        axis.plot(node, 0, "o", markersize=17, markerfacecolor=color, markeredgecolor="black")
        axis.annotate(name, (node, 0), ha="center", va="center", fontsize=8, zorder=5)
    axis.set(xlim=(-0.4, size - 0.6), ylim=(-1.15, 1.15), xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def draw_edges(axes: Sequence[Axes], name: str, stage: Mapping[str, Any]) -> None:
    """Draws bars for each edge of a stage: open rates and entropies, and beside them weights.

    Args:
        axes: for the open rates, and for the weights unless they are left out.
        name: of the stage.
        stage: its measures, as `path_diversity` gives them.
    """
    sources, targets = edges_of(stage["open_rate"])
    size = len(stage["open_rate"])
    ends = [f"{j}→{'out' if i == size - 1 else i}" for j, i in zip(sources, targets, strict=True)]
    positions = range(len(ends))
    rates = stage["open_rate"][sources, targets]
    axes[0].bar(positions, rates, color="tab:blue")
    for k, bits in enumerate(stage["edge_entropy"][sources, targets]):
        if bits > 0.005:
            axes[0].annotate(f"{bits:.2f}", (k, rates[k]), ha="center", va="bottom", fontsize=6)
    axes[0].set(ylim=(0, 1.15), title=f"{name}: open rate (entropy, bits)")
    for axis in axes[1:]:
        axis.bar(
            positions,
            stage["mean_weight"][sources, targets],
            yerr=stage["weight_std"][sources, targets],
            color="tab:green",
            ecolor="0.3",
        )
        axis.set_title(f"{name}: mean weight ± std over images")
    for axis in axes:
        axis.title.set_fontsize(8)
        axis.tick_params(labelsize=6)
        axis.set_xticks(positions, ends, rotation=90 if len(ends) > 10 else 0)


def draw_path_shares(
    axis: Axes,
    numbers: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str] | None,
    most: int,
) -> AxesImage:
    """Draws the share of each class's images on each path as a heat map, a row a class.

    Args:
        axis: to draw on.
        numbers: of each image's path, int (images,), 0 for the most frequent one.
        labels: class index of each image, int (images,).
        class_names: names of the classes by index; None means the indices.
        most: number of paths that are drawn at most.

    Returns:
        The heat map, from 0 to 1.
    """
    classes = np.unique(labels)
    paths = int(numbers.max()) + 1
    counts = np.stack([np.bincount(numbers[labels == c], minlength=paths) for c in classes])
    shares = (counts / counts.sum(axis=1, keepdims=True))[:, :most]
    image = axis.imshow(shares, vmin=0, vmax=1, cmap=RATE_COLORS, aspect="auto")
    axis.set_yticks(range(len(classes)), [name_of(class_names, c) for c in classes], fontsize=7)
    columns = range(shares.shape[1])
    axis.set_xticks(columns, [str(k + 1) for k in columns], fontsize=7)
    axis.set_xlabel(f"path, of {paths}", fontsize=8)
    return image


def draw_boxes(
    axis: Axes,
    image: np.ndarray,
    boxes: ArrayLike,
    scores: Sequence[float] | np.ndarray | None,
    names: Sequence[str] | np.ndarray | None,
    least_score: float,
) -> None:
    """Draws a picture and boxes on it, each with its name and score.

    Args:
        axis: to draw on.
        image: (height, width, 3), uint8.
        boxes: (count, 4), [ymin, xmin, ymax, xmax] in pixels.
        scores: (count,), or None.
        names: what each box is said to hold, (count,), or None.
        least_score: boxes of a lower score are not drawn.

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
    axis.imshow(image)
    axis.set_axis_off()
    for k, (top, left, bottom, right) in enumerate(boxes):
        if scores is not None and scores[k] < least_score:
            continue
        name = name_of(names, k, "")
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
