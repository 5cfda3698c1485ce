"""Figures of multiply-adds: how they are spread over images, and which compute few and many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras import drawing
from dgnet_keras.connectivity import check_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    axes[0].hist(shares, bins=min(30, max(5, len(np.unique(shares)))), color="tab:blue")
    axes[0].set(ylabel="images", title=f"mean {shares.mean():.2f} % of {total:,.0f} MACs")
    if labels is not None:
        labels = check_labels(labels, len(shares), class_names)
        classes = np.unique(labels)
        axes[1].boxplot([shares[labels == c] for c in classes], orientation="horizontal", sym=".")
        names = [drawing.name_of(class_names, c) for c in classes]
        axes[1].set_yticks(range(1, len(classes) + 1), names, fontsize=7)
        axes[1].invert_yaxis()
    for axis in axes:
        axis.set_xlabel("MACs of an image, % of the whole graph")
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.tick_params(axis="x", labelsize=8)
        axis.locator_params(axis="x", nbins=6)
    return figure


def plot_cheap_and_dear(
    images: ArrayLike,
    shares: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
    count: int = 8,
) -> Figure:
    """The images that compute least, and under them those that compute most, with their shares.

    Args:
        images: pixels, (images, height, width, channels), uint8 or floats of 0 to 1.
        shares: multiply-adds of each image over the static twin's, (images,).
        labels: class of each image, int (images,), or None.
        class_names: names of the classes by index; None means the indices.
        count: images of a row.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: if there are no images, or not one share and label an image.
    """
    images, shares = np.asarray(images), np.asarray(shares, "float64")
    if images.ndim != 4 or not len(images) or shares.shape != images.shape[:1]:
        raise ValueError(
            "Expected images (images, height, width, channels) and one share an image. "
            f"Received: {images.shape} and {shares.shape}"
        )
    if labels is not None:
        labels = check_labels(labels, len(shares), class_names)
    order = np.argsort(shares, kind="stable")
    count = min(count, len(order))
    figure = drawing.new_figure(1.1 * count + 0.6, 3.4)
    axes = figure.subplots(2, count, squeeze=False)
    for row, which in zip(axes, (order[:count], order[::-1][:count]), strict=True):
        for axis, i in zip(row, which, strict=True):
            title = f"{shares[i]:.0%}"
            if labels is not None:
                title = f"{drawing.name_of(class_names, labels[i])}: {title}"
            drawing.draw_image(axis, images[i], title)
    for row, text in zip(axes, ("fewest", "most"), strict=True):
        row[0].set_ylabel(f"{text}\nMACs", fontsize=8)
    figure.suptitle("Share of the static network's multiply-adds", fontsize=10)
    return figure
