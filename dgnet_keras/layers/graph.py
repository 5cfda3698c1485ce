"""Graph stage: blocks as the nodes of a complete directed acyclic graph, wired per sample."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

import keras
import numpy as np
import tensorflow as tf

from dgnet_keras.layers.composite import Change, Composite, serialized, settle_flags
from dgnet_keras.layers.edges import Edges, FixedEdges, RoutedEdges
from dgnet_keras.layers.gate import gate_dtype
from dgnet_keras.layers.initializers import ArrayInitializer
from dgnet_keras.layers.options import GraphKeywords, GraphOptions, shows_graph_options
from dgnet_keras.layers.parts import adjacency_of, graph_weight, make_gates, make_routers
from dgnet_keras.layers.path import run_path
from dgnet_keras.layers.skipping import check_normalization, make_sources
from dgnet_keras.layers.wiring import PATHS, ROUTED, Graph, split_into_graphs


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
    has no router and no adjacency.

    With `wiring="path"` a sample takes one path through the nodes, along edges of weight 1:

        state  = block_0(inputs)
        z_i    = router_i(state)                                 (batch,), float32
        state  = block_i(state) if z_i > threshold else state    for 0 < i < N
        output = state

    The paper (arXiv 2010.01097) describes the graph, the routers and the threshold in its abstract;
    the formulas and rules above are this implementation's own definitions.

    Args:
        blocks: list of layers with distinct names, features in, features out. `blocks[0]` takes
            the stage's input and may change its shape; the others must keep it.
        seed: int, or sequence of ints: of random and registered wirings, and of paths' routers
            and noise.
        name: of the layer; it begins the keys of the adjacency.
        dtype: dtype policy; the blocks have their own.
        trainable: whether the stage's weights are trained.
        changes: what was changed on routers and gates, as `get_config` gives it.
        **options: fields of `GraphOptions`, which says what each does.

    Attributes:
        options: the `GraphOptions`, with the values that None stands for. Each option is also an
            attribute of its own name.
        models: weak set of the models that have traced the stage, see `set_threshold`.

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
        self.models: weakref.WeakSet[keras.Model] = weakref.WeakSet()
        self.input_spec = keras.InputSpec(ndim=4)
        self._graphs = split_into_graphs(self.name, len(self.blocks), self.options.max_nodes)
        parts = self.options, self.graphs, seed, self._layer
        routers = {str(j): router for j, router in make_routers(*parts).items()}
        # Two names, so that no file of one kind's weights is taken for the other's.
        self._routers = {} if self.options.wiring in PATHS else routers
        self._path_routers = routers if self.options.wiring in PATHS else {}
        self._gates = make_gates(*parts)

    @property
    def graphs(self) -> list[Graph]:
        """The stage's graphs that have edges, in order: adjacency key, first block, blocks."""
        return [g for g in self._graphs if g.num_blocks > 1]

    def routers(self) -> dict[int, keras.layers.Layer]:
        """The routers, by the block that each belongs to.

        No property: Keras would name them by it in weights files.
        """
        return {int(j): router for j, router in {**self._routers, **self._path_routers}.items()}

    def gates(self) -> list[keras.layers.Layer]:
        """The gates: one a node that edges lead into, or of paths one for all."""
        return list(self._gates.values())

    def set_threshold(self, threshold: float) -> None:
        """Gives every gate a threshold; in units of edge weight, of paths in logits.

        The models of this package that hold the stage, and what their `with_preprocessing` made,
        answer with it at once. A function of your own that was traced before keeps the thresholds
        of other wirings than paths, which are no weights.

        Raises:
            ValueError: for a threshold out of range, or if a gate, one of `register_gate`, has no
                method `set_threshold(threshold)`; none is changed.
        """
        for gate in self.gates():
            if not hasattr(gate, "set_threshold"):
                raise ValueError(
                    f"The gate {self.gate!r} must have a method `set_threshold(threshold)`. "
                    f"Received: {type(gate).__name__}, which has none"
                )
        for gate in self.gates():
            gate.set_threshold(threshold)
        if self.options.wiring in PATHS:
            return  # a weight, which what was traced reads
        for model in self.models:
            trace_anew(model)

    def describe(self) -> list[tuple[str, int, int]]:
        """Name, number of nodes and number of edges of each graph of the stage, in order."""
        return [(g.key, g.num_blocks, g.num_edges) for g in self._graphs]

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
        counts_all = self.options.wiring in PATHS and self.options.path_gradient == "all"
        if self._gates and not counts_all:
            check_normalization(self.blocks, self.name)
        for router in self.routers().values():
            router.build(shapes[0])
        for graph in self.graphs:
            for i in range(1, graph.num_blocks + 1):
                if gate := self._gates.get(str(graph.first + i)):
                    gate.build((None, i))
        if gate := self._gates.get("path"):
            gate.build((None,))
        self._graph_weights = {g.key: self._build_graph_weight(g) for g in self.graphs}
        self.input_spec = keras.InputSpec(ndim=4, axes={-1: input_shape[-1]})

    def _build_graph_weight(self, graph):
        """The weight that the wiring gives a graph, or None."""
        found = graph_weight(self.options, graph, self.seed)
        if found is None:
            return None
        weight = self.add_weight(
            name=found.name + graph.key.removeprefix(self.name),
            shape=found.values.shape,
            initializer=ArrayInitializer(found.values),
            trainable=found.trainable,
            autocast=False,
        )
        return self._track(weight)

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
            if self.options.wiring in PATHS and adjacency is None:
                features, found[graph.key] = run_path(
                    blocks, features, self._take(graph, threshold, training), self.options, training
                )
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

    def _take(self, graph, threshold, training):
        """Which samples take node i, as a function of i and of the state; see `run_path`."""
        gate, weight = self._gates["path"], self._graph_weights[graph.key]

        def take(i, state):
            if weight is None:
                logits = self._path_routers[str(graph.first + i)](state, training=training)
            else:
                logits = tf.cast(weight, gate_dtype(self.compute_dtype))[i - 1]
                logits = tf.repeat(logits, tf.shape(state)[0])
            return gate(logits, threshold=threshold, training=training)

        return take

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
            matrix = adjacency_of(options, graph, self.seed) if weight is None else weight
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


def trace_anew(model: keras.Model) -> None:
    """Has Keras's loops trace a model's functions again, those that it has; also inside `fit`."""
    for kind in ("train", "test", "predict"):
        if getattr(model, f"{kind}_function") is not None:
            getattr(model, f"make_{kind}_function")(force=True)


def _logits_of(router):
    return lambda pooled: router(pooled)["logits"]


def _run_graph(blocks, features, edges, sources):
    """Runs the nodes after the first, and returns what the output node takes in."""
    edges.add_source(sources.add(features, edges.route(0)))
    for i, block in enumerate(blocks[1:], start=1):
        column = edges.column(i)
        edges.add_source(sources.run(block, column, edges.is_on(i), edges.route(i)))
    return sources.output(edges.column(len(blocks)))
