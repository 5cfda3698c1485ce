"""Wirings: which edges a graph has, and where their weights come from."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

# An adjacency as a function of the number of blocks and of a seed.
Wiring = Callable[[int, list[int]], ArrayLike]


@dataclasses.dataclass(frozen=True)
class Graph:
    """One graph of a stage.

    Attributes:
        key: its name in the stage's dict of adjacency.
        first: index of its first block in the stage.
        num_blocks: N; the blocks are those from `first` to `last`.
    """

    key: str
    first: int
    num_blocks: int

    @property
    def last(self) -> int:
        """Index of its last block in the stage."""
        return self.first + self.num_blocks - 1

    @property
    def num_edges(self) -> int:
        """Edges between the blocks and into the output; 0 for a graph of one block."""
        if self.num_blocks == 1:
            return 0
        return self.num_blocks * (self.num_blocks + 1) // 2


def split_into_graphs(name: str, num_blocks: int, max_nodes: int | None) -> list[Graph]:
    """The graphs of a stage, in order: one, or several of near-equal size.

    Args:
        name: of the stage.
        num_blocks: of the stage.
        max_nodes: the most blocks of a graph; None does not bound them.
    """
    parts = math.ceil(num_blocks / (max_nodes or num_blocks))
    if parts == 1:
        return [Graph(name, 0, num_blocks)]
    chunks = np.array_split(np.arange(num_blocks), parts)
    return [Graph(f"{name}_graph{k}", int(c[0]), len(c)) for k, c in enumerate(chunks)]


def initial_edge_biases(num_edges: int, *, init: str, threshold: float) -> np.ndarray:
    """Initial logits of a node's outgoing edges, the chain edge first.

    Args:
        num_edges: number of outgoing edges.
        init: `"open"`: all 0. `"static"`: 0 for the chain edge, min(-3.5, logit(0.3 threshold))
            for the others, which are then closed.
        threshold: the initial threshold; in (0, 1) for `"static"`.

    Returns:
        float32 array (num_edges,).
    """
    biases = np.zeros(num_edges, "float32")
    if init == "static":
        closed = 0.3 * threshold
        biases[1:] = min(-3.5, math.log(closed / (1 - closed)))
    return biases


def random_adjacency(num_blocks: int, seed: int | Sequence[int]) -> np.ndarray:
    """Bernoulli(0.5) edges of weight 1 / in-degree, at least one into each node.

    Args:
        num_blocks: N, the number of blocks of the graph.
        seed: int or sequence of ints; the same seed gives the same edges on any machine.

    Returns:
        float32 array (N + 1, N + 1), strictly upper triangular; columns 1 to N sum to 1.
    """
    rng = np.random.default_rng(seed)
    adjacency = np.zeros((num_blocks + 1, num_blocks + 1), "float32")
    for target in range(1, num_blocks + 1):
        is_open = rng.random(target) < 0.5
        if not is_open.any():
            is_open[rng.integers(target)] = True
        adjacency[:target, target] = is_open / is_open.sum()
    return adjacency


def chain_adjacency(num_blocks: int, seed: int | Sequence[int] | None = None) -> np.ndarray:
    """Edges i - 1 -> i of weight 1: float32 (N + 1, N + 1)."""
    return np.eye(num_blocks + 1, k=1, dtype="float32")


def complete_adjacency(num_blocks: int, seed: int | Sequence[int] | None = None) -> np.ndarray:
    """Every edge, of weight 1 / in-degree: float32 (N + 1, N + 1)."""
    edges = np.triu(np.ones((num_blocks + 1, num_blocks + 1), "float32"), k=1)
    return edges / np.maximum(edges.sum(axis=0, keepdims=True), 1)


# With edge weights that are trained: sums of earlier features; one path through the nodes.
ROUTED = ("dynamic", "learned")
PATHS = ("path", "learned_path")
# Whose connectivity differs by image.
BY_IMAGE = ("dynamic", "path")
_fixed: dict[str, Wiring] = {
    "chain": chain_adjacency,
    "random": random_adjacency,
    "complete": complete_adjacency,
}
_BUILT_IN = (*ROUTED, *PATHS, *_fixed)
_COMPUTED = ("chain", "complete")  # their adjacency follows from N


def wirings() -> tuple[str, ...]:
    """Names of all wirings, the registered ones last."""
    return (*ROUTED, *PATHS, *_fixed)


def register_wiring(name: str, adjacency: Wiring) -> None:
    """Adds a wiring whose edges are the same for every sample and are not trained.

    The adjacency is kept with the model's weights, so that a model that was saved answers as it
    did even if the function gives something else later. A process that loads such a model has to
    register the name before.

    Args:
        name: what `GraphStage`, the backbones and `create` then take as `wiring`.
        adjacency: function of `num_blocks`, the number N of blocks of a graph, and `seed`, a list
            of ints, that returns an array (N + 1, N + 1); entry [j, i] is the weight of edge
            j -> i. See `check_adjacency` for what it must be.

    Raises:
        ValueError: if `name` is that of a built-in wiring, or no non-empty string.
    """
    if name in _BUILT_IN or not isinstance(name, str) or not name:
        raise ValueError(
            f"`name` must be a new wiring's, not one of {list(_BUILT_IN)}. Received: name={name!r}"
        )
    _fixed[name] = adjacency


def is_stored(wiring: str) -> bool:
    """Whether a graph of this wiring keeps its adjacency as a weight."""
    return wiring in _fixed and wiring not in _COMPUTED


def fixed_adjacency(wiring: str, num_blocks: int, seed: list[int]) -> np.ndarray:
    """The adjacency of a graph whose wiring is neither trained nor routed.

    Args:
        wiring: name of the wiring.
        num_blocks: N, the number of blocks of the graph.
        seed: list of ints.

    Returns:
        float32 array (N + 1, N + 1).

    Raises:
        ValueError: if a registered wiring gives something else than an adjacency.
    """
    return check_adjacency(_fixed[wiring](num_blocks, seed), num_blocks, wiring)


def check_adjacency(adjacency: ArrayLike, num_blocks: int, wiring: str) -> np.ndarray:
    """The array as float32, if it can wire N blocks.

    Raises:
        ValueError: if it is not (N + 1, N + 1), has entries that are negative or not finite, an
            edge on or under the diagonal, or a node 1 to N without an incoming edge.
    """
    adjacency = np.asarray(adjacency, "float32")
    size = num_blocks + 1
    problem = None
    if adjacency.shape != (size, size):
        problem = f"shape {adjacency.shape}"
    elif not np.isfinite(adjacency).all() or (adjacency < 0).any():
        problem = "weights that are negative or not finite"
    elif np.tril(adjacency).any():
        problem = "edges on or under the diagonal, back to the same or an earlier node"
    elif not adjacency[:, 1:].any(axis=0).all():
        unreached = 1 + np.flatnonzero(~adjacency[:, 1:].any(axis=0))
        problem = f"no edge into node {', '.join(map(str, unreached))}"
    if problem:
        raise ValueError(
            f"The wiring {wiring!r} of {num_blocks} blocks must be an array ({size}, {size}) of "
            "finite weights above the diagonal, with an edge into every node but the first. "
            f"Received: {problem}"
        )
    return adjacency
