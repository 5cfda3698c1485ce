"""What a set of images' connectivity says: path diversity, like images, figures for training.

Works on arrays, as `dgnet_keras.adjacency` returns them, with NumPy alone. The measures are this
implementation's own choice of standard ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras.edge_statistics import (
    EdgeStatistics,
    check_adjacency_batch,
    edges_of,
    used_nodes,
)
from dgnet_keras.router_health import CONSTANT, FAR, MESSAGES, RARE, Finding, router_health

__all__ = [
    "CONSTANT",
    "FAR",
    "HEAT_MAP_PIXELS",
    "MESSAGES",
    "RARE",
    "EdgeStatistics",
    "Finding",
    "binary_entropy",
    "check_adjacency",
    "check_adjacency_batch",
    "check_labels",
    "edge_metrics",
    "edges_of",
    "entropy",
    "flat_edges",
    "heat_map",
    "metrics",
    "mutual_information",
    "nearest_images",
    "path_diversity",
    "paths",
    "router_health",
    "used_nodes",
]

HEAT_MAP_PIXELS = 128
check_adjacency = check_adjacency_batch


def check_labels(
    labels: ArrayLike | None, images: int, class_names: Sequence[str] | None = None
) -> np.ndarray:
    """Labels as int (images,); without labels, all images are one class.

    Raises:
        ValueError: if they are not whole numbers, one an image, or not in `class_names`.
    """
    given = np.zeros(images, int) if labels is None else np.asarray(labels).reshape(-1)
    if len(given) != images:
        raise ValueError(
            f"Expected one label an image. Received: {len(given)} labels, {images} images"
        )
    try:
        whole = given.astype(int)
        is_whole = bool((whole == given).all())
    except (TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"Labels must be whole numbers. Received: dtype {given.dtype}, such as {given[0]!r}"
        )
    if class_names is not None and not (0 <= whole.min() and whole.max() < len(class_names)):
        raise ValueError(
            f"Labels must be in [0, {len(class_names)}), the number of class_names. "
            f"Received: {whole.min()} to {whole.max()}"
        )
    return whole


def flat_edges(adjacency: dict[str, np.ndarray]) -> np.ndarray:
    """All possible edges' weights, graph after graph: float (images, edges)."""
    columns = [np.asarray(matrix)[:, *edges_of(matrix)] for matrix in adjacency.values()]
    return np.concatenate(columns, axis=1)


def paths(adjacency: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The path of each image: which set of edges it keeps open.

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1).

    Returns:
        Tuple of the number of each image's path, int (images,), and the paths, bool
        (paths, edges), the most frequent first (ties: as they sort).
    """
    check_adjacency_batch(adjacency)
    found, numbers, counts = np.unique(
        flat_edges(adjacency) > 0, axis=0, return_inverse=True, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[numbers.reshape(-1)], found[order]


def entropy(counts: ArrayLike) -> float:
    """Entropy in bits of the distribution that is proportional to `counts`."""
    p = np.asarray(counts, "float64")
    p = p[p > 0] / p.sum()
    return abs(float((p * np.log2(p)).sum()))


def binary_entropy(p: ArrayLike) -> np.ndarray:
    """Entropy in bits of events of probability `p`, an array."""
    p = np.asarray(p, "float64")
    q = np.clip(p, 1e-12, 1 - 1e-12)
    return -(q * np.log2(q) + (1 - q) * np.log2(1 - q)) * ((p > 0) & (p < 1))


def mutual_information(a: ArrayLike, b: ArrayLike) -> float:
    """Mutual information in bits of two labellings, int (images,) each, as they are counted.

    Of few images in many groups it is too large (each image tells its own label): compare it with
    that of shuffled labels.
    """
    pairs = np.unique(np.stack([a, b]), axis=1, return_counts=True)[1]
    singles = [np.unique(x, return_counts=True)[1] for x in (a, b)]
    return max(0.0, entropy(singles[0]) + entropy(singles[1]) - entropy(pairs))


def path_diversity(
    adjacency: dict[str, np.ndarray],
    labels: ArrayLike | None = None,
    *,
    shuffles: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """How many paths the images take, and how much a path says about the image's class.

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1), see
            `dgnet_keras.adjacency`.
        labels: class of each image, int (images,), or None.
        shuffles: number of random orders of the labels, at least 1, that
            `mutual_information_by_chance` is a mean over.
        seed: of these orders.

    Returns:
        Dict: `images`; for all stages together, and under `stages` for each by its name,
        `distinct_paths`, `path_entropy` (bits), `largest_share` (share of the images on the most
        frequent path) and, with labels, `class_entropy`, `mutual_information` of path and class
        and `mutual_information_by_chance`, that of shuffled labels (bits; the information is what
        exceeds it). A stage also has arrays (N + 1, N + 1): `open_rate`, `edge_entropy` (bits, of
        whether an image keeps the edge open), `mean_weight`, `weight_std` (over images, closed
        edges as 0), and with labels `weight_by_class`, the share of the weights' variance that
        lies between classes, 0 to 1 (0 where they do not vary).

    Raises:
        ValueError: if there are no edges, or not one label an image.
    """
    images = check_adjacency_batch(adjacency)
    if labels is not None:
        labels = check_labels(labels, images)
        rng = np.random.default_rng(seed)
        shuffled = [rng.permutation(labels) for _ in range(shuffles)]

    def of_paths(part):
        numbers, found = paths(part)
        counts = np.bincount(numbers)
        measures = {
            "distinct_paths": len(found),
            "path_entropy": entropy(counts),
            "largest_share": float(counts.max() / images),
        }
        if labels is not None:
            by_chance = [mutual_information(numbers, other) for other in shuffled]
            measures |= {
                "class_entropy": entropy(np.unique(labels, return_counts=True)[1]),
                "mutual_information": mutual_information(numbers, labels),
                "mutual_information_by_chance": float(np.mean(by_chance)),
            }
        return measures

    stages = {}
    for name, matrix in adjacency.items():
        matrix = np.asarray(matrix, "float64")
        open_rate = (matrix > 0).mean(axis=0)
        stages[name] = {
            **of_paths({name: matrix}),
            "open_rate": open_rate,
            "edge_entropy": binary_entropy(open_rate),
            "mean_weight": matrix.mean(axis=0),
            "weight_std": matrix.std(axis=0),
        }
        if labels is not None:
            stages[name]["weight_by_class"] = _between_classes(matrix, labels)
    return {"images": images, **of_paths(adjacency), "stages": stages}


def _between_classes(values, labels):
    """Share of the variance over axis 0 that lies between the labels' means."""
    total = values.var(axis=0)
    mean = values.mean(axis=0)
    between = np.zeros_like(total)
    for label in np.unique(labels):
        chosen = values[labels == label]
        between += len(chosen) / len(values) * (chosen.mean(axis=0) - mean) ** 2
    return np.divide(between, total, out=np.zeros_like(total), where=total > 1e-12)


