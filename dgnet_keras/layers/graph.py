"""Graph stage: blocks as the nodes of a complete directed acyclic graph, wired per sample."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

import keras
import numpy as np
import tensorflow as tf

from dgnet_keras.layers.composite import Change, Composite, serialized, settle_flags
from dgnet_keras.layers.edges import Edges, FixedEdges, RoutedEdges
from dgnet_keras.layers.gate import gate_dtype, make_gate
from dgnet_keras.layers.initializers import ArrayInitializer
from dgnet_keras.layers.options import GraphKeywords, GraphOptions, shows_graph_options
from dgnet_keras.layers.router import Router
from dgnet_keras.layers.skipping import check_normalization, make_sources
from dgnet_keras.layers.wiring import ROUTED, fixed_adjacency, initial_edge_biases, is_stored


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


@keras.saving.register_keras_serializable(package="dgnet_keras")
class GraphStage(Composite):
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
        seed: int, or sequence of ints; for `wiring="random"` and registered ones only.
        name: of the layer; it begins the keys of the adjacency.
        dtype: dtype policy; the blocks have their own.
        trainable: whether the stage's weights are trained.
        changes: what was changed on routers and gates, as `get_config` gives it.
        **options: fields of `GraphOptions`, which says what each does.

    Attributes:
        options: the `GraphOptions`, with the values that None stands for. Each option is also an
            attribute of its own name.

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

    @shows_graph_options
    def __init__(
        self,
        blocks: Sequence[keras.layers.Layer],
        *,
        seed: int | Sequence[int] = 0,
        name: str | None = None,
        dtype: str | keras.DTypePolicy | None = None,
        trainable: bool = True,
        changes: Mapping[str, Change] | None = None,
        **options: Unpack[GraphKeywords],
    ) -> None:
        # The blocks cast for themselves; thresholds and adjacency stay float32 under every policy.
        super().__init__(
            name=name, dtype=dtype, trainable=trainable, autocast=False, changes=changes
        )
        self.options = GraphOptions.of(options).resolved()
        for option, value in self.options.keywords().items():
            setattr(self, option, value)
        self.blocks = list(blocks)
        names = [block.name for block in self.blocks]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`blocks` must be layers with distinct names. Received: {names}")
        for block in self.blocks:
            if not trainable and not self._made.is_copy:
                block.trainable = False
            self._track(block)
        self.seed = seed
        self.input_spec = keras.InputSpec(ndim=4)
        self._graphs = self._split_into_graphs()
        if self.options.wiring == "dynamic":
            self._routers = {str(j): self._make_router(g, j) for g, j in self._sources()}
        if self.options.wiring in ROUTED:
            self._gates = {str(j + 1): self._make_gate(f"gate_{j + 1}") for _, j in self._sources()}

    @property
    def graphs(self) -> list[Graph]:
        """The stage's graphs that have edges, in order: adjacency key, first block, blocks."""
        return [g for g in self._graphs if g.num_blocks > 1]

    def describe(self) -> list[tuple[str, int, int]]:
        """Name, number of nodes and number of edges of each graph of the stage, in order."""
        return [(g.key, g.num_blocks, g.num_edges) for g in self._graphs]

    def _split_into_graphs(self):
        num_blocks = len(self.blocks)
        parts = math.ceil(num_blocks / (self.options.max_nodes or num_blocks))
        if parts == 1:
            return [Graph(self.name, 0, num_blocks)]
        chunks = np.array_split(np.arange(num_blocks), parts)
        return [Graph(f"{self.name}_graph{k}", int(c[0]), len(c)) for k, c in enumerate(chunks)]

    def _sources(self):
        """(graph, index of the source block in the stage) for every block with outgoing edges."""
        return [(g, j) for g in self.graphs for j in range(g.first, g.last + 1)]

    def _make_router(self, graph, source):
        num_edges = graph.last + 1 - source
        return self._layer(
            Router,
            f"router_{source}",
            num_edges,
            edge_scale=self.options.resolved_edge_scale,
            bias_initializer=ArrayInitializer(self._initial_biases(num_edges)),
        )

    def _make_gate(self, name):
        gate = make_gate(self.options, name=name, dtype=self.dtype_policy)
        return self._keep(gate)

    def _initial_biases(self, num_edges):
        options = self.options
        return initial_edge_biases(num_edges, init=options.init, threshold=options.threshold)

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
            settle_flags(block)
        if self.options.wiring in ROUTED:
            check_normalization(self.blocks, self.name)
        for graph, j in self._sources():
            if self.options.wiring == "dynamic":
                self._routers[str(j)].build(shapes[0])
            if self.options.wiring in ROUTED:
                self._gates[str(j + 1)].build((None, j + 1 - graph.first))
        self._graph_weights = {g.key: self._build_graph_weight(g) for g in self.graphs}
        self.input_spec = keras.InputSpec(ndim=4, axes={-1: input_shape[-1]})

    def _build_graph_weight(self, graph):
        """The weight that a `learned` or a stored fixed graph holds, or None."""
        suffix = graph.key.removeprefix(self.name)
        if self.options.wiring == "learned":
            sizes = range(graph.num_blocks, 0, -1)
            biases = np.concatenate([self._initial_biases(n) for n in sizes])
            return self._add_array(f"edge_logits{suffix}", biases)
        if is_stored(self.options.wiring):
            return self._add_array(
                f"adjacency{suffix}", self._fixed_adjacency(graph), trainable=False
            )
        return None

    def _add_array(self, name, values, trainable=True):
        """A weight that starts as an array, and is kept in a dict."""
        weight = self.add_weight(
            name=name,
            shape=values.shape,
            initializer=ArrayInitializer(values),
            trainable=trainable,
            autocast=False,
        )
        return self._track(weight)

    def _fixed_adjacency(self, graph):
        seed = [*np.atleast_1d(self.seed).tolist(), graph.first]
        return fixed_adjacency(self.options.wiring, graph.num_blocks, seed)

    @property
    def output(self) -> dict[str, Any]:
        """The symbolic output of the stage's first call, a dict as `call` returns it."""
        keys = {"features": 0, "adjacency": {g.key: 0 for g in self.graphs}}
        return keras.tree.pack_sequence_as(keys, keras.tree.flatten(super().output))

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
                edges: Edges = FixedEdges(self._given(graph, adjacency), all_on=False)
            else:
                edges = self._make_edges(graph, tf.shape(features)[0], threshold, training)
            if self.options.wiring == "chain" and adjacency is None:
                for block in blocks[1:]:
                    features = block(features)
            else:
                sources = make_sources(blocks, self.options, training)
                features = _run_graph(blocks, features, edges, sources)
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

    def _make_edges(self, graph, batch_size, threshold, training):
        dtype, options = gate_dtype(self.compute_dtype), self.options
        weight = self._graph_weights[graph.key]
        if options.wiring not in ROUTED:
            matrix = self._fixed_adjacency(graph) if weight is None else weight
            matrix = tf.repeat(tf.cast(matrix, dtype)[None], batch_size, axis=0)
            return FixedEdges(matrix, all_on=True)
        sources: dict[str, Any] = {}
        if options.wiring == "dynamic":
            nodes = range(graph.first, graph.last + 1)
            sources["routers"] = [_logits_of(self._routers[str(j)]) for j in nodes]
        else:
            rows = tf.split(tf.cast(weight, dtype), list(range(graph.num_blocks, 0, -1)))
            sources["logits"] = [tf.repeat(row[None], batch_size, axis=0) for row in rows]
        return RoutedEdges(
            [self._gates[str(i)] for i in range(graph.first + 1, graph.last + 2)],
            edge_scale=options.resolved_edge_scale,
            threshold=threshold,
            training=training,
            **sources,
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
            "blocks": [serialized(block) for block in self.blocks],
            **self.options.keywords(),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuilds the stage with its blocks."""
        blocks = [keras.saving.deserialize_keras_object(block) for block in config["blocks"]]
        return cls(**{"changes": {}, **config, "blocks": blocks})


def _logits_of(router):
    return lambda pooled: router(pooled)["logits"]


def _run_graph(blocks, features, edges, sources):
    """Runs the nodes after the first, and returns what the output node takes in."""
    edges.add_source(sources.add(features, edges.route(0)))
    for i, block in enumerate(blocks[1:], start=1):
        column = edges.column(i)
        edges.add_source(sources.run(block, column, edges.is_on(i), edges.route(i)))
    return sources.output(edges.column(len(blocks)))
