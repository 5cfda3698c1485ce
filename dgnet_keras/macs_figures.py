"""Figures of multiply-adds: how they are spread over images, and which compute few and many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras import drawing
from dgnet_keras.connectivity import check_adjacency_batch, check_labels, used_nodes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW_SHARES = 30  # as many are drawn each by itself
NARROWEST = 10.0  # percentage points that an axis of shares shows


def plot_macs(
    macs: ArrayLike,
    total: int,
    labels: ArrayLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Distribution of the images' own multiply-adds, over all images and by class.

    As a share of the whole graph's. Inference computes no more than this for a batch of one image,
    where `skip` is `"auto"`.

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
    figure = drawing.new_figure(4.5 * panels, 3.2)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_distribution(axes[0], shares)
    axes[0].set(ylabel="images", title=f"mean {shares.mean():.2f} % of {total:,.0f} MACs")
    if labels is not None:
        labels = check_labels(labels, len(shares), class_names)
        classes = np.unique(labels)
        axes[1].boxplot([shares[labels == c] for c in classes], orientation="horizontal", sym=".")
        names = [drawing.name_of(class_names, c) for c in classes]
        axes[1].set_yticks(range(1, len(classes) + 1), names, fontsize=7)
        axes[1].invert_yaxis()
    for axis in axes:
        low, high = axis.get_xlim()
        room = max(0.0, NARROWEST - (high - low)) / 2
        axis.set_xlim(low - room, high + room)  # equal images are a bar, and not a scale of 0.001 %
        axis.set_xlabel("MACs of an image, % of the whole graph")
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.tick_params(axis="x", labelsize=8)
        axis.locator_params(axis="x", nbins=6)
    return figure


def _draw_distribution(axis, shares):
    """A bar where each share is, or where there are many shares a histogram."""
    values, counts = np.unique(shares.round(3), return_counts=True)
    if len(values) > FEW_SHARES:
        axis.hist(shares, bins=FEW_SHARES, color="tab:blue")
    else:
        gaps = np.diff(values, append=values[-1] + 1.0)
        axis.bar(values, counts, width=0.8 * gaps.min(), color="tab:blue")


def plot_cheap_and_dear(
    images: ArrayLike,
    shares: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    adjacency: Mapping[str, ArrayLike] | None = None,
    class_names: Sequence[str] | None = None,
    count: int = 8,
) -> Figure:
    """The images that compute least, and under them those that compute most, with their shares.

    With their adjacency each image has its path under it: a row of boxes for each stage, a box for
    each block, full where the block is on the image's way to the output. Of images that compute the
    same it is any, the same ones each time.

    Args:
        images: pixels, (images, height, width, channels), uint8 or floats of 0 to 1.
        shares: multiply-adds of each image over the static twin's, (images,).
        labels: class of each image, int (images,), or None.
        adjacency: dict of stage name to array (images, N + 1, N + 1), see `dgnet_keras.adjacency`.
        class_names: names of the classes by index; None means the indices.
        count: images of a row.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: if there are no images, or not one share, label and adjacency an image.
    """
    images, shares = np.asarray(images), np.asarray(shares, "float64")
    if images.ndim != 4 or not len(images) or shares.shape != images.shape[:1]:
        raise ValueError(
            "Expected images (images, height, width, channels) and one share an image. "
            f"Received: {images.shape} and {shares.shape}"
        )
    if labels is not None:
        labels = check_labels(labels, len(shares), class_names)
    stages = _used_blocks(adjacency, len(shares))
    # Folders come class by class: the first of those that compute the same would be one class.
    order = np.lexsort((np.random.default_rng(0).permutation(len(shares)), shares))
    count = min(count, len(order))
    rows = order[:count], order[::-1][:count]
    heights = (1, 0.14 * len(stages)) if stages else (1,)
    figure = drawing.new_figure(max(1.1 * count + 0.6, 3.6), 0.8 + 2.6 + 1.9 * sum(heights[1:]))
    grid = figure.subplots(
        2 * len(heights), count, squeeze=False, gridspec_kw={"height_ratios": 2 * heights}
    )
    for k, text in enumerate(("fewest", "most")):
        pictures, *strips = grid[k * len(heights) : (k + 1) * len(heights)]
        pictures[0].set_ylabel(f"{text}\nMACs", fontsize=8)
        for axis, i in zip(pictures, rows[k], strict=True):
            title = f"{shares[i]:.0%}"
            if labels is not None:
                title = f"{drawing.name_of(class_names, labels[i])}: {title}"
            drawing.draw_image(axis, images[i], title)
        for strip in strips:
            for axis, i in zip(strip, rows[k], strict=True):
                drawing.draw_blocks(axis, [used[i] for used in stages])
    figure.suptitle("Share of the static network's multiply-adds", fontsize=10)
    return figure


def plot_blocks_by_class(
    adjacency: Mapping[str, np.ndarray],
    labels: ArrayLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """How many of each class's images take each block.

    A panel a stage: a row a class, a column a block, the share of the class's images that have the
    block on their way to the output, as a colour and in percent.

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1), see `dgnet_keras.adjacency`.
        labels: class of each image, int (images,), or None: all images are one class.
        class_names: names of the classes by index; None means the indices.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: if there is no adjacency to draw, or not one label an image.
    """
    images = check_adjacency_batch(dict(adjacency))
    labels = check_labels(labels, images, class_names)
    classes = np.unique(labels)
    names = [drawing.name_of(class_names, c) for c in classes] if len(classes) > 1 else ["all"]
    stages = _used_blocks(adjacency, images)
    widths = [used.shape[1] for used in stages]
    width, height = 1.6 + 0.42 * sum(widths) + 0.4 * len(stages), 1.3 + 0.3 * len(classes)
    figure = drawing.new_figure(max(width, 4.5), height)
    axes = figure.subplots(1, len(stages), squeeze=False, gridspec_kw={"width_ratios": widths})[0]
    for axis, key, used in zip(axes, adjacency, stages, strict=True):
        rates = 100 * np.stack([used[labels == c].mean(axis=0) for c in classes])
        axis.imshow(rates, cmap=drawing.RATE_COLORS, vmin=0, vmax=100, aspect="auto")
        for (row, column), rate in np.ndenumerate(rates):
            color = "white" if rate > 60 else "black"
            axis.text(column, row, f"{rate:.0f}", ha="center", va="center", size=7, color=color)
        axis.set_xticks(range(used.shape[1]))
        axis.set_yticks(range(len(classes)), names if axis is axes[0] else [])
        axis.tick_params(labelsize=8, length=0)
        axis.set_title(key, fontsize=9)
    figure.supxlabel("block", fontsize=9)
    figure.suptitle("Images that take a block, %", fontsize=10)
    return figure


def plot_dial(
    shares: ArrayLike,
    accuracies: ArrayLike,
    *,
    chosen: tuple[float, float] | None = None,
    static_accuracy: float | None = None,
) -> Figure:
    """Accuracy against multiply-adds, over thresholds: what the dial of a network gives.

    Args:
        shares: multiply-adds over the static twin's, in [0, 1], (thresholds,).
        accuracies: at these thresholds, in [0, 1], (thresholds,).
        chosen: share and accuracy of the threshold in use, or None.
        static_accuracy: of the static network, or None.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: if there are none, or not one accuracy a share.
    """
    shares, accuracies = np.asarray(shares, "float64"), np.asarray(accuracies, "float64")
    if shares.ndim != 1 or not len(shares) or shares.shape != accuracies.shape:
        raise ValueError(
            "Expected one accuracy a share, (thresholds,). "
            f"Received: {shares.shape} and {accuracies.shape}"
        )
    figure = drawing.new_figure(4.8, 3.3)
    axis = figure.subplots()
    order = np.argsort(shares)
    axis.plot(shares[order], 100 * accuracies[order], marker="o", label="at other thresholds")
    if chosen is not None:
        axis.plot([chosen[0]], [100 * chosen[1]], "o", ms=9, color="C1", label="as it is")
    if static_accuracy is not None:
        axis.axhline(100 * static_accuracy, color="gray", ls="--", lw=1, label="static network")
    axis.set(xlabel="share of the static network's multiply-adds", ylabel="accuracy, %")
    low, high = axis.get_ylim()
    room = max(0.0, 2.0 - (high - low)) / 2  # a flat dial looks flat
    axis.set_ylim(low - room, min(high + room, 100.2))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _used_blocks(adjacency, images):
    """Of each stage, bool (images, N): which blocks are on an image's way to the output."""
    if adjacency is None:
        return []
    if (found := check_adjacency_batch(dict(adjacency))) != images:
        raise ValueError(f"Expected the adjacency of {images} images. Received: of {found}")
    return [used_nodes(np.asarray(matrix) > 0)[:, :-1] for matrix in adjacency.values()]
