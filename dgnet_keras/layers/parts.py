"""What a wiring adds to the blocks of a stage: routers, gates, and weights of whole graphs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from dgnet_keras.layers.gate import make_gate
from dgnet_keras.layers.initializers import ArrayInitializer
from dgnet_keras.layers.options import GraphOptions
from dgnet_keras.layers.path_router import INITIAL_LOGIT, PathGate, PathRouter
from dgnet_keras.layers.router import Router
from dgnet_keras.layers.wiring import (
    PATHS,
    ROUTED,
    Graph,
    fixed_adjacency,
    initial_edge_biases,
    is_stored,
)

# `make(cls, name, *args, **kwargs)` makes a layer of the stage's.
Make = Callable[..., Any]
# A stage's seed as NumPy takes it.
Seed = int | Sequence[int]


class GraphWeight(NamedTuple):
    """A weight of a whole graph, and the values that it starts with."""

    name: str
    values: np.ndarray
    trainable: bool


def make_routers(
    options: GraphOptions, graphs: Sequence[Graph], seed: Seed, make: Make
) -> dict[int, keras.layers.Layer]:
    """The routers by block: each routes its features onward, or chooses who takes it in a path."""
    if options.wiring == "dynamic":
        return {
            j: make(
                Router,
                f"router_{j}",
                graph.last + 1 - j,
                edge_scale=options.resolved_edge_scale,
                bias_initializer=ArrayInitializer(_initial_biases(options, graph.last + 1 - j)),
            )
            for graph in graphs
            for j in range(graph.first, graph.last + 1)
        }
    if options.wiring == "path":
        bias = ArrayInitializer([_initial_logit(options)])
        return {
            i: make(
                PathRouter, f"path_router_{i}", seed=[*_entries(seed), i], bias_initializer=bias
            )
            for graph in graphs
            for i in range(graph.first + 1, graph.last + 1)
        }
    return {}


def make_gates(
    options: GraphOptions, graphs: Sequence[Graph], seed: Seed, make: Make
) -> dict[str, keras.layers.Layer]:
    """The gates by the node that edges lead into; of paths one for all nodes, `"path"`."""
    if options.wiring in PATHS and graphs:
        number = int(np.random.SeedSequence(_entries(seed)).generate_state(1)[0])
        return {"path": make(PathGate, "gate_path", options.threshold, seed=number)}
    if options.wiring not in ROUTED:
        return {}
    targets = [j + 1 for graph in graphs for j in range(graph.first, graph.last + 1)]
    return {str(i): make(make_gate, f"gate_{i}", options) for i in targets}


def graph_weight(options: GraphOptions, graph: Graph, seed: Seed) -> GraphWeight | None:
    """The weight that a graph of a `learned`, `learned_path` or stored fixed wiring holds."""
    if options.wiring == "learned":
        sizes = range(graph.num_blocks, 0, -1)
        biases = np.concatenate([_initial_biases(options, n) for n in sizes])
        return GraphWeight("edge_logits", biases, trainable=True)
    if options.wiring == "learned_path":
        logits = np.full(graph.num_blocks - 1, _initial_logit(options), "float32")
        return GraphWeight("node_logits", logits, trainable=True)
    if is_stored(options.wiring):
        return GraphWeight("adjacency", adjacency_of(options, graph, seed), trainable=False)
    return None


def adjacency_of(options: GraphOptions, graph: Graph, seed: Seed) -> np.ndarray:
    """The adjacency of a graph whose wiring is neither trained nor routed, (N + 1, N + 1)."""
    return fixed_adjacency(options.wiring, graph.num_blocks, [*_entries(seed), graph.first])


def _initial_biases(options, num_edges):
    return initial_edge_biases(num_edges, init=options.init, threshold=options.threshold)


def _initial_logit(options):
    return options.threshold + INITIAL_LOGIT


def _entries(seed):
    return np.atleast_1d(seed).tolist()
