"""What a set of images' adjacency says of each edge and node; checks that it is whole.

Works on arrays with NumPy alone; imports nothing from the package.
"""

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import ArrayLike


def check_adjacency_batch(adjacency: dict[str, np.ndarray]) -> int:
    """Number of images of a batch's adjacency, after a check that it is whole.

    Raises:
        ValueError: unless it is a dict of finite arrays (images, N + 1, N + 1), at least one of
            them, all of the same number of images.
    """
    if not isinstance(adjacency, dict):
        raise ValueError(
            "An adjacency is a dict of stage name to array, see dgnet_keras.adjacency. "
            f"Received: {type(adjacency).__name__}"
        )
    if not adjacency:
        raise ValueError("There is no adjacency: the model has no stage with edges.")
    shapes = {name: np.shape(matrix) for name, matrix in adjacency.items()}
    for name, shape in shapes.items():
        if len(shape) != 3 or shape[1] != shape[2]:
            raise ValueError(
                "An adjacency must be of shape (images, N + 1, N + 1). "
                f"Received: {shape} in {name!r}"
            )
        if not np.isfinite(adjacency[name]).all():
            bad = int((~np.isfinite(adjacency[name])).any(axis=(1, 2)).sum())
            raise ValueError(
                f"Edge weights must be finite. Received: {bad} of {shape[0]} images with NaN or "
                f"infinite ones in {name!r}: has training diverged?"
            )
    counts = {shape[0] for shape in shapes.values()}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(f"Every stage must have the same images, at least 1. Received: {shapes}")
    return counts.pop()


def edges_of(matrix: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Indices (sources, targets) of the possible edges of an adjacency (..., N + 1, N + 1)."""
    return np.triu_indices(np.shape(matrix)[-1], k=1)


@dataclasses.dataclass(frozen=True)
class EdgeStatistics:
    """What the routers' health is told from; all over the same images.

    Attributes:
        open_rate: dict of stage name to the share of images that keep each edge open, float
            (N + 1, N + 1).
        mean_weight: likewise, mean of the edge weights, closed edges as 0.
        weight_std: likewise, standard deviation over images.
        node_rate: dict of stage name to the share of images that use each node, float (N + 1,):
            it lies on a path of open edges from node 0 to the output.
    """

    open_rate: dict[str, np.ndarray]
    mean_weight: dict[str, np.ndarray]
    weight_std: dict[str, np.ndarray]
    node_rate: dict[str, np.ndarray]

    @classmethod
    def of(cls, adjacency: dict[str, np.ndarray]) -> Self:
        """Of the images of an adjacency, a dict of arrays (images, N + 1, N + 1)."""
        check_adjacency_batch(adjacency)
        matrices = {name: np.asarray(matrix, "float64") for name, matrix in adjacency.items()}
        return cls(
            {name: (matrix > 0).mean(axis=0) for name, matrix in matrices.items()},
            {name: matrix.mean(axis=0) for name, matrix in matrices.items()},
            {name: matrix.std(axis=0) for name, matrix in matrices.items()},
            {name: used_nodes(matrix > 0).mean(axis=0) for name, matrix in matrices.items()},
        )


def used_nodes(is_open: np.ndarray) -> np.ndarray:
    """Which nodes lie on a path of open edges from node 0 to the output.

    Args:
        is_open: bool (images, N + 1, N + 1).

    Returns:
        bool (images, N + 1).
    """
    size = is_open.shape[-1]
    from_first = np.zeros(is_open.shape[:2], bool)
    to_output = np.zeros(is_open.shape[:2], bool)
    from_first[:, 0] = to_output[:, -1] = True
    for node in range(1, size):
        from_first[:, node] = (is_open[:, :node, node] & from_first[:, :node]).any(axis=1)
    for node in range(size - 2, -1, -1):
        to_output[:, node] = (is_open[:, node, node + 1 :] & to_output[:, node + 1 :]).any(axis=1)
    return from_first & to_output


def have_weights(adjacency: Mapping[str, np.ndarray]) -> bool:
    """Whether open edges have weights other than 1, as those of paths have not."""
    return any(((matrix != 0) & (matrix != 1)).any() for matrix in adjacency.values())


def are_paths(adjacency: Mapping[str, np.ndarray]) -> bool:
    """Whether each image has a path: edges of weight 1, no more than one of them into a node."""
    into = (matrix.sum(axis=1).max() for matrix in adjacency.values())
    return not have_weights(adjacency) and all(degree <= 1 for degree in into)
