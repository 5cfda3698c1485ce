"""Pictures of connectivity. Needs matplotlib (extra `notebooks` or `train`)."""

import numpy as np


def plot_adjacency_by_class(adjacency, labels, *, class_names=None, max_classes=10):
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
        A matplotlib `Figure`; save it with `figure.savefig(path)`.

    Raises:
        ValueError: if there is no adjacency to draw, or labels and adjacency differ in length.
    """
    from matplotlib.figure import Figure

    labels = np.asarray(labels).reshape(-1)
    if not adjacency:
        raise ValueError("There is no adjacency to draw: the model has no stage with edges.")
    for name, matrix in adjacency.items():
        if len(matrix) != len(labels):
            raise ValueError(
                f"Expected one label an image. Received: {len(labels)} labels, "
                f"{len(matrix)} images in {name!r}"
            )
    classes = np.unique(labels)[:max_classes]
    rows = [(name, measure) for name in adjacency for measure in ("mean weight", "open rate")]
    figure = Figure(figsize=(1.5 + 1.3 * len(classes), 1.45 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(classes), squeeze=False)
    for row, (name, measure) in zip(axes, rows, strict=True):
        values = adjacency[name] if measure == "mean weight" else adjacency[name] > 0
        means = [np.mean(values[labels == c], axis=0) for c in classes]
        top = 1.0 if measure == "open rate" else max(float(np.max(means)), 1e-6)
        for axis, mean in zip(row, means, strict=True):
            image = _draw_adjacency(
                axis, mean, top, "viridis" if measure == "mean weight" else "Blues"
            )
        row[0].set_ylabel(f"{name}\n{measure}", fontsize=8)
        figure.colorbar(image, ax=row.tolist(), shrink=0.9)
    for axis, c in zip(axes[0], classes, strict=True):
        axis.set_title(str(c if class_names is None else class_names[c]), fontsize=9)
    figure.suptitle("Connectivity by class: edge from node (row) to node (column)", fontsize=10)
    return figure


def _draw_adjacency(axis, matrix, top, colors):
    """Draws one adjacency; entries below the diagonal cannot be edges and stay gray."""
    size = len(matrix)
    axis.set_facecolor("lightgray")
    possible = np.triu(np.ones((size, size), bool), k=1)
    image = axis.imshow(np.where(possible, matrix, np.nan)[:-1, 1:], vmin=0, vmax=top, cmap=colors)
    axis.set_xticks(range(size - 1), [*map(str, range(1, size - 1)), "out"], fontsize=6)
    axis.set_yticks(range(size - 1), range(size - 1), fontsize=6)
    return image
