"""Graph stage: blocks as the nodes of a complete directed acyclic graph, wired per sample."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self, get_args

import keras
import numpy as np
import tensorflow as tf

from dgnet_keras.checks import check_choice
from dgnet_keras.layers.aggregation import Features, ForwardFeatures
from dgnet_keras.layers.edges import FixedEdges, RoutedEdges
from dgnet_keras.layers.gate import Gate, ThresholdGate, check_threshold, gate_dtype
from dgnet_keras.layers.router import Router, edge_weights_from_logits
from dgnet_keras.layers.wiring import (
    ROUTED,
    Init,
    default_edge_scale,
    fixed_adjacency,
    initial_edge_biases,
    is_stored,
    wirings,
)

INITS: tuple[Init, ...] = get_args(Init)


@dataclasses.dataclass(frozen=True)
class _Graph:
    """One graph of a stage: its blocks are the stage's `first` to `first + num_blocks - 1`."""

    key: str
    first: int
    num_blocks: int

    @property
    def last(self) -> int:
        return self.first + self.num_blocks - 1

    @property
    def num_edges(self) -> int:
        if self.num_blocks == 1:
            return 0
        return self.num_blocks * (self.num_blocks + 1) // 2


@keras.saving.register_keras_serializable(package="dgnet_keras")
class GraphStage(keras.layers.Layer):
    """Blocks as nodes of a complete directed acyclic graph; each sample takes its own edges.

    Node j's features x_j are routed to every later node, the output node N included:

        x_0      = block_0(inputs)
        z_j      = clip(router_j(x_j), -12, 12)                  (batch, N - j)
        alpha_j  = edge_scale * sigmoid(z_j)                     (batch, N - j), float32
        A[b,j,i] = alpha_j[b,i] if alpha_j[b,i] > threshold else 0
        h_i      = sum_{j<i} A[:,j,i] * x_j
        x_i      = block_i(h_i)   for 0 < i < N
        output   = h_N

    Two rules make paths real: (a) a node without an open incoming edge is off for that sample,
    its row of A is zero; (b) the output keeps its strongest incoming edge among the nodes that
    are on (by logit, ties to the latest source) even under the threshold. A stage of one block
    has no router and no adjacency. The paper (arXiv 2010.01097) describes the graph, the
    routers and the threshold in its abstract; the formulas and rules above are this
    implementation's own definitions.

    Args:
        blocks: list of layers with distinct names, features in, features out. `blocks[0]` takes
            the stage's input and may change its shape; the others must keep it.
        wiring: `"dynamic"` (routers), `"chain"` (only edges i - 1 -> i of weight 1: the original
            network), `"learned"` (one trainable logit an edge, the same for every sample),
            `"random"` (seeded Bernoulli(0.5) edges of weight 1 / in-degree), `"complete"` (every
            edge, weight 1 / in-degree), or one of `register_wiring`.
        threshold: float in [0, edge_scale), in units of edge weight.
        edge_scale: the largest edge weight; None means 1 with `init="open"`, 2 with `"static"`.
        init: `"open"`: every edge starts open with weight edge_scale / 2. `"static"`: chain
            edges start with weight exactly 1 and all others closed, so that the stage computes
            what the chain of its blocks computes.
        gate: the gate's gradient: `"straight_through"`, `"masked"` or `"surrogate"`.
        learn_threshold: whether each node's threshold is trained (surrogate gate only).
        max_nodes: int of at least 2, or None. Bounds the blocks of one graph: a deeper stage is
            split into consecutive graphs of near-equal size.
        seed: int, or sequence of ints; for `wiring="random"` and registered ones only.

    Call arguments:
        inputs: features, (batch, height, width, channels).
        adjacency: optional; taken in place of the wiring's own, as in `with_adjacency`. A dict
            like that of the output.
        threshold: optional; taken in place of every gate's own. Scalar, or (batch, 1) for one a
            sample. Wirings without gates do not read it.

    Returns:
        Dict: `"features"`, (batch, height', width', channels') in the compute dtype, and
        `"adjacency"`, a dict of float32 tensors (batch, N + 1, N + 1) with the stage's name as
        key, or `<name>_graph0`, `<name>_graph1`, ... where the stage is split. Entry [b, j, i] is
        the weight of edge j -> i for sample b. Empty for a stage without edges.

    Raises:
        ValueError: for an unknown option, an option out of range, blocks without distinct names,
            an input that is not of rank 4, or a block that changes the stage's feature shape.
    """

    def __init__(
        self,
        blocks: Sequence[keras.layers.Layer],
        *,
        wiring: str = "dynamic",
        threshold: float = 0.1,
        edge_scale: float | None = None,
        init: Init = "open",
        gate: Gate = "straight_through",
        learn_threshold: bool = False,
        max_nodes: int | None = None,
        seed: int | Sequence[int] = 0,
        **kwargs: Any,
    ) -> None:
        # The blocks cast for themselves; thresholds and adjacency stay float32 under every policy.
        super().__init__(autocast=False, **kwargs)
        check_choice("wiring", wiring, wirings())
        check_choice("init", init, INITS)
        if edge_scale is None:
            edge_scale = default_edge_scale(init)
        check_threshold(threshold, edge_scale)
        _check_init(init, threshold, edge_scale)
        if max_nodes is not None and (not isinstance(max_nodes, int) or max_nodes < 2):
            raise ValueError(
                f"`max_nodes` must be an integer of at least 2, or None. Received: {max_nodes!r}"
            )
        self.blocks = list(blocks)
        names = [block.name for block in self.blocks]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`blocks` must be layers with distinct names. Received: {names}")
        self.wiring = wiring
        self.threshold = float(threshold)
        self.edge_scale = float(edge_scale)
        self.init = init
        self.gate = gate
        self.learn_threshold = learn_threshold
        self.max_nodes = max_nodes
        self.seed = seed
        self.input_spec = keras.InputSpec(ndim=4)
        # Made for every wiring, so that the options are checked before a router needs them.
        self._gate_options: dict[str, Any] = {
            "threshold": self.threshold,
            "gate": gate,
            "learn_threshold": learn_threshold,
            "edge_scale": self.edge_scale,
        }
        ThresholdGate(**self._gate_options)
        self._graphs = self._split_into_graphs()
        if wiring == "dynamic":
            self._routers = {str(j): self._make_router(g, j) for g, j in self._sources()}
        if wiring in ROUTED:
            self._gates = {
                str(j + 1): ThresholdGate(
                    **self._gate_options, dtype=self.dtype_policy, name=f"gate_{j + 1}"
                )
                for _, j in self._sources()
            }

    @property
    def graphs(self) -> list[_Graph]:
        """The stage's graphs that have edges, in order: adjacency key, first block, blocks."""
        return [g for g in self._graphs if g.num_blocks > 1]

    def describe(self) -> list[tuple[str, int, int]]:
        """Name, number of nodes and number of edges of each graph of the stage, in order."""
        return [(g.key, g.num_blocks, g.num_edges) for g in self._graphs]

    def _split_into_graphs(self):
        num_blocks = len(self.blocks)
        parts = math.ceil(num_blocks / (self.max_nodes or num_blocks))
        if parts == 1:
            return [_Graph(self.name, 0, num_blocks)]
        chunks = np.array_split(np.arange(num_blocks), parts)
        return [_Graph(f"{self.name}_graph{k}", int(c[0]), len(c)) for k, c in enumerate(chunks)]

    def _sources(self):
        """(graph, index of the source block in the stage) for every block with outgoing edges."""
        return [(g, j) for g in self.graphs for j in range(g.first, g.last + 1)]

    def _make_router(self, graph, source):
        num_edges = graph.last + 1 - source
        biases = initial_edge_biases(num_edges, init=self.init, threshold=self.threshold)
        return Router(
            num_edges,
            edge_scale=self.edge_scale,
            bias_initializer=_array_initializer(biases),
            dtype=self.dtype_policy,
            name=f"router_{source}",
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the blocks and, as the wiring needs, routers, gates, logits or adjacency."""
        features = keras.KerasTensor(input_shape, dtype=self.compute_dtype)
        shapes = []
        for block in self.blocks:
            features = block(features)
            shapes.append(tuple(features.shape))
            if len(shapes[0]) != 4 or shapes[-1] != shapes[0]:
                raise ValueError(
                    "All blocks of a stage must give features of one shape, (batch, height, "
                    f"width, channels). Received: stage {self.name!r}, {self.blocks[0].name!r} "
                    f"gives {shapes[0]}, {block.name!r} gives {shapes[-1]}"
                )
        for graph, j in self._sources():
            if self.wiring == "dynamic":
                self._routers[str(j)].build(shapes[0])
            if self.wiring in ROUTED:
                self._gates[str(j + 1)].build((None, j + 1 - graph.first))
        self._graph_weights = {g.key: self._build_graph_weight(g) for g in self.graphs}
        self.input_spec = keras.InputSpec(ndim=4, axes={-1: input_shape[-1]})

    def _build_graph_weight(self, graph):
        """The weight that a `learned` or a stored fixed graph holds, or None."""
        suffix = graph.key.removeprefix(self.name)
        if self.wiring == "learned":
            rows = [
                initial_edge_biases(n, init=self.init, threshold=self.threshold)
                for n in range(graph.num_blocks, 0, -1)
            ]
            biases = np.concatenate(rows)
            return self.add_weight(
                name=f"edge_logits{suffix}",
                shape=biases.shape,
                initializer=_array_initializer(biases),
                autocast=False,
            )
        if is_stored(self.wiring):
            adjacency = self._fixed_adjacency(graph)
            return self.add_weight(
                name=f"adjacency{suffix}",
                shape=adjacency.shape,
                initializer=_array_initializer(adjacency),
                trainable=False,
                autocast=False,
            )
        return None

    def _fixed_adjacency(self, graph):
        seed = [*np.atleast_1d(self.seed).tolist(), graph.first]
        return fixed_adjacency(self.wiring, graph.num_blocks, seed)

    def call(
        self,
        inputs: tf.Tensor,
        adjacency: dict[str, tf.Tensor] | None = None,
        threshold: float | tf.Tensor | None = None,
        training: bool | None = None,
    ) -> dict[str, Any]:
        """Runs the stage's graphs one after the other."""
        found = {}
        features = inputs
        for graph in self._graphs:
            blocks = self.blocks[graph.first : graph.last + 1]
            features = blocks[0](features)
            if graph.num_blocks == 1:
                continue
            if adjacency is not None:
                edges = FixedEdges(self._given(graph, adjacency))
            else:
                edges = self._make_edges(graph, tf.shape(features)[0], threshold)
            if self.wiring == "chain" and adjacency is None:
                for block in blocks[1:]:
                    features = block(features)
            else:
                features = _run_graph(blocks, features, edges, training)
            found[graph.key] = edges.adjacency()
        return {"features": tf.cast(features, self.compute_dtype), "adjacency": found}

    def _given(self, graph, adjacency):
        size = graph.num_blocks + 1
        shape = np.shape(adjacency[graph.key]) if graph.key in adjacency else None
        if shape is None or tuple(shape[1:]) != (size, size):
            raise ValueError(
                f"`adjacency` must have {graph.key!r} of shape (batch, {size}, {size}). "
                f"Received: {'nothing of that name' if shape is None else tuple(shape)}"
            )
        return tf.cast(adjacency[graph.key], gate_dtype(self.compute_dtype))

    def _make_edges(self, graph, batch_size, threshold):
        dtype = gate_dtype(self.compute_dtype)
        if self.wiring not in ROUTED:
            matrix = self._graph_weights[graph.key]
            if matrix is None:
                matrix = self._fixed_adjacency(graph)
            return FixedEdges(tf.repeat(tf.cast(matrix, dtype)[None], batch_size, axis=0))
        gates = [self._gates[str(i)] for i in range(graph.first + 1, graph.last + 2)]
        if self.wiring == "dynamic":
            return RoutedEdges(
                lambda j, pooled: self._routers[str(graph.first + j)](pooled),
                gates,
                needs_pooled=True,
                threshold=threshold,
            )
        sizes = list(range(graph.num_blocks, 0, -1))
        rows = tf.split(tf.cast(self._graph_weights[graph.key], dtype), sizes)
        return RoutedEdges(
            lambda j, _: edge_weights_from_logits(
                tf.repeat(rows[j][None], batch_size, axis=0), self.edge_scale
            ),
            gates,
            needs_pooled=False,
            threshold=threshold,
        )

    def compute_output_spec(
        self,
        inputs: keras.KerasTensor,
        adjacency: dict[str, keras.KerasTensor] | None = None,
        threshold: float | keras.KerasTensor | None = None,
        training: bool | None = None,
    ) -> dict[str, Any]:
        """Features in the compute dtype, and a float32 adjacency (batch, N + 1, N + 1) a graph."""
        features = self.blocks[0].compute_output_spec(inputs)
        adjacency = {
            g.key: keras.KerasTensor(
                (inputs.shape[0], g.num_blocks + 1, g.num_blocks + 1),
                gate_dtype(self.compute_dtype),
            )
            for g in self.graphs
        }
        features = keras.KerasTensor(features.shape, dtype=self.compute_dtype)
        return {"features": features, "adjacency": adjacency}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, the blocks serialised."""
        return {
            **super().get_config(),
            "blocks": [keras.saving.serialize_keras_object(block) for block in self.blocks],
            "wiring": self.wiring,
            "threshold": self.threshold,
            "edge_scale": self.edge_scale,
            "init": self.init,
            "gate": self.gate,
            "learn_threshold": self.learn_threshold,
            "max_nodes": self.max_nodes,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuilds the stage with its blocks."""
        blocks = [keras.saving.deserialize_keras_object(block) for block in config["blocks"]]
        return cls(**{**config, "blocks": blocks})


def _run_graph(blocks, features, edges, training):
    """Runs the nodes after the first, and returns what the output node takes in."""
    kind = Features if training else ForwardFeatures
    sources = kind(len(blocks), pool=edges.needs_pooled)
    edges.add_source(sources.add(features))
    for i, block in enumerate(blocks[1:], start=1):
        edges.add_source(sources.add(block(sources.aggregate(edges.column(i)))))
    return sources.aggregate(edges.column(len(blocks)))


def _check_init(init, threshold, edge_scale):
    if init == "static" and (edge_scale != 2 or not 0 < threshold < 1):
        raise ValueError(
            "`init='static'` needs `edge_scale=2` and `threshold` in (0, 1), so that a chain edge "
            f"has weight exactly 1. Received: edge_scale={edge_scale}, threshold={threshold}"
        )
    if init == "open" and not edge_scale / 2 > threshold:
        raise ValueError(
            "`init='open'` starts every edge at edge_scale / 2, which must be above the "
            f"threshold. Received: edge_scale={edge_scale}, threshold={threshold}"
        )


def _array_initializer(values):
    """An initializer that gives `values`; the layer's own config recreates it."""

    def initialize(shape, dtype=None):
        return keras.ops.reshape(keras.ops.convert_to_tensor(values, dtype), shape)

    return initialize