def metrics(adjacency: dict[str, np.ndarray]) -> dict[str, float]:
    """The figures to follow during training.

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1).

    Returns:
        Dict of floats: `open_rate/<stage>`, share of the stage's edges that an image keeps open,
        on average; `router_entropy/<stage>`, mean over edges of the entropy, in bits, of whether
        an image has the edge open (0 where all images agree); `distinct_paths`.
    """
    open_rates = EdgeStatistics.of(adjacency).open_rate
    return {**edge_metrics(open_rates), "distinct_paths": float(len(paths(adjacency)[1]))}


def edge_metrics(open_rates: Mapping[str, ArrayLike]) -> dict[str, float]:
    """`open_rate/<stage>` and `router_entropy/<stage>` of `metrics`, from each edge's open rate."""
    found = {}
    for name, rates in open_rates.items():
        rates = np.asarray(rates)[edges_of(rates)]
        found[f"open_rate/{name}"] = float(rates.mean())
        found[f"router_entropy/{name}"] = float(binary_entropy(rates).mean())
    return found


def heat_map(matrix: np.ndarray) -> np.ndarray:
    """An adjacency (N + 1, N + 1) as an image, float32 (height, width, 1) in [0, 1].

    White is the largest weight.
    """
    scaled = matrix / max(matrix.max(), 1e-12)
    pixels = max(1, HEAT_MAP_PIXELS // len(matrix))
    return np.kron(scaled, np.ones((pixels, pixels)))[..., None].astype("float32")


def nearest_images(
    adjacency: dict[str, np.ndarray], index: int, *, count: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """The images whose edge weights are most like those of one image.

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1).
        index: number of the image to compare with.
        count: number of images wanted.

    Returns:
        Tuple of indices, int (count,), nearest first and without `index` itself, and their
        Euclidean distances over all edges' weights (closed edges as 0), float (count,). Fewer if
        there are not so many other images. Of images at the same distance it is any, the same ones
        each time.

    Raises:
        ValueError: if there are no edges.
        IndexError: if there is no such image.
    """
    images = check_adjacency_batch(adjacency)
    if not 0 <= index < images:
        raise IndexError(f"`index` must be in [0, {images}). Received: {index}")
    weights = flat_edges(adjacency)
    distances = np.linalg.norm(weights - weights[index], axis=1)
    # Images of one path are at one distance. Folders come class by class: not the first of them.
    order = np.lexsort((np.random.default_rng(0).permutation(images), distances))
    order = order[order != index][:count]
    return order, distances[order]
